"""Compiles every fused kernel for a GPU that is not there, and prints what it takes as JSON.

python tests/runtime/kernels/compiling.py sm_90 [few]
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

from stagevar_runtime.kernels import groups_triton, heads_triton, norms_triton, pairs_triton

Variant = tuple[str, Any, dict[str, str], dict[str, Any], int, bool]


def norms() -> Iterator[Variant]:
    plain = dict.fromkeys(("RMS", "HAS_WEIGHT", "HAS_BIAS", "NORM_Y", "HAS_GATE", "HAS_Y"), False)
    plain |= {"MODULATE": False, "ROUND_GATED": False, "ROUND_SCALED": False}
    families = {
        "first": {"MODULATE": True},
        "ada": {"HAS_Y": True, "HAS_GATE": True, "MODULATE": True},
        "infinity text": {"HAS_Y": True, "HAS_GATE": True, "HAS_WEIGHT": True, "HAS_BIAS": True},
        "hart": {"HAS_Y": True, "HAS_GATE": True, "RMS": True, "HAS_WEIGHT": True}
        | {"MODULATE": True, "ROUND_GATED": True, "ROUND_SCALED": True},
        "switti": {"HAS_Y": True, "HAS_GATE": True, "NORM_Y": True, "RMS": True}
        | {"HAS_WEIGHT": True, "MODULATE": True, "ROUND_GATED": True, "ROUND_SCALED": True},
        "star": {"HAS_Y": True},
    }
    for family, own in families.items():
        for stream, weights in (("fp32", "bf16"), ("bf16", "bf16"), ("fp16", "fp16")):
            for block in (1024, 2048, 4096):
                floats = {name: f"*{stream}" for name in ("x_ptr", "sum_ptr", "gate_ptr")}
                floats |= {n: f"*{stream}" for n in ("factor_ptr", "shift_ptr")}
                floats |= {n: f"*{stream}" for n in ("weight_ptr", "bias_ptr")}
                floats |= {n: f"*{weights}" for n in ("y_ptr", "y_weight_ptr", "out_ptr")}
                constants = plain | own | {"BLOCK": block}
                name = f"add_norm {family} {stream} {block}"
                yield (
                    name,
                    norms_triton.add_norm_kernel,
                    floats,
                    constants,
                    norms_triton.warps(block),
                    True,
                )


def heads() -> Iterator[Variant]:
    for norm, turn in (
        ("UNIT", ""),
        ("UNIT", "PAIRS"),
        ("UNIT", "HALVES"),
        ("WHOLE", "PAIRS"),
        ("", ""),
    ):
        for kind in ("bf16", "fp16", "fp32"):
            for h_block, d_block in ((16, 64), (32, 64), (16, 128), (32, 128), (64, 64)):
                constants = {
                    "UNIT": norm == "UNIT",
                    "WHOLE": norm == "WHOLE",
                    "HAS_SCALE": norm == "UNIT",
                    "PAIRS": turn == "PAIRS",
                    "HALVES": turn == "HALVES",
                    "ROUNDS": True,
                    "H_BLOCK": h_block,
                    "D_BLOCK": d_block,
                }
                floats = {n: f"*{kind}" for n in ("product_ptr", "q_ptr", "k_ptr", "v_ptr")}
                floats |= {n: "*fp32" for n in ("scale_ptr", "cos_ptr", "sin_ptr")}
                name = f"split {norm} {turn} {kind} {h_block}x{d_block}"
                warps = heads_triton.warps(h_block * d_block)
                yield name, heads_triton.split_kernel, floats, constants, warps, True


def group_norms() -> Iterator[Variant]:
    wide = {n: "*fp32" for n in ("mean_ptr", "square_ptr", "factor_ptr", "shift_ptr")}
    for kind in ("fp16", "bf16", "fp32"):
        floats = wide | {n: f"*{kind}" for n in ("x_ptr", "out_ptr", "weight_ptr", "bias_ptr")}
        constants = {"TILE": groups_triton.TILE, "BLOCK": groups_triton.CHANNELS}
        yield f"statistics {kind}", groups_triton.statistics_kernel, floats, constants, 4, True
        for channels in (4, 5, 20):
            constants = {"WIDE": channels, "SLICES": groups_triton.SLICES}
            constants["BLOCK"] = triton.next_power_of_2(channels)
            kernel = groups_triton.merge_kernel
            yield f"merge {kind} {channels}", kernel, floats, constants, 8, True
        for silu in (True, False):
            constants = {"SILU": silu, "BLOCK": groups_triton.FLAT}
            kernel = groups_triton.apply_kernel
            yield f"apply {kind} {silu}", kernel, floats, constants, 8, True


def draws() -> Iterator[Variant]:
    floats = {"logits_ptr": "*fp32", "clocks_ptr": "*fp32", "bits_ptr": "*i64"}
    for guided in (True, False):
        constants = {"GUIDED": guided, "TEMPERED": True, "TOP_P": True, "ON_GPU": True}
        constants["BLOCK"] = pairs_triton.BLOCK
        yield f"draw {guided}", pairs_triton.draw_kernel, floats, constants, 4, False


SCALARS = {"eps": "fp32", "y_eps": "fp32", "first": "fp32", "second": "fp32"}
SCALARS |= {"temperature": "fp32", "least": "fp32"}


def compiled(variant: Variant, arch: int) -> dict[str, Any]:
    """What one kernel takes: shared memory, registers and spilled bytes of a thread."""
    name, kernel, pointers, constants, warps, fuses = variant
    names = [n for n in kernel.arg_names if n not in constants]
    signature: Mapping[str, str] = {n: pointers.get(n, SCALARS.get(n, "i32")) for n in names}
    signature = {**signature, **dict.fromkeys(constants, "constexpr")}
    source = ASTSource(kernel, signature, constants)
    options = {"num_warps": warps, "enable_fp_fusion": fuses}
    made = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(made.asm["ptx"])
        file.flush()
        chip = re.search(r"\.target (\w+)", made.asm["ptx"])[1]
        fmad = [] if fuses else ["--fmad=false"]
        tool = [get_ptxas(arch).path, "-v", *fmad, f"--gpu-name={chip}", file.name]
        tool += ["-o", f"{file.name}.cubin"]
        said = subprocess.run(tool, capture_output=True, text=True, check=True).stderr
    os.unlink(f"{file.name}.cubin")
    spills = [int(n) for n in re.findall(r"(\d+) bytes spill", said)]
    return {
        "name": name,
        "shared": made.metadata.shared,
        "spilled": sum(spills),
        "registers": int(re.search(r"Used (\d+) registers", said)[1]),
    }


if __name__ == "__main__":
    variants = [v for made in (norms(), heads(), group_norms(), draws()) for v in made]
    if "few" in sys.argv:
        variants = list({v[0].split()[0]: v for v in variants}.values())  # the largest of each
    begin = time.time()
    print(json.dumps([compiled(v, int(sys.argv[1].removeprefix("sm_"))) for v in variants]))
    print(f"{len(variants)} in {time.time() - begin:.1f} s", file=sys.stderr)
