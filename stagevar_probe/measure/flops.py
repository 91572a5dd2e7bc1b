"""Floating-point operations of blocks, scales and plans."""

from __future__ import annotations

from stagevar_runtime.loop.plan import Plan
from stagevar_runtime.model.protocol import ModelInfo
from stagevar_runtime.options.low_rank import LowRankStep

from .costs import COUNTED


def block_flops(
    info: ModelInfo,
    rows: int,
    tokens: int,
    cached: int,
    hidden: float = 4.0,
    features: LowRankStep | None = None,
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
                seen, features = cached[block], step.low_rank
                totals[k] += block_flops(info, rows, run, seen, features=features)
                if step.null_tokens:
                    totals[k] += block_flops(info, 1, step.null_tokens, seen, features=features)
                cached[block] += run
    return totals


def plan_flops(info: ModelInfo, plan: Plan) -> float:
    """FLOPs of the transformer blocks of a plan, per image (text, head and decoder left out)."""
    return sum(scale_flops(info, plan))
