"""What every option costs on this device: measured milliseconds, FLOPs, memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from stagevar_runtime.loop.engine import generate
from stagevar_runtime.loop.plan import Plan, plan_for
from stagevar_runtime.model.protocol import Conditioning, ScaleModel, ScaleSpec
from stagevar_runtime.model.sampling import Sampling
from stagevar_runtime.profile import FeatureOption, PlanStep

from .interventions import Option, in_precision

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

    @property
    def rows(self) -> int:
        """Rows of a scale before guidance is dropped."""
        return max(rows for _, rows, _ in self.ms)

    @property
    def exact_ms(self) -> float:
        """The loop of the exact path, a batch."""
        return sum(
            ms for (_, rows, option), ms in self.ms.items() if (rows, option) == (self.rows, FULL)
        )

    def dump(self) -> dict[str, Any]:
        """JSON-ready."""
        cells = [[*cell, ms, self.spread_ms[cell]] for cell, ms in self.ms.items()]
        rest = {"decode_ms": self.decode_ms, "batch": self.batch, "repeats": self.repeats}
        return {"ms": cells, **rest}

    @classmethod
    def parse(cls, data: Mapping[str, Any]) -> Costs:
        """The inverse of :meth:`dump`."""
        return cls(
            {(k, rows, option): ms for k, rows, option, ms, _ in data["ms"]},
            {(k, rows, option): spread for k, rows, option, _, spread in data["ms"]},
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
    scales = model.scales()
    guided = len(plan_for(model, (), sampling)[0].branches)
    for rows in range(guided, 0, -1):
        drop = PlanStep(scale=0, guidance="cond") if rows < guided else None
        yield rows, FULL, plan_for(model, [drop] if drop else [], sampling)
        for name, option in options.items():
            steps = [drop] if drop else []
            if isinstance(option, dict):
                if rows == 2:
                    steps = [PlanStep(scale=k, null_keep=keep) for k, keep in option.items()]
                    yield rows, name, plan_for(model, steps, sampling)
                continue
            change: dict[str, Any] = {"tokens": option}
            if isinstance(option, str):
                steps = in_precision(steps, option, 0, len(scales))
                yield rows, name, plan_for(model, steps, sampling)
                continue
            if isinstance(option, FeatureOption):
                change = {"features": option.model_copy(update={"basis": "random"})}
            steps += [PlanStep(scale=s.index, **change) for s in scales[1:] if s.kind == "ar"]
            yield rows, name, plan_for(model, steps, sampling)


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
            made = generate(model, conditioning, plan, seed=seeds)
            if turn == 0:
                continue
            decode.append(made.decode_ms)
            for step, ms in zip(plan, made.scale_ms, strict=True):
                if name == FULL or step.reduced or step.layers or step.null_tokens:
                    times.setdefault((step.scale.index, rows, name), []).append(ms)
    return Costs(
        ms={cell: median(values) for cell, values in times.items()},
        spread_ms={cell: (max(values) - min(values)) / 2 for cell, values in times.items()},
        decode_ms=median(decode),
        batch=conditioning.batch,
        repeats=repeats,
    )


def describe_scales(scales: Sequence[ScaleSpec]) -> str:
    """``7 scales, 155 tokens, last 8x8``."""
    total = sum(scale.tokens for scale in scales)
    return f"{len(scales)} scales, {total} tokens, last {scales[-1].height}x{scales[-1].width}"
