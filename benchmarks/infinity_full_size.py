"""Time and memory of a full-size Infinity with random weights, exact and accelerated.

    python benchmarks/infinity_full_size.py --batch 1 4 --output benchmarks/results/FILE.json
    python benchmarks/infinity_full_size.py --device cpu --size 0.06M --plans exact --repeats 1

No checkpoint is needed: time does not depend on the weights' values. Plans are those of the
shipped profile; they run interleaved, after one round that is not counted. The last line on
stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from stagevar_runtime import __version__, load_profile
from stagevar_runtime.families.infinity.model import Infinity
from stagevar_runtime.families.infinity.sizes import with_random_weights
from stagevar_runtime.loop import engine
from stagevar_runtime.loop.plan import compile_plan

PROFILES = Path(__file__).resolve().parents[1] / "profiles"
TEXT_TOKENS = 24


def measure(model: Infinity, name: str, plans: list[str], batch: int, repeats: int) -> list[dict]:
    """One row a plan: medians over ``repeats`` calls of ``batch`` images."""
    cuda = model.device.type == "cuda"
    generator = torch.Generator().manual_seed(0)
    text = torch.randn(batch, TEXT_TOKENS, model.config.text_width, generator=generator)
    mask = torch.ones(batch, TEXT_TOKENS, dtype=torch.bool)
    conditioning, scales = model.condition(text=text, mask=mask), model.scales()
    shipped = load_profile(PROFILES / f"infinity-{name}.yaml") if plans != ["exact"] else None
    compiled = {
        plan: compile_plan(
            shipped.plan(plan).steps if shipped and plan != "exact" else (),
            model.info,
            scales,
            model.default_sampling,
            8 if cuda else 1,
        )
        for plan in plans
    }
    rows: dict[str, list[tuple[float, engine.Generation, int]]] = {plan: [] for plan in plans}
    for repeat in range(-1, repeats):
        for plan in plans:
            if cuda:
                torch.cuda.reset_peak_memory_stats()
                torch.cuda.synchronize()
            start = time.perf_counter()
            made = engine.generate(model, conditioning, compiled[plan], seed=repeat + 1)
            if cuda:
                torch.cuda.synchronize()
            seconds = time.perf_counter() - start
            assert torch.isfinite(made.images).all()
            peak = torch.cuda.max_memory_allocated() if cuda else 0
            if repeat >= 0 or repeats == 0:
                rows[plan].append((seconds, made, peak))
    return [_row(plan, batch, runs) for plan, runs in rows.items()]


def _row(plan: str, batch: int, runs: list[tuple[float, engine.Generation, int]]) -> dict:
    seconds = sorted(run[0] for run in runs)
    scale_ms = zip(*(run[1].scale_ms for run in runs), strict=True)
    return {
        "plan": plan,
        "batch": batch,
        "seconds_per_image": round(statistics.median(seconds) / batch, 4),
        "seconds_per_image_range": [round(s / batch, 4) for s in (seconds[0], seconds[-1])],
        "scale_ms": [round(statistics.median(ms), 2) for ms in scale_ms],
        "decode_ms": round(statistics.median(run[1].decode_ms for run in runs), 2),
        "peak_device_gib": round(max(run[2] for run in runs) / 2**30, 2),
        "image": list(runs[0][1].images.shape[1:]),
    }


def main() -> None:
    """Parse, build, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", default="2b")
    parser.add_argument("--size", default="1M")
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--plans", nargs="+", default=["exact", "stagevar", "stagevar-released"])
    parser.add_argument("--repeats", type=int, default=5, help="0: the first round is counted")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path)
    said = parser.parse_args()
    device = torch.device(said.device)
    cuda = device.type == "cuda"
    dtype = torch.bfloat16 if cuda else torch.float32
    start = time.perf_counter()
    model = with_random_weights(said.model, device, dtype, options={"size": said.size})
    build_seconds = time.perf_counter() - start
    result: dict[str, Any] = {
        "benchmark": "infinity_full_size",
        "version": __version__,
        "model": said.model,
        "weights": "random",
        "size": said.size,
        "tokens": sum(scale.tokens for scale in model.scales()),
        "dtype": str(dtype).removeprefix("torch."),
        "device": torch.cuda.get_device_name() if cuda else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "build_seconds": round(build_seconds, 1),
        "rows": [
            row
            for batch in said.batch
            for row in measure(model, said.model, said.plans, batch, said.repeats)
        ],
        "peak_host_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }
    text = json.dumps(result)
    if said.output:
        said.output.parent.mkdir(parents=True, exist_ok=True)
        said.output.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
