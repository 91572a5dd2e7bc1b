"""What every option costs on this device: measured milliseconds, FLOPs, memory."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from stagevar_runtime.engine import generate
from stagevar_runtime.families.base import Conditioning, ModelInfo, ScaleModel, ScaleSpec
from stagevar_runtime.features import FeatureStep
from stagevar_runtime.memory import peak_memory
from stagevar_runtime.plan import Plan, compile_plan
from stagevar_runtime.profile import FeatureOption, PlanStep
from stagevar_runtime.sampling import Sampling

from .arms import Option

FULL = "full"
COUNTED = ("qkv", "proj", "fc1")  # of the layers that features narrow: text is left out
Cell = tuple[int, int, str]  # scale, rows 1 or 2, option


@dataclass(frozen=True)
class Costs:
    """``ms[(scale, rows, option)]`` medians, ``spread_ms`` half ranges, ``decode_ms`` a batch."""

    ms: dict[Cell, float]
    spread_ms: dict[Cell, float]
    decode_ms: float
    batch: int
    repeats: int

    def dump(self) -> dict[str, Any]:
        """JSON-ready."""
        cells = [[*cell, ms, self.spread_ms[cell]] for cell, ms in self.ms.items()]
        rest = {"decode_ms": self.decode_ms, "batch": self.batch, "repeats": self.repeats}
        return {"cells": cells, **rest}

    @classmethod
    def parse(cls, data: Mapping[str, Any]) -> Costs:
        """The inverse of :meth:`dump`."""
        return cls(
            {(k, rows, option): ms for k, rows, option, ms, _ in data["cells"]},
            {(k, rows, option): spread for k, rows, option, _, spread in data["cells"]},
            data["decode_ms"],
            data["batch"],
            data["repeats"],
        )


def cost_plans(
    model: ScaleModel, sampling: Sampling, options: Mapping[str, Option]
) -> Iterator[tuple[int, str, Plan]]:
    """One plan for each (rows, option): the option at every scale that can have it.

    Measured directions take as long as random ones, which every scale has.
    """
    scales, info = model.scales(), model.info
    guided = len(compile_plan((), info, scales, sampling)[0].branches)
    for rows in range(guided, 0, -1):
        drop = PlanStep(scale=0, guidance="cond") if rows < guided else None
        yield rows, FULL, compile_plan([drop] if drop else [], info, scales, sampling)
        for name, option in options.items():
            steps = [drop] if drop else []
            if isinstance(option, dict):
                if rows == 2:
                    steps = [PlanStep(scale=k, null_keep=keep) for k, keep in option.items()]
                    yield rows, name, compile_plan(steps, info, scales, sampling)
                continue
            change: dict[str, Any] = {"tokens": option}
            if isinstance(option, FeatureOption):
                change = {"features": option.model_copy(update={"basis": "random"})}
            steps += [PlanStep(scale=s.index, **change) for s in scales[1:] if s.kind == "ar"]
            yield rows, name, compile_plan(steps, info, scales, sampling)


def measure_costs(
    model: ScaleModel,
    conditioning: Conditioning,
    sampling: Sampling,
    options: Mapping[str, Option],
    repeats: int = 3,
) -> Costs:
    """Time every cell, interleaved A B A B, after one warm-up round that is not counted.

    The dropped rows of a ``rows`` 1 plan are gone from scale 0, so its caches are the smaller ones.
    """
    times: dict[Cell, list[float]] = {}
    decode: list[float] = []
    plans = list(cost_plans(model, sampling, options))
    seeds = list(range(conditioning.batch))
    for turn in range(repeats + 1):
        for rows, name, plan in plans:
            made = generate(model, conditioning, plan, sampling, seeds)
            if turn == 0:
                continue
            decode.append(made.decode_ms)
            for step, ms in zip(plan, made.scale_ms, strict=True):
                if name == FULL or step.reduced or step.features or step.null_tokens:
                    times.setdefault((step.scale.index, rows, name), []).append(ms)
    return Costs(
        ms={cell: median(values) for cell, values in times.items()},
        spread_ms={cell: (max(values) - min(values)) / 2 for cell, values in times.items()},
        decode_ms=median(decode),
        batch=conditioning.batch,
        repeats=repeats,
    )


def block_flops(
    info: ModelInfo,
    rows: int,
    tokens: int,
    cached: int,
    hidden: float = 4.0,
    features: FeatureStep | None = None,
) -> float:
    """Multiply-add FLOPs (2 a product) of one block: projections, attention, feed-forward."""
    d = info.width
    products = d * d * (4 + 2 * hidden)
    if features is not None:
        outputs = [info.layers[name] for name in features.layers if name in COUNTED]
        products -= sum(d * out - features.rank * (d + out) for out in outputs)
    linear = 2 * tokens * products
    attention = 4 * tokens * (cached + tokens) * d
    return rows * (linear + attention)


def scale_flops(info: ModelInfo, plan: Plan) -> list[float]:
    """FLOPs of the transformer blocks at every scale, per image; 0 where skipped."""
    totals, cached = [0.0] * len(plan), dict.fromkeys(range(info.depth), 0)
    for k, step in enumerate(plan):
        for group in step.groups if step.run != "skip" else ():
            run = group.tokens.keep if group.tokens else step.scale.tokens
            rows = 1 if step.null_tokens else len(step.branches)
            for block in group.blocks:
                seen, features = cached[block], step.features
                totals[k] += block_flops(info, rows, run, seen, features=features)
                if step.null_tokens:
                    totals[k] += block_flops(info, 1, step.null_tokens, seen, features=features)
                cached[block] += run
    return totals


def plan_flops(info: ModelInfo, plan: Plan) -> float:
    """FLOPs of the transformer blocks of a plan, per image (text, head and decoder left out)."""
    return sum(scale_flops(info, plan))


def hardware(model: ScaleModel) -> dict[str, str | int | float | bool]:
    """What the measurements ran on, for the profile."""
    out: dict[str, str | int | float | bool] = {
        "device": str(model.device.type),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
    }
    if model.device.type == "cuda":
        out["name"] = torch.cuda.get_device_name(model.device)
    return out


def peak_memory_mb(model: ScaleModel) -> float:
    """Peak memory so far in MB: of the device, or of the process on a CPU."""
    return peak_memory(model.device)[0]


def time_generation(
    model: ScaleModel,
    conditioning: Conditioning,
    plans: Sequence[Plan],
    sampling: Sampling,
    repeats: int = 5,
) -> list[dict[str, Any]]:
    """Compare plans in one run, interleaved, first round not counted.

    Returns one dict a plan: ``loop_ms``, ``decode_ms``, ``total_ms`` medians and ``spread_ms`` of
    the total, per batch.
    """
    seeds = list(range(conditioning.batch))
    rows: list[list[tuple[float, float, float]]] = [[] for _ in plans]
    for turn in range(repeats + 1):
        for i, plan in enumerate(plans):
            begun = time.perf_counter()
            made = generate(model, conditioning, plan, sampling, seeds)
            total = 1000 * (time.perf_counter() - begun)
            if turn:
                rows[i].append((made.loop_ms, made.decode_ms, total))
    return [
        {
            "loop_ms": median(r[0] for r in runs),
            "decode_ms": median(r[1] for r in runs),
            "total_ms": median(r[2] for r in runs),
            "spread_ms": (max(r[2] for r in runs) - min(r[2] for r in runs)) / 2,
        }
        for runs in rows
    ]


def describe_scales(scales: Sequence[ScaleSpec]) -> str:
    """``7 scales, 155 tokens, last 8x8``."""
    total = sum(scale.tokens for scale in scales)
    return f"{len(scales)} scales, {total} tokens, last {scales[-1].height}x{scales[-1].width}"
