"""Who takes part in a comparison: presets, grids, profile plans, and the exact path retuned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from stagevar_runtime.errors import ProfileError
from stagevar_runtime.loop.plan import Plan
from stagevar_runtime.model.protocol import ModelInfo, ScaleSpec
from stagevar_runtime.model.sampling import Sampling
from stagevar_runtime.options.restorers import RESTORERS
from stagevar_runtime.options.selectors import SELECTORS
from stagevar_runtime.profile import PlanStep, Profile
from stagevar_runtime.profile.presets import PRESETS, Ranks, preset

from ..measure.interventions import COOL, SearchSpace, default_space
from ..validate.rows import EXACT, Row, Rows

BRANCHES = ("cond", "null", "delta")
STRENGTHS = (0.5, 1.5, 2.0)  # of the published guidance, on the exact path
LATE_DROP = 3  # the scales whose guidance the question about branches drops


@dataclass(frozen=True)
class Grid:
    """Options to try at the last scale and at the last two: keep ratios and span of tokens, ranks
    of features as shares of the width."""

    keep: tuple[float, ...] = (0.5, 0.25)
    span: str = "group"
    selectors: tuple[str, ...] = tuple(SELECTORS)
    restorers: tuple[str, ...] = tuple(RESTORERS)
    ranks: tuple[float, ...] = (0.5, 0.25)

    def pairs(self) -> list[tuple[str, str]]:
        """Selector and restorer; projected rows have no tokens of their own to restore from."""
        return [
            (select, restore)
            for select in self.selectors
            for restore in self.restorers
            if select != "projection" or restore == "cache"
        ]


Draft = tuple[str, str, list[dict[str, Any]], dict[str, Any]]  # name, kind, steps, facts


def assemble(
    info: ModelInfo,
    scales: tuple[ScaleSpec, ...],
    sampling: Sampling,
    profile: Profile | None,
    ranks: Ranks | None,
    grid: Grid | None,
) -> Rows:
    """Every row of a comparison, the exact path first. ``grid`` None leaves the grid out."""
    entries = [Row(EXACT, EXACT)]
    space = default_space(info, sampling)
    entries += _retuned(space, sampling, info, len(scales))
    named, left_out = presets_and_plans(info, scales, profile, ranks)
    entries += named
    drafts = [*_drops(space, sampling, len(scales)), *_skips(len(scales))]
    if grid is not None:
        drafts += [*_tokens(scales, grid), *_joint(space, scales, grid)]
        drafts += _features(info, scales, grid) if info.layers else []
    for name, kind, steps, facts in drafts:
        try:
            made = tuple(PlanStep.model_validate(step) for step in steps)
        except ValidationError as error:
            left_out[name] = str(error.errors()[0]["msg"])
            continue
        entries.append(Row(name, kind, made, facts=facts))
    return lineup(entries, left_out, info, scales, sampling)


def presets_and_plans(
    info: ModelInfo, scales: tuple[ScaleSpec, ...], profile: Profile | None, ranks: Ranks | None
) -> tuple[list[Row], dict[str, str]]:
    """Every preset and every plan of a profile; the presets that do not fit, with the reason."""
    entries, left_out = [], {}
    for name in PRESETS:
        try:
            entries.append(Row(name, "preset", tuple(preset(name, info, scales, ranks))))
        except ProfileError as error:
            left_out[name] = str(error)
    if profile is not None:
        entries += [
            Row(f"profile: {name}", "plan", tuple(plan.steps))
            for name, plan in profile.plans.items()
        ]
    return entries, left_out


def lineup(
    entries: Sequence[Row],
    left_out: Mapping[str, str],
    info: ModelInfo,
    scales: tuple[ScaleSpec, ...],
    sampling: Sampling,
) -> Rows:
    """Compile entries; those the model cannot run join ``left_out``, equal plans run once."""
    left_out = dict(left_out)
    plans: dict[str, Plan] = {}
    same: dict[str, str] = {}
    known: dict[Plan, str] = {}
    kept = []
    for entry in entries:
        try:
            plan = entry.compile(info, scales, sampling)
        except ProfileError as error:
            left_out[entry.name] = str(error)
            continue
        kept.append(entry)
        first = known.setdefault(tuple(replace(step, asked=None) for step in plan), entry.name)
        if first == entry.name:
            plans[entry.name] = plan
        else:
            same[entry.name] = first
    return Rows(tuple(kept), plans, same, left_out)


def _strengths(space: SearchSpace) -> dict[str, float]:
    return {name: w for name, w in space.schedules.items() if w is not None}


def _retuned(space: SearchSpace, sampling: Sampling, info: ModelInfo, count: int) -> list[Row]:
    """The exact path at other guidance: better guidance must not pass for a method's gain."""
    if not space.variants:
        return []
    base = sampling.guidance
    out = []
    for factor in STRENGTHS:
        one = (
            0.0 if info.guidance.startswith("ramp") else 1.0
        )  # the strength that means no guidance

        def scaled(g: float, factor: float = factor, one: float = one) -> float:
            return one + factor * (g - one)

        value = tuple(map(scaled, base)) if isinstance(base, tuple) else scaled(base)
        shown = f"{value:g}" if isinstance(value, float) else f"x {factor:g}"
        out.append(Row(f"exact, guidance {shown}", "guidance", guidance=value))
    for name, strength in _strengths(space).items():
        steps = tuple(PlanStep(scale=k, guidance_scale=strength) for k in range(count))
        out.append(Row(f"exact, {name}", "guidance", steps, facts={"schedule": name}))
    return out


def _drops(space: SearchSpace, sampling: Sampling, count: int) -> Iterator[Draft]:
    """Guidance dropped from the last three scales on: branch, early guidance, late temperature."""
    if not space.variants:
        return
    start = max(1, count - LATE_DROP)
    for branch in BRANCHES:
        for schedule, strength in space.schedules.items():
            for cool in (False, True):
                steps: list[dict[str, Any]] = []
                if strength is not None:
                    steps += [{"scale": k, "guidance_scale": strength} for k in range(start)]
                temperature = COOL * sampling.temperature if cool else None
                late: dict[str, Any] = {"guidance": branch, "temperature": temperature}
                if branch == "delta":
                    late["guidance_scale"] = strength
                steps += [{"scale": k} | late for k in range(start, count)]
                name = f"{branch} from {start}"
                name += f", {schedule}" if strength is not None else ""
                name += f", temperature x {COOL:g}" if cool else ""
                facts = {"branch": branch, "scale": start, "schedule": schedule, "cool": cool}
                yield name, "drop", steps, facts


def _skips(count: int) -> Iterator[Draft]:
    for late in (1, 2):
        if late < count:
            steps = [{"scale": k, "run": "skip"} for k in range(count - late, count)]
            yield f"skip the last {late}", "skip", steps, {"late": late}


def late_scales(scales: Sequence[ScaleSpec]) -> list[int]:
    """The last two scales whose tokens can be reduced, ascending."""
    maps = [s.index for s in scales[1:] if s.kind == "ar" and s.tokens == s.height * s.width]
    return maps[-2:]


def _token_steps(grid: Grid, at: Sequence[int], keep: float, select: str, restore: str) -> Any:
    option = {"keep": keep, "select": select, "restore": restore, "span": grid.span}
    return [{"scale": k, "tokens": option} for k in at]


def _tokens(scales: Sequence[ScaleSpec], grid: Grid) -> Iterator[Draft]:
    """Every selector and restorer: each ratio at the last scale, the first ratio at both."""
    late = late_scales(scales)
    for at, ratios in ((late[-1:], grid.keep), (late, grid.keep[:1])):
        for keep in ratios:
            for select, restore in grid.pairs():
                name = f"{select} + {restore}, keep {keep:g} at"
                facts = {"select": select, "restore": restore, "keep": keep, "scales": list(at)}
                if len(at) > 1:
                    facts["parts"] = [f"{name} {k}" for k in at]
                steps = _token_steps(grid, at, keep, select, restore)
                yield f"{name} {', '.join(map(str, at))}", "tokens", steps, facts


def _features(info: ModelInfo, scales: Sequence[ScaleSpec], grid: Grid) -> Iterator[Draft]:
    """Every rank, measured and random, at the last scale and at both; the last with tokens too."""
    late = late_scales(scales)
    for share in grid.ranks:
        rank = max(1, round(share * info.width))
        for basis in ("pca", "random"):
            option = {"rank": rank, "basis": basis}
            for at in (late[-1:], late)[: len(late)]:
                name = f"features {rank} {basis} at {', '.join(map(str, at))}"
                facts = {**option, "scales": list(at)}
                yield name, "features", [{"scale": k, "features": option} for k in at], facts
        tokens = f"deviation + cache, keep {grid.keep[0]:g} at {late[-1]}"
        if ("deviation", "cache") in grid.pairs():
            (step,) = _token_steps(grid, late[-1:], grid.keep[0], "deviation", "cache")
            own = f"features {rank} pca at {late[-1]}"
            step |= {"features": {"rank": rank, "basis": "pca"}}
            yield f"{own} with {tokens}", "joint", [step], {"parts": [own, tokens]}


def _joint(space: SearchSpace, scales: Sequence[ScaleSpec], grid: Grid) -> Iterator[Draft]:
    """Plans whose parts are rows too, to see whether losses add up."""
    late, keep = late_scales(scales), grid.keep[0]
    if len(late) < 2 or ("deviation", "cache") not in grid.pairs():
        return
    name = f"deviation + cache, keep {keep:g} at "
    both, first, last = f"{name}{late[0]}, {late[1]}", f"{name}{late[0]}", f"{name}{late[1]}"
    alone = _token_steps(grid, late[:1], keep, "deviation", "cache")
    yield first, "joint", alone, {}
    start = max(1, len(scales) - LATE_DROP)
    if space.variants:
        dropped = {k: {"scale": k, "guidance": "cond"} for k in range(start, len(scales))}
        for at, part in ((late[-1:], last), (late, both)):
            tokens = {s["scale"]: s for s in _token_steps(grid, at, keep, "deviation", "cache")}
            steps = [dropped.get(k, {}) | tokens.get(k, {}) for k in sorted({*dropped, *tokens})]
            facts = {"parts": [f"cond from {start}", part]}
            yield f"cond from {start} with {part}", "joint", steps, facts
