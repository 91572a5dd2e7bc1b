"""Compiled blocks, proved first by a child process, so that a compiler's fault costs speed only.

The child compiles the block for the shapes that training has, runs it forward and backward on the
device, compares it with the eager one in values and time, and leaves what it compiled in a folder
that both use. Training takes the compiled block once the child has said that it is right and
faster, and is eager until then. A child that crashes, hangs or is late changes nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..scenes.transformer import TextToImage, run_block
from .precision import Precision
from .settings import SIZES, Prefix, Size

NEAR = 0.05  # of the largest value: how far bfloat16 may be off
FASTER = 1.03
CACHE = "TORCHINDUCTOR_CACHE_DIR"
REPORT = "compiled.json"
SHAPES = 32  # shapes of a block at most


class Compiler:
    """Asks a child whether the block may be compiled; ``folder`` holds what it makes."""

    def __init__(self, size: Size, device: str, folder: Path) -> None:
        self.report = folder / REPORT
        self.report.unlink(missing_ok=True)
        os.environ[CACHE] = str(folder / "compiled")
        self.told = False
        command = [sys.executable, "-m", "training.gpu.compiled", size.name, device]
        command += [str(self.report)]
        self.log = folder / "compiled.log"
        with self.log.open("wb") as log:
            self.child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )

    def found(self) -> dict[str, Any] | None:
        """What the child says, once, when it has said it or has failed."""
        if self.told or self.child.poll() is None:
            return None
        self.told = True
        if self.child.returncode == 0 and self.report.is_file():
            return dict(json.loads(self.report.read_text()))
        last = (self.log.read_text(errors="replace").splitlines() or ["it said nothing"])[-1][:300]
        return {"compiled": False, "why": f"the child ended with {self.child.returncode}: {last}"}

    def stop(self) -> None:
        """End the child, if it still runs."""
        if self.child.poll() is None:
            self.child.kill()
            self.child.wait()


def compile_block(model: TextToImage) -> None:
    """Have a model run its blocks compiled."""
    torch._dynamo.config.recompile_limit = SHAPES
    torch._dynamo.config.accumulated_recompile_limit = 4 * SHAPES
    model.run_block = torch.compile(run_block, dynamic=False)


def shapes(size: Size) -> list[tuple[Prefix, bool]]:
    """Every prefix as it is trained on, and whether whole: the longest first."""
    out = [(prefix, whole) for prefix in size.prefixes for whole in (False, True)]
    return [(p, whole) for p, whole in reversed(out) if whole or p.keep < 1]


def prove(size: Size, device: str) -> dict[str, Any]:
    """Compile for every shape, and say whether it is right and how much faster."""
    from .fit import Batch, batch_losses, build_model

    precision = Precision(device)
    precision.prepare()
    model, vae = build_model(size, ["a"], device, depth=2)
    eager = {}

    def run(prefix: Prefix, whole: bool, seed: int = 0) -> tuple[Tensor, Tensor]:
        torch.manual_seed(seed)
        batch = Batch.random(size, prefix.batch, device)
        with precision.autocast():
            losses = batch_losses(model, vae, batch, prefix, whole)
        model.zero_grad(set_to_none=True)
        losses.sum().backward()
        gradient = model.transformer.blocks[0].sa.mat_qkv.weight.grad  # type: ignore[union-attr]
        assert isinstance(gradient, Tensor)
        return losses.detach(), gradient

    def timed(prefix: Prefix, whole: bool) -> float:
        precision.wait()
        begin = time.monotonic()
        for seed in range(3):
            run(prefix, whole, seed)
        precision.wait()
        return (time.monotonic() - begin) / 3

    for prefix, whole in shapes(size):
        first = run(prefix, whole)
        eager[prefix.scales, whole] = (*first, timed(prefix, whole))
    compile_block(model)
    ratios, off = [], 0.0
    for prefix, whole in shapes(size):
        *values, seconds = eager[prefix.scales, whole]
        found = run(prefix, whole)
        for one, other in zip(found, values, strict=True):
            off = max(off, ((one - other).abs().max() / other.abs().max()).item())
        ratios.append(seconds / timed(prefix, whole))
    right = off < NEAR
    why = "" if right else f"off by {off:.3f} of the largest value"
    if right and ratios[0] < FASTER:
        right, why = False, f"{ratios[0]:.2f} times as fast"
    return {"compiled": right, "why": why, "off": off, "faster": [round(r, 2) for r in ratios]}


def main(argv: list[str]) -> int:
    """The child process: size, device, the file to write."""
    name, device, path = argv
    found = prove(SIZES[name], device)
    partial = Path(path + ".partial")
    partial.write_text(json.dumps(found))
    partial.replace(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
