"""Interventions: what happens to the final image when one thing changes from one scale on.

A chunk of images is generated once by the exact path (and once per other guidance schedule). Before
every scale the state is forked, each intervention that starts there runs its own remaining scales,
and the exact run goes on. With one seed an image all interventions draw the same noise for the same
token, so a difference is caused by the option alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from stagevar_runtime.errors import ProfileError
from stagevar_runtime.kernels.quantised import SEVEN_BITS, Precision, weight_levels
from stagevar_runtime.loop.backward import storing
from stagevar_runtime.loop.engine import UNSEEN, Observer, advance, network_of, start, with_settings
from stagevar_runtime.loop.plan import EXACT, Plan, compile_plan, plan_for
from stagevar_runtime.model.protocol import ModelInfo, ScaleModel, ScaleSpec
from stagevar_runtime.model.sampling import Sampling
from stagevar_runtime.options.precision import precisions_of
from stagevar_runtime.profile import FeatureOption, PlanStep, TokenOption
from stagevar_runtime.profile.schema import Guidance

from ..datasets.inputs import Inputs

Scales = tuple[ScaleSpec, ...]
Part = dict[int, float]  # share of the tokens that null sees, by scale
Option = TokenOption | FeatureOption | Part | Precision

PUBLISHED = "published"
TOKEN_OPTIONS = (  # selector, restorer, keep ratios: one pair at easy ones as well
    ("deviation", "cache", (0.4,)),
    ("leverage", "lift", (0.85, 0.7)),
    ("update", "delta-cache", (0.4,)),
    ("pivot", "lift", (0.4,)),
)
GUIDED_SHARES = (0.35, 0.2, 0.1)  # of the last scale's tokens: as many at every late scale
FEATURE_SHARES = (0.5, 0.25)  # of the width: ranks of measured directions
RAMP_SHARES = (0.5, 0.625, 0.75)  # of the end of a ramp: constants that replace it
FEWER = 1.2  # times as many tokens as are guided: what a scale has where that saves time
COOL, COLD = 0.6, 0.3  # of the temperature, tried where guidance is dropped
LARGE = 0.06  # share of the tokens below which dropping guidance a scale earlier saves no time
SKIPPED = 3  # scales in a row at most


@dataclass(frozen=True)
class Intervention:
    """One intervention. ``scale`` is the first that differs from its schedule's trunk.

    ``schedule``: guidance of the scales that have it. ``variant``: how guidance is dropped
    (``cond``, ``cond@0.6``, ``delta``, ``null``). ``tokens`` and ``features``: names of options.
    ``part``: name of the number of tokens that are guided at every scale from ``scale`` on.
    ``precision``: what the products of every scale from ``scale`` on run in.
    ``skip``: nothing runs from ``scale`` on, or none of the scales before ``until``.
    """

    name: str
    scale: int
    schedule: str = PUBLISHED
    variant: str | None = None
    tokens: str | None = None
    skip: bool = False
    features: str | None = None
    until: int | None = None
    part: str | None = None
    precision: Precision | None = None

    @property
    def option(self) -> str | None:
        """What changes at ``scale`` alone, by name."""
        return self.tokens or self.features


@dataclass(frozen=True)
class SearchSpace:
    """What there is to choose from, by name."""

    schedules: dict[str, float | None]  # strength at every guided scale; None: as published
    variants: dict[str, tuple[Guidance, float | None]]  # and temperature, after the drop
    tokens: dict[str, TokenOption]
    features: dict[str, FeatureOption] = field(default_factory=dict)
    parts: dict[str, Part] = field(default_factory=dict)
    precision: Precision | None = None  # of products, from a scale on

    @property
    def options(self) -> dict[str, Option]:
        """What a scale can have one of."""
        bits: dict[str, Option] = {self.precision: self.precision} if self.precision else {}
        return {**self.tokens, **self.features, **self.parts, **bits}

    def option(self, name: str, scale: int) -> dict[str, Any]:
        """The option of this name as fields of a step."""
        if name in self.parts:
            return {"null_keep": self.parts[name][scale]}
        return (
            {"tokens": self.tokens[name]}
            if name in self.tokens
            else {"features": self.features[name]}
        )

    def drop(self, scale: int, count: int, variant: str, schedule: str) -> list[PlanStep]:
        """Steps that drop guidance from ``scale`` on; ``delta`` keeps the schedule's strength."""
        guidance, temperature = self.variants[variant]
        strength = self.schedules[schedule] if guidance == "delta" else None
        return [
            PlanStep(scale=k, guidance=guidance, guidance_scale=strength, temperature=temperature)
            for k in range(scale, count)
        ]

    def joint(self, variant: str) -> tuple[str, ...]:
        """The schedules a drop is tried under: all; ``null`` and the coldest as published alone,
        ``delta`` as published and at the greatest strength."""
        names = tuple(self.schedules)
        if variant == "delta":
            return names[:1] + names[1:][-1:]
        return names[:1] if variant in ("null", f"cond@{COLD:g}") else names

    def strengths(self, schedule: str, until: int) -> list[PlanStep]:
        """Steps that set the guidance of the scales before ``until``."""
        strength = self.schedules[schedule]
        if strength is None:
            return []
        return [PlanStep(scale=k, guidance_scale=strength) for k in range(until)]

    def steps(self, intervention: Intervention, count: int) -> list[PlanStep]:
        """The whole plan of an intervention on a model of ``count`` scales."""
        if intervention.skip:
            return [
                PlanStep(scale=k, run="skip")
                for k in range(intervention.scale, intervention.until or count)
            ]
        dropped = intervention.scale if intervention.variant else count
        steps = self.strengths(intervention.schedule, dropped)
        if intervention.variant:
            steps += self.drop(
                intervention.scale, count, intervention.variant, intervention.schedule
            )
        if intervention.part:
            steps += [
                PlanStep(scale=k, null_keep=keep)
                for k, keep in self.parts[intervention.part].items()
            ]
        if intervention.precision:
            steps = in_precision(steps, intervention.precision, intervention.scale, count)
        if option := intervention.option:
            step = PlanStep(scale=intervention.scale, **self.option(option, intervention.scale))
            steps = [s for s in steps if s.scale != intervention.scale] + [step]
        return sorted(steps, key=lambda step: step.scale)


def in_precision(
    steps: Iterable[PlanStep], kind: Precision, start: int, count: int
) -> list[PlanStep]:
    """The steps, with products in ``kind`` at every scale from ``start`` on that is run."""
    own = {step.scale: step for step in steps}
    for k in range(start, count):
        step = own.get(k, PlanStep(scale=k))
        if step.run != "skip":
            own[k] = step.model_copy(update={"precision": kind})
    return [own[k] for k in sorted(own)]


def fewest_bits(model: ScaleModel) -> Precision | None:
    """The 8-bit products that ``model`` gains by, or emulates; None if there are none.

    Weights of 7 bits are not offered: of three calibrations of the scenes checkpoint in seven
    minutes, the two with them in the race found slower plans than the one without.
    """
    if not model.info.layers:
        return None
    known = precisions_of(model)
    kind: Precision = "fp8" if model.device.type == "cuda" else "int8"
    if known.hindrance(kind):
        return None
    narrow = kind == "int8" and not known.emulate and weight_levels() == SEVEN_BITS
    return None if narrow else kind


def default_space(
    info: ModelInfo,
    sampling: Sampling,
    scales: Sequence[ScaleSpec] = (),
    precision: Precision | None = None,
) -> SearchSpace:
    """Candidates for a model: they scale with its own guidance, not with one model's figures.
    Guidance on part of the tokens is among them where the ``scales`` are given, products in fewer
    bits where the model gains by a ``precision`` (:func:`fewest_bits`).

    Constant schedules replace a published ramp (or strengthen a constant): guidance early is what
    pays for dropping it late. Null is measured because StageVAR keeps it.
    """
    guidance = sampling.guidance
    top = max(guidance) if isinstance(guidance, tuple) else guidance
    linear = info.guidance == "linear"
    strengths = (1.5 * top,) if linear else tuple(1 + share * top for share in RAMP_SHARES)
    guided = top != float(linear)  # off is 1, or a ramp to 0
    variants: dict[str, tuple[Guidance, float | None]] = {}
    if guided:
        variants = {"cond": ("cond", None)}
        variants |= {f"cond@{t:g}": ("cond", t * sampling.temperature) for t in (COOL, COLD)}
        if info.guides_logits:
            variants["delta"] = ("delta", None)
        if info.rows_independent and "null" in info.branches:
            variants["null"] = ("null", None)
    schedules: dict[str, float | None] = {PUBLISHED: None}
    if guided:
        schedules |= {f"constant {w:g}": w for w in strengths}
    options = [
        TokenOption(keep=keep, select=select, restore=restore, span="all")
        for select, restore, keeps in TOKEN_OPTIONS
        for keep in keeps
    ]
    tokens = {f"{o.select}+{o.restore} {o.keep:g}": o for o in options}
    ranks = [max(1, round(share * info.width)) for share in FEATURE_SHARES if info.layers]
    features = {f"pca {rank}": FeatureOption(rank=rank, basis="pca") for rank in ranks}
    parts: dict[str, Part] = {}
    if guided and "null" in variants and info.guides_logits:
        whole = {f"guided {share:g}": _part(share, sampling, scales) for share in GUIDED_SHARES}
        parts = {name: part for name, part in whole.items() if part}
    return SearchSpace(schedules, variants, tokens, features, parts, precision)


def _part(share: float, sampling: Sampling, scales: Sequence[ScaleSpec]) -> Part:
    """At which scales that share of the last one's tokens is few, and what part it is there."""
    guided = scales[: sampling.guidance_off_from]
    count = share * scales[-1].tokens if scales else 0
    return {
        scale.index: round(count / scale.tokens, 4)
        for before, scale in pairwise(guided)
        if before.is_map and scale.is_map and scale.kind == "ar" and scale.tokens > FEWER * count
    }


def possible(
    space: SearchSpace,
    interventions: Iterable[Intervention],
    info: ModelInfo,
    sampling: Sampling,
    scales: Scales,
) -> list[Intervention]:
    """The interventions whose plan this family can run (some refuse a branch, or drop guidance
    anyway)."""

    def runs(intervention: Intervention) -> bool:
        try:
            compile_plan(space.steps(intervention, len(scales)), info, scales, sampling)
        except ProfileError:
            return False
        return True

    return [intervention for intervention in interventions if runs(intervention)]


def default_interventions(space: SearchSpace, scales: Sequence[ScaleSpec]) -> list[Intervention]:
    """Every single intervention worth running on this schedule of scales.

    Guidance is dropped at every scale with at least 2 % of the tokens still to come, keeping the
    cond branch; in other ways or under another schedule only where the scale itself holds a
    sixteenth of them. Products in fewer bits begin at every such scale. Guidance on as many tokens
    at every late scale is tried once for each number. Tokens are reduced and features narrowed at
    the scales that hold a seventh or more; skips leave out one to three last scales, or one to
    three others in a row that hold an eighth each (the scale after them then draws what they would
    have drawn, too).
    """
    count = len(scales)
    total = sum(scale.tokens for scale in scales)
    left = [sum(s.tokens for s in scales[k:]) / total for k in range(count)]
    interventions = []
    for name in space.schedules:
        if name != PUBLISHED:
            interventions.append(Intervention(name, 0, name))
    for schedule in space.schedules:
        for k in range(1, count):
            for variant in space.variants:
                plain = variant == "cond" and schedule == PUBLISHED
                if left[k] < 0.02 or not (plain or scales[k].tokens >= LARGE * total):
                    continue
                if schedule not in space.joint(variant):
                    continue
                if variant == "delta" and not (scales[k - 1].is_map and scales[k].kind == "ar"):
                    continue
                interventions.append(
                    Intervention(f"{variant} from {k}, {schedule}", k, schedule, variant)
                )
    if space.precision:
        interventions += [
            Intervention(f"{space.precision} from {k}", k, precision=space.precision)
            for k in range(count)
            if left[k] >= 0.02
        ]
    large = [
        k for k in range(1, count) if scales[k].tokens >= 0.15 * total and scales[k].kind == "ar"
    ]
    interventions += [Intervention(f"{t} at {k}", k, tokens=t) for k in large for t in space.tokens]
    interventions += [
        Intervention(f"{f} at {k}", k, features=f) for k in large for f in space.features
    ]
    interventions += [
        Intervention(f"{name} from {min(part)}", min(part), part=name)
        for name, part in space.parts.items()
    ]
    interventions += [
        Intervention(f"skip from {k}", k, skip=True) for k in range(max(1, count - SKIPPED), count)
    ]
    sizable = [scale.tokens >= total / 8 for scale in scales]
    interventions += [
        Intervention(f"skip {start} to {stop - 1}", start, skip=True, until=stop)
        for start in range(1, count)
        for stop in range(start + 1, min(start + SKIPPED, count - 1) + 1)
        if all(sizable[start:stop])
    ]
    return interventions


Visit = Callable[[str, Tensor], None]


@torch.inference_mode()
@with_settings
def run_chunk(
    model: ScaleModel,
    inputs: Inputs,
    space: SearchSpace,
    interventions: Iterable[Intervention],
    sampling: Sampling,
    visit: Visit,
    observer: Observer = UNSEEN,
) -> None:
    """Generate a chunk by the exact path and by every intervention; ``visit(name, images)`` each
    result.

    The exact images come first, under the name ``exact``; the observer sees that run alone.
    """
    interventions = list(interventions)
    scales = model.scales()
    conditioning = inputs.condition(model)
    for schedule in dict.fromkeys(
        [PUBLISHED, *(intervention.schedule for intervention in interventions)]
    ):
        own = [intervention for intervention in interventions if intervention.schedule == schedule]
        steps = space.strengths(schedule, len(scales))
        plain = plan_for(model, steps, sampling)
        plans = {
            intervention.name: plan_for(model, space.steps(intervention, len(scales)), sampling)
            for intervention in own
        }
        trunk = _storing(plain, plans.values())
        state = start(model, conditioning, trunk, list(inputs.seeds))
        network = network_of(model, state)
        results: dict[str, Tensor] = {}
        for step in trunk:
            k = step.scale.index
            for intervention in own:
                if intervention.scale == k and plans[intervention.name][k:] != plain[k:]:
                    twin = state.fork()
                    for changed in plans[intervention.name][k:]:
                        advance(model, twin, changed, network=network)
                    results[intervention.name] = model.decode(twin)
            seen = observer if schedule == PUBLISHED else UNSEEN
            advance(model, state, step, observer=seen, network=network)
        name = EXACT if schedule == PUBLISHED else schedule
        visit(name, model.decode(state))
        for arm_name, images in results.items():
            visit(arm_name, images)


def _storing(trunk: Plan, plans: Iterable[Plan]) -> Plan:
    """The trunk, keeping the hidden states and differences that any intervention will look back
    at."""
    needed: list[set[int]] = [set(step.store) for step in trunk]
    difference = [step.keep_difference for step in trunk]
    for plan in plans:
        for k, step in enumerate(plan):
            needed[k] |= set(step.store)
            difference[k] |= step.keep_difference
    return tuple(
        storing(replace(step, keep_difference=keep), store)
        for step, store, keep in zip(trunk, needed, difference, strict=True)
    )
