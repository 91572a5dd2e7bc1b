"""What products in fewer bits bring on a CPU: the loop on one thread, in processor time.

python -m benchmarks.precision benchmarks/results/precision-cpu.json

Processor time of one thread is hardly changed by what else the machine runs. Rows run in turn;
the decoder is left out. Models: VAR-d16 with random weights, and the scenes checkpoint.
"""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from stagevar_probe.bench.random_models import random_conditioning, random_model
from stagevar_runtime import load
from stagevar_runtime.kernels.quantised import obstacle
from stagevar_runtime.loop.engine import generate
from stagevar_runtime.loop.plan import plan_for
from stagevar_runtime.profile import PlanStep

SCENES = Path(__file__).resolve().parent.parent / "checkpoints/scenes/scenes.safetensors"
PROMPT = "a red circle left of a blue square"
ROUNDS = 3


def built(name: str, dtype: torch.dtype, batch: int) -> tuple[Any, Any]:
    """A model and what it draws."""
    if name == "scenes":
        pipeline = load(SCENES, dtype=dtype, profile=None)
        made = pipeline.model, pipeline.read_condition([PROMPT] * batch)
    else:
        model = random_model(name, "cpu", dtype)
        made = model, random_conditioning(model, batch, 0)
    made[0].decode = lambda state: torch.zeros(batch, 3, 1, 1)
    return made


def measured(name: str, batch: int) -> list[dict[str, Any]]:
    """Medians of processor time, and of ratios within a round."""
    model, drawn = built(name, torch.float32, batch)
    half, half_drawn = built(name, torch.bfloat16, batch)
    count = len(model.scales())
    rows: dict[str, tuple[Any, Any, Any]] = {"float32": (model, drawn, plan_for(model))}
    for kind in ("int8", "bfloat16"):
        steps = [PlanStep(scale=k, precision=kind) for k in range(count)]
        rows[f"{kind} products"] = model, drawn, plan_for(model, steps)
    rows["bfloat16 model"] = half, half_drawn, plan_for(half)
    times: dict[str, list[float]] = {row: [] for row in rows}
    for turn in range(ROUNDS + 1):
        for row, (own, given, plan) in rows.items():
            begun = time.process_time()
            generate(own, given, plan, seed=turn)
            if turn:
                times[row].append(time.process_time() - begun)
    return [
        {
            "model": name,
            "batch": batch,
            "row": row,
            "loop_cpu_ms": round(1000 * median(own), 1),
            "speedup": round(median(a / b for a, b in zip(times["float32"], own, strict=True)), 3),
        }
        for row, own in times.items()
    ]


def main(arguments: Sequence[str]) -> None:
    torch.set_num_threads(1)
    cpu = torch.device("cpu")
    found = {
        "kind": "stagevar-precision-cpu",
        "machine": platform.machine(),
        "threads": 1,
        "rounds": ROUNDS,
        "torch": torch.__version__,
        "obstacles": {k: obstacle(k, cpu, torch.float32) for k in ("int8", "bfloat16")},
        "rows": [*measured("var-d16", 1), *measured("scenes", 16)],
    }
    Path(arguments[0]).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
