"""Profile + model + sampling → a tuple of frozen :class:`ScaleStep`. Decided before the loop.

What is asked is resolved scale by scale here and in ``branches.py``; ``backward.py`` then tells
every scale what later ones need of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..errors import ProfileError
from ..model.protocol import ModelInfo, ScaleModel, ScaleSpec
from ..model.sampling import Sampling
from ..options.groups import token_groups
from ..options.guidance import Weights, plain_weights, published_weights
from ..options.layers import layer_steps
from ..profile.schema import PlanStep
from .backward import check_runs, with_capacity, with_difference, with_store, without_unused_null
from .branches import Branches, Rows
from .steps import Plan, ScaleStep

__all__ = ["EXACT", "Plan", "ScaleStep", "compile_plan", "plan_for"]

EXACT = "exact"
"""What the published generation is called among plans."""


def compile_plan(
    steps: Sequence[PlanStep],
    info: ModelInfo,
    scales: tuple[ScaleSpec, ...],
    sampling: Sampling,
) -> Plan:
    """Resolve what a profile asks into one frozen step a scale.

    Args:
        steps: what differs from the exact path, scales ascending. Dropped guidance stays dropped.
        info: kept tokens are rounded up to a multiple of its ``tile``.

    Raises:
        ProfileError: a scale the model lacks, guidance that would have to return, a branch the
            family refuses, a restorer without a previous scale, a skip of every scale, a scale
            twice, features or precision of a family that has none, features that make no layer
            cheaper.
    """
    by_scale = {step.scale: step for step in steps}
    if len(by_scale) < len(steps):
        raise ProfileError(f"the plan names a scale twice: {[step.scale for step in steps]}")
    beyond = [k for k in by_scale if k >= len(scales)]
    if beyond:
        raise ProfileError(
            f"the plan names scale {beyond[0]}, the model has {len(scales)} (0 to "
            f"{len(scales) - 1}). Recalibrate, or load the size the profile was made for"
        )
    weights = published_weights(info, sampling.guidance, len(scales))
    branches = Branches(info, sampling)
    plan: list[ScaleStep] = []
    for scale, published in zip(scales, weights, strict=True):
        asked = by_scale.get(scale.index, PlanStep(scale=scale.index))
        rows = branches.at(asked, scale)
        step = _step(asked, rows, scale, info, published, sampling)
        plan.append(replace(step, asked=by_scale.get(scale.index)))
    check_runs(plan)
    return tuple(with_capacity(with_store(without_unused_null(with_difference(plan)))))


def plan_for(
    model: ScaleModel,
    steps: Sequence[PlanStep] = (),
    sampling: Sampling | None = None,
    scales: tuple[ScaleSpec, ...] | None = None,
) -> Plan:
    """What ``model`` runs for these steps: without any, the published generation, every scale full.

    Args:
        sampling: None is the family's published default; ``scales``: None is the default schedule.

    Raises:
        ProfileError: as :func:`compile_plan`.
    """
    sampling = sampling or model.default_sampling
    return compile_plan(steps, model.info, scales or model.scales(), sampling)


def _step(
    asked: PlanStep,
    rows: Rows,
    scale: ScaleSpec,
    info: ModelInfo,
    published: Weights,
    sampling: Sampling,
) -> ScaleStep:
    if asked.guidance_scale is not None and not rows.guided:
        raise ProfileError(
            f"scale {scale.index} sets guidance_scale {asked.guidance_scale} where guidance is "
            "dropped"
        )
    cooler = sampling.temperature_off if rows.published_off else None
    temperatures = (asked.temperature, cooler, sampling.temperature)
    weights = published if asked.guidance_scale is None else plain_weights(asked.guidance_scale)
    return ScaleStep(
        scale=scale,
        run=asked.run,
        branches=rows.branches,
        weights=weights if rows.guided else None,
        delta=rows.mode == "delta",
        null_tokens=rows.null_tokens,
        temperature=next(t for t in temperatures if t is not None),
        sampling=sampling.at(scale.index, rows.guided),
        groups=token_groups(asked.tokens, info, scale),
        layers=layer_steps(asked, info, scale),
    )
