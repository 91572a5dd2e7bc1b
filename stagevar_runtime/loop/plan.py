"""Profile + model + sampling → a tuple of frozen :class:`ScaleStep`. Decided before the loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from ..errors import ProfileError
from ..model.protocol import Branch, ModelInfo, ScaleModel, ScaleSpec
from ..model.sampling import Sampling
from ..options.guidance import Weights, plain_weights, published_weights
from ..options.low_rank import FeatureStep
from ..options.restorers import RESTORERS
from ..options.selectors import SELECTORS
from ..options.tokens import BlockSide, kept_tokens
from ..profile.schema import FeatureOption, Guidance, PlanStep, TokenOption


@dataclass(frozen=True)
class TokenStep:
    """Run ``keep`` tokens only."""

    keep: int
    select: str
    restore: str

    @property
    def needs(self) -> frozenset[BlockSide]:
        """What the previous scale must have kept."""
        return frozenset(SELECTORS[self.select].needs + RESTORERS[self.restore].needs)


@dataclass(frozen=True)
class GroupStep:
    """Consecutive blocks that run together, on all tokens or on some."""

    blocks: range
    tokens: TokenStep | None = None


@dataclass(frozen=True)
class ScaleStep:
    """What happens at one scale.

    ``branches``: the rows that run (``cond`` and ``null``, or one). ``weights``: how they combine,
    None with one branch alone. ``delta``: the cond branch runs and an earlier scale's cond - null
    stands in for null; ``keep_difference``: this is that earlier scale. ``null_tokens``: null runs
    on that many tokens, here and from here on (0: on all). ``store``: block indices
    whose input (depth: the last output) the next reduced scale needs. ``capacity``: cached tokens
    a block needs until the batch shrinks.
    ``features``: which layers see part of what enters them. ``smooth``: whether smoothed sampling
    may apply.
    """

    scale: ScaleSpec
    run: str = "full"
    branches: tuple[Branch, ...] = ("cond", "null")
    weights: Weights | None = None
    delta: bool = False
    keep_difference: bool = False
    null_tokens: int = 0
    temperature: float = 1.0
    groups: tuple[GroupStep, ...] = ()
    features: FeatureStep | None = None
    store: tuple[int, ...] = ()
    capacity: int = 0
    smooth: bool = True
    asked: PlanStep | None = None

    @property
    def reduced(self) -> bool:
        """Whether any group runs on some tokens only."""
        return any(group.tokens for group in self.groups)


Plan = tuple[ScaleStep, ...]
ROWS: dict[Guidance, Branch] = {"cond": "cond", "null": "null", "delta": "cond"}
"""Which branch is left where guidance is not full."""


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
            twice, features of a family that has none or that make no layer cheaper.
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
    plan: list[ScaleStep] = []
    mode: Guidance = "full"
    left: Guidance = "full"
    partly = False  # whether null is still there, having seen part of the tokens
    for scale, published in zip(scales, weights, strict=True):
        asked = by_scale.get(scale.index)
        if partly and asked and asked.null_keep is not None:
            mode = left = "full"
        mode = _mode(asked, mode, info, scale)
        off = _published_off(asked, sampling, scale)
        before, left = left, "cond" if off and mode in ("full", "delta") else mode
        _check_left(before, left, info, scale)
        step = _step(asked, left, off, info, scale, published, sampling, partly)
        plan.append(step)
        partly = bool(step.null_tokens) or (partly and step.run == "skip")
        if step.null_tokens:
            mode = left = "cond"
    _check_runs(plan)
    whole = _without_unused_null(_with_difference(plan))
    return tuple(_with_capacity(_with_store(whole)))


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


def _mode(asked: PlanStep | None, current: Guidance, info: ModelInfo, scale: ScaleSpec) -> Guidance:
    """How this scale is guided."""
    wanted = asked.guidance if asked else None
    if wanted is None:
        return current
    if wanted == "full":
        return wanted
    branch = ROWS[wanted]
    if branch not in info.branches or (branch == "null" and not info.rows_independent):
        raise ProfileError(
            f"scale {scale.index} asks for the {branch!r} branch alone, which the "
            f"{info.family} family cannot run without the other. Use 'cond'"
        )
    if wanted == "delta" and not info.guides_logits:
        raise ProfileError(
            f"scale {scale.index} asks for 'delta' guidance, but this {info.family} model guides "
            "hidden states, so its logits hold no difference. Use 'cond'"
        )
    return wanted


def _published_off(asked: PlanStep | None, sampling: Sampling, scale: ScaleSpec) -> bool:
    """Whether the publisher runs the cond branch alone here, and no strength was asked for."""
    if sampling.guidance_off_from is None or (asked and asked.guidance_scale is not None):
        return False
    return scale.index >= sampling.guidance_off_from


def _check_left(before: Guidance, left: Guidance, info: ModelInfo, scale: ScaleSpec) -> None:
    """With a cache, rows that the scale before dropped cannot return."""
    if before == "full" or not info.causal:
        return
    if left == "full":
        raise ProfileError(
            f"scale {scale.index} asks for guidance again after it was dropped: the "
            f"{info.family} family caches keys and values, so dropped rows cannot return"
        )
    if ROWS[left] != ROWS[before]:
        raise ProfileError(
            f"scale {scale.index} asks for the {ROWS[left]!r} branch, but only "
            f"{ROWS[before]!r} is left"
        )


def _null_tokens(
    asked: PlanStep,
    mode: Guidance,
    off: bool,
    info: ModelInfo,
    scale: ScaleSpec,
    partly: bool,
) -> int:
    """On how many tokens the null branch runs; 0 where that is all of them, as at every scale
    before."""
    assert asked.null_keep is not None
    where = f"scale {scale.index} guides part of its tokens"
    alone = "null" in info.branches and info.rows_independent and info.guides_logits
    if not alone:
        raise ProfileError(
            f"{where}, which the {info.family} family cannot do: there the null branch does not "
            "run alone on some tokens. Use 'cond' or 'delta'"
        )
    if mode != "full" or off:
        raise ProfileError(f"{where}, but guidance is dropped there")
    if asked.tokens is not None or scale.kind != "ar" or not scale.is_map:
        raise ProfileError(f"{where}, which needs a plain token map that runs in full")
    keep = kept_tokens(asked.null_keep, scale.tokens, info.tile)
    return keep if keep < scale.tokens or partly else 0


def _step(
    asked: PlanStep | None,
    mode: Guidance,
    off: bool,
    info: ModelInfo,
    scale: ScaleSpec,
    published: Weights,
    sampling: Sampling,
    partly: bool,
) -> ScaleStep:
    guided = mode in ("full", "delta")
    strength = asked.guidance_scale if asked else None
    if strength is not None and not guided:
        raise ProfileError(
            f"scale {scale.index} sets guidance_scale {strength} where guidance is dropped"
        )
    temperature = asked.temperature if asked else None
    if temperature is None and off:
        temperature = sampling.temperature_off
    weights = published if strength is None else plain_weights(strength)
    return ScaleStep(
        scale=scale,
        run=asked.run if asked else "full",
        branches=("cond", "null") if mode == "full" else (ROWS[mode],),
        weights=weights if guided else None,
        delta=mode == "delta",
        null_tokens=_null_tokens(asked, mode, off, info, scale, partly)
        if asked and asked.null_keep is not None
        else 0,
        temperature=sampling.temperature if temperature is None else temperature,
        groups=_groups(asked.tokens if asked else None, info, scale),
        features=_features(asked.features, info, scale) if asked and asked.features else None,
        smooth=guided,
        asked=asked,
    )


def _groups(option: TokenOption | None, info: ModelInfo, scale: ScaleSpec) -> tuple[GroupStep, ...]:
    if option is None:
        return tuple(GroupStep(blocks) for blocks in info.groups)
    if scale.kind != "ar" or not scale.is_map:
        raise ProfileError(
            f"scale {scale.index} is no plain token map: its tokens cannot be reduced"
        )
    spans: tuple[range, ...] = {
        "all": (range(info.depth),),
        "group": info.groups,
        "block": tuple(range(i, i + 1) for i in range(info.depth)),
    }[option.span]
    ratios = option.keep if isinstance(option.keep, tuple) else (option.keep,) * len(spans)
    if len(ratios) != len(spans):
        raise ProfileError(
            f"scale {scale.index} gives {len(ratios)} keep ratios, "
            f"the model has {len(spans)} {option.span}s"
        )
    groups = []
    for blocks, ratio in zip(spans, ratios, strict=True):
        keep = kept_tokens(ratio, scale.tokens, info.tile)
        tokens = TokenStep(keep, option.select, option.restore) if keep < scale.tokens else None
        groups.append(GroupStep(blocks, tokens))
    return tuple(groups) if any(g.tokens for g in groups) else _groups(None, info, scale)


def _features(option: FeatureOption, info: ModelInfo, scale: ScaleSpec) -> FeatureStep:
    """The layers that are named, or else those that the rank makes cheaper."""
    where = f"scale {scale.index} asks for features of rank {option.rank}"
    if not info.layers:
        raise ProfileError(
            f"{where}, but the {info.family} family cannot narrow its layers. Reduce its tokens"
        )
    if option.rank > info.width:
        raise ProfileError(f"{where}, expected at most the width of the model, {info.width}")
    unknown = [name for name in option.layers or () if name not in info.layers]
    if unknown:
        raise ProfileError(
            f"{where} in layer {unknown[0]!r}, expected one of {', '.join(info.layers)}"
        )
    cheaper = {
        name: info.width * out / (info.width + out) for name, out in info.layers.items()
    }  # from this rank on r (d + d_out) products are no fewer than d d_out
    chosen = option.layers or tuple(n for n, rank in cheaper.items() if option.rank < rank)
    if not chosen:
        raise ProfileError(
            f"{where}, which makes no layer cheaper, expected one below "
            f"{max(cheaper.values()):.0f}, or the layers by name"
        )
    return FeatureStep(option.rank, option.basis, option.seed, chosen)


def _check_runs(plan: Sequence[ScaleStep]) -> None:
    run = [step for step in plan if step.run != "skip"]
    if not run:
        raise ProfileError("the plan skips every scale: nothing would be drawn")
    for before, step in zip([None, *run[:-1]], run, strict=True):
        if not any(g.tokens and g.tokens.needs for g in step.groups):
            continue
        where = f"scale {step.scale.index} selects or restores from a cache, but"
        if before is None:
            raise ProfileError(f"{where} no scale runs before it")
        if not before.scale.is_map:
            raise ProfileError(f"{where} scale {before.scale.index} before it is no token map")
        if not set(step.branches) <= set(before.branches):
            raise ProfileError(f"{where} the branch that returns was not run before it")


def _with_difference(plan: Sequence[ScaleStep]) -> list[ScaleStep]:
    """Tell the last guided scale before each that looks back at it to keep its difference."""
    out: list[ScaleStep] = []
    source: int | None = None
    for step in plan:
        if step.delta and step.weights and step.weights[1] == 0:
            step = replace(step, delta=False, weights=None)  # a strength of 1 is cond alone
        elif step.null_tokens and step.weights and step.weights[1] == 0:
            if not any(later.null_tokens for later in plan[len(out) + 1 :]):
                step = replace(step, null_tokens=0)
        if step.run != "skip" and (step.delta or step.null_tokens):
            if source is None or not out[source].scale.is_map:
                why = "is no token map" if source is not None else "is none"
                what = "'delta' guidance" if step.delta else "guidance on part of its tokens"
                raise ProfileError(
                    f"scale {step.scale.index} asks for {what}, which needs a guided "
                    f"scale before it, but there {why}. Drop guidance later, or use 'cond'"
                )
            out[source] = replace(out[source], keep_difference=True)
        elif step.run != "skip" and len(step.branches) == 2:
            source = len(out)
        out.append(step)
    return out


def _without_unused_null(plan: Sequence[ScaleStep]) -> list[ScaleStep]:
    """Drop the null branch from the first scale from which its weight is 0 for good: exact."""
    needed = [
        k
        for k, s in enumerate(plan)
        if len(s.branches) == 2
        and s.run != "skip"
        and (s.weights != (1.0, 0.0) or s.keep_difference)
    ]
    alone = [k for k, s in enumerate(plan) if s.branches == ("null",)]
    last = max(needed + alone[:1], default=-1)
    return [
        step
        if k <= last or len(step.branches) == 1
        else replace(step, branches=("cond",), weights=None)
        for k, step in enumerate(plan)
    ]


def _with_store(plan: Sequence[ScaleStep]) -> list[ScaleStep]:
    """Tell every scale which hidden states the next running scale will look at."""
    out: list[ScaleStep] = []
    needed: set[int] = set()
    for step in reversed(plan):
        if step.run == "skip":
            out.append(step)
            continue
        out.append(storing(step, needed))
        needed = set()
        for group in step.groups:
            needs = group.tokens.needs if group.tokens else ()
            needed |= {group.blocks.stop} if "after" in needs else set()
            needed |= {group.blocks.start} if "before" in needs else set()
    return out[::-1]


def storing(step: ScaleStep, boundaries: set[int]) -> ScaleStep:
    """The step, keeping the hidden states at these block boundaries for the next scale.

    Groups that run in full are cut there, which changes nothing else.

    Raises:
        ProfileError: a boundary lies inside blocks that run on some tokens only.
    """
    groups: list[GroupStep] = []
    for group in step.groups:
        inside = [b for b in sorted(boundaries) if b in group.blocks and b != group.blocks.start]
        if inside and group.tokens:
            raise ProfileError(
                f"the scale after {step.scale.index} needs what entered block {inside[0]} at scale "
                f"{step.scale.index}, which reduces blocks {group.blocks.start} to "
                f"{group.blocks.stop - 1} at once: give both the same span"
            )
        edges = [group.blocks.start, *inside, group.blocks.stop]
        groups += [GroupStep(range(a, b), group.tokens) for a, b in pairwise(edges)]
    return replace(step, groups=tuple(groups), store=tuple(sorted(boundaries)))


def _with_capacity(plan: Sequence[ScaleStep]) -> list[ScaleStep]:
    """Cached tokens by the end of each run of scales with the same rows, so buffers grow once."""
    totals, total = [], 0
    for step in plan:
        if step.run != "skip":
            total += max(g.tokens.keep if g.tokens else step.scale.tokens for g in step.groups)
        totals.append(total)
    last = {len(step.branches): total for step, total in zip(plan, totals, strict=True)}
    return [replace(step, capacity=last[len(step.branches)]) for step in plan]
