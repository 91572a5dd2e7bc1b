"""Where one image's time goes: the most expensive kernels, and the share of the floor by scale.

python benchmarks/profile_gpu.py [infinity-2b] [FILE.json]

The floor of a scale is what its products and its attention take alone, replayed in a row with the
shapes that the exact path has there. Elsewhere than on CUDA (DRY=1) kernels are operators and the
floor is timed as called.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from stagevar_probe.bench.machine import wait
from stagevar_probe.bench.random_models import default_dtype, random_conditioning, random_model
from stagevar_runtime.accelerate.modes import accelerate
from stagevar_runtime.accelerate.recorder import CudaRecorder
from stagevar_runtime.kernels.attention import attend
from stagevar_runtime.kernels.linear import Linear, linear
from stagevar_runtime.loop.engine import Generation, generate
from stagevar_runtime.model.protocol import ScaleModel

KERNELS = 25
WARM_UP = 4  # images: eager, recorded, compared, replayed
REPEATS = 5


def expensive(run: Callable[[], Generation], cuda: bool) -> list[dict[str, Any]]:
    """The kernels of one image that take longest, with their time, count and share."""
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=kinds) as seen:
        run()
    name = "self_device_time_total" if cuda else "self_cpu_time_total"
    events = [e for e in seen.key_averages() if getattr(e, name) > 0]
    total = sum(getattr(e, name) for e in events)
    events.sort(key=lambda e: -getattr(e, name))
    return [
        {
            "kernel": event.key,
            "ms": getattr(event, name) / 1000,
            "count": event.count,
            "share": getattr(event, name) / total,
        }
        for event in events[:KERNELS]
    ]


def per_token(block: torch.nn.Module) -> list[Linear]:
    """The linear layers of a block that run on its tokens, not on the condition or the text."""
    skipped = ("ada_lin", "mat_kv", "to_kv")
    return [
        module
        for name, module in block.named_modules()
        if isinstance(module, Linear) and not any(part in name.split(".") for part in skipped)
    ]


@torch.inference_mode()
def floor_ms(model: ScaleModel, rows: int, tokens: int, keys: int) -> float:
    """Products and attention of all blocks at one scale."""
    width, heads = model.info.width, model.info.heads
    make = {"device": model.device, "dtype": model.dtype}
    q = torch.randn(rows, heads, tokens, width // heads, **make)
    k, v = (torch.randn(rows, heads, keys, width // heads, **make) for _ in range(2))
    layers = [per_token(block) for block in model.blocks]
    inputs = {
        layer.in_features: torch.randn(rows, tokens, layer.in_features, **make)
        for layer in layers[0]
    }

    def all_blocks() -> None:
        for own in layers:
            attend(q, k, v, 1.0)
            for layer in own:
                linear(inputs[layer.in_features], layer.weight, layer.bias)

    run: Callable[[], object] = all_blocks
    if model.device.type == "cuda":
        recorder = CudaRecorder(model.device)
        recorder.warm(all_blocks)
        run, _ = recorder.record(all_blocks)
    times = []
    for _ in range(REPEATS):
        wait(model.device)
        begun = time.perf_counter()
        run()
        wait(model.device)
        times.append(1000 * (time.perf_counter() - begun))
    return sorted(times)[REPEATS // 2]


def main(size: str, path: Path | None) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = random_model(size, device, default_dtype(device))
    fast = accelerate(model, "auto")
    conditioning = random_conditioning(model, 1, 0)

    def run() -> Generation:
        return generate(model, conditioning, seed=0, graphs=fast.graphs)

    made = [run() for _ in range(WARM_UP if fast.graphs else 1)][-1]
    kernels = expensive(run, device.type == "cuda")
    scales, keys = [], 0
    for step, ms in zip(made.plan, made.scale_ms, strict=True):
        keys += step.scale.tokens
        floor = floor_ms(model, len(step.branches), step.scale.tokens, keys)
        scales.append({"scale": list(step.scale.grid), "ms": ms, "floor_ms": floor})
    found = {"model": size, "device": str(device), "notes": fast.notes(), "kernels": kernels}
    found |= {"scales": scales, "decode_ms": made.decode_ms, "loop_ms": made.loop_ms}
    for row in kernels:
        print(f"{row['ms']:9.3f} ms {row['share']:6.1%} {row['count']:6}  {row['kernel'][:90]}")
    for row in scales:
        share = row["floor_ms"] / row["ms"] if row["ms"] else 0.0
        grid = "x".join(map(str, row["scale"]))
        print(f"{grid:>8} {row['ms']:9.3f} ms, floor {row['floor_ms']:9.3f} ms, {share:.0%} of it")
    print(f"loop {made.loop_ms:.1f} ms, decode {made.decode_ms:.1f} ms", *fast.notes(), sep="\n")
    if path is not None:
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    given = sys.argv[1:]
    main(given[0] if given else "infinity-2b", Path(given[1]) if len(given) > 1 else None)
