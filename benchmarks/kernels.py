"""Every fused kernel at full size: how far from its definition, how fast, which share of a copy.

python benchmarks/kernels.py FILE.json      (one CUDA device; elsewhere it writes that it has none)
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stagevar_probe.bench.machine import copy_gb_s
from stagevar_runtime.kernels import groups, heads, linear, mounted, norms, pairs

REPEATS = 20
Trial = tuple[str, str, Callable[..., Any], tuple[Any, ...], tuple[Any, ...]]


def trials(device: torch.device) -> Iterator[Trial]:
    """Shapes of Infinity-2B's and VAR-d30's last scales, and of their decoders: what it is, which
    kernel, its definition, the inputs of the kernel and of the definition."""

    def normal(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        return torch.randn(*shape, device=device).to(dtype)

    wide = torch.float32
    gate, factor, shift = (normal(2, 1, 2048, dtype=wide) for _ in range(3))
    x, y = normal(2, 4096, 2048, dtype=wide), normal(2, 4096, 2048)
    given = (x, norms.Step(y, gate), norms.PLAIN, factor, shift, torch.bfloat16)
    yield "residual and norm, float32 stream", "add_norm", norms.add_norm, given, given
    gate, factor, shift = (normal(16, 1, 1920) for _ in range(3))
    x, y = normal(16, 256, 1920), normal(16, 256, 1920)
    given = (x, norms.Step(y, gate), norms.PLAIN, factor, shift)
    yield "residual and norm, bfloat16 stream", "add_norm", norms.add_norm, given, given
    angles = torch.randn(1, 4096, 64, device=device)
    how = heads.Heads(16, "unit", "pairs", rounds=False)
    caches = [normal(2, 2, 16, 9000, 128) for _ in range(2)]
    both = [tuple(cache[:, :, :, 4900:8996]) for cache in caches]
    scale = torch.rand(1, 16, 1, 1, device=device)
    given = (normal(2, 4096, 3 * 2048), how, scale, (angles.cos(), angles.sin()))
    yield (
        "heads, rotated, into the cache",
        "split",
        heads.split,
        (*given, both[0]),
        (*given, both[1]),
    )
    for channels, side in ((128, 1024), (512, 128)):
        norm = nn.GroupNorm(32, channels).to(device, torch.float16).requires_grad_(False)
        image = normal(1, channels, side, side, dtype=torch.float16)
        given = (image.contiguous(memory_format=torch.channels_last), norm)
        what = f"group norm and SiLU, {channels} channels of {side}x{side}"
        yield what, "group_norm", groups.normed, given, given
    clocks = torch.empty(1, 4096 * 32, 2, device=device).exponential_()
    given = (normal(1, 4096, 64, dtype=wide), pairs.Pairs(top_p=0.97), clocks)
    yield "bits from pairs", "draw", pairs.drawn, given, given
    given = (normal(2, 4096, 2048), normal(8192, 2048) / 45, normal(8192))
    yield "product and GELU", "gelu", linear.gelu_linear, given, given


def milliseconds(function: Callable[[], object]) -> float:
    """Median time of a call in a row of them, so that launches do not count."""
    function()
    times = []
    for _ in range(REPEATS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        function()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
    return sorted(times)[REPEATS // 2]


def bytes_of(*trees: Any) -> int:
    """Memory of all tensors in nested tuples, each counted once where it is the same memory."""
    found: dict[int, int] = {}

    def walk(tree: Any) -> None:
        if isinstance(tree, Tensor):
            found[tree.data_ptr()] = tree.nbytes
        elif isinstance(tree, (tuple, list)):
            for part in tree:
                walk(part)
        elif isinstance(tree, norms.Step):
            walk((tree.y, tree.gate))

    walk(trees)
    return sum(found.values())


@torch.inference_mode()
def measured(device: torch.device) -> dict[str, Any]:
    """What the JSON says: one entry a trial, and why a kernel is missing."""
    kernels, notes = mounted.fused(device, torch.bfloat16)
    copy = copy_gb_s(device)
    rows = []
    for what, name, definition, given, plain in trials(device):
        run = getattr(kernels, name)
        row: dict[str, Any] = {"what": what, "kernel": name}
        if run is not None:
            got, wanted = run(*given), definition(*plain)
            pairs_of = zip(got, wanted, strict=True) if isinstance(got, tuple) else [(got, wanted)]
            row["off"] = max(mounted.difference(a, b) for a, b in pairs_of)
            row["ms"] = milliseconds(lambda run=run, given=given: run(*given))
            rate = bytes_of(given, got) / row["ms"] / 1e6
            row |= {"gb_s": rate, "of_copy": rate / copy}
        row["definition_ms"] = milliseconds(lambda d=definition, plain=plain: d(*plain))
        rows.append(row)
    name = torch.cuda.get_device_name(device)
    return {
        "device": name,
        "torch": torch.__version__,
        "copy_gb_s": copy,
        "notes": notes,
        "kernels": rows,
    }


if __name__ == "__main__":
    if torch.cuda.is_available():
        found = measured(torch.device("cuda"))
    else:
        found = {"device": "none", "kernels": []}
    Path(sys.argv[1]).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for row in found["kernels"]:
        print(row)
    print("written to", sys.argv[1])
