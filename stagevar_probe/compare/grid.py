"""Who takes part in a comparison: presets, grids, profile plans, and the exact path retuned."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from stagevar_runtime.loop.plan import EXACT
from stagevar_runtime.model.protocol import ModelInfo, ScaleSpec
from stagevar_runtime.model.sampling import Sampling
from stagevar_runtime.options.restorers import RESTORERS
from stagevar_runtime.options.selectors import SELECTORS
from stagevar_runtime.profile import PlanStep, Profile
from stagevar_runtime.profile.presets import Ranks

from ..measure.interventions import COOL, PUBLISHED, SearchSpace, default_space
from ..validate.rows import Row, Rows, compiled, presets_and_plans
from .changes import Drop, LowRank, Skip, Tokens

BRANCHES = ("cond", "null", "delta")
STRENGTHS = (0.5, 1.5, 2.0)  # of the published guidance, on the exact path
DEVIATION = ("deviation", "cache")  # the selector and restorer of joint plans
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


@dataclass(frozen=True)
class Draft:
    """A row before its steps are known to be valid."""

    name: str
    kind: str
    steps: Sequence[Mapping[str, Any]]
    change: Hashable = None
    parts: tuple[Hashable, ...] = ()

    def row(self) -> Row:
        """The row. Raises ValidationError where steps contradict each other."""
        steps = tuple(PlanStep.model_validate(step) for step in self.steps)
        return Row(self.name, self.kind, steps, change=self.change, parts=self.parts)


def assemble(
    info: ModelInfo,
    scales: tuple[ScaleSpec, ...],
    sampling: Sampling,
    profile: Profile | None,
    ranks: Ranks | None,
    grid: Grid | None,
) -> Rows:
    """Every row of a comparison, the exact path first. ``grid`` None leaves the grid out."""
    space = default_space(info, sampling)
    named, left_out = presets_and_plans(info, scales, profile, ranks)
    rows = [Row(EXACT, EXACT), *_retuned(space, sampling, info, len(scales)), *named]
    drafts = [*_drops(space, sampling, len(scales)), *_skips(len(scales))]
    if grid is not None:
        drafts += [*_tokens(scales, grid), *_joint(space, scales, grid)]
        drafts += _low_rank(info, scales, grid) if info.layers else []
    for draft in drafts:
        try:
            rows.append(draft.row())
        except ValidationError as error:
            left_out[draft.name] = str(error.errors()[0]["msg"])
    return compiled(rows, left_out, info, scales, sampling)


def _strengths(space: SearchSpace) -> dict[str, float]:
    return {name: w for name, w in space.schedules.items() if w is not None}


def _retuned(space: SearchSpace, sampling: Sampling, info: ModelInfo, count: int) -> list[Row]:
    """The exact path at other guidance: better guidance must not pass for a method's gain."""
    if not space.variants:
        return []
    base = sampling.guidance
    none = 0.0 if info.guidance.startswith("ramp") else 1.0  # the strength that means no guidance
    out = []
    for factor in STRENGTHS:

        def scaled(g: float, factor: float = factor) -> float:
            return none + factor * (g - none)

        value = tuple(map(scaled, base)) if isinstance(base, tuple) else scaled(base)
        shown = f"{value:g}" if isinstance(value, float) else f"x {factor:g}"
        out.append(Row(f"exact, guidance {shown}", "guidance", guidance=value))
    for name, strength in _strengths(space).items():
        steps = tuple(PlanStep(scale=k, guidance_scale=strength) for k in range(count))
        out.append(Row(f"exact, {name}", "guidance", steps))
    return out


def drop_start(count: int) -> int:
    """The scale from which guidance is dropped, of ``count``."""
    return max(1, count - LATE_DROP)


def _drops(space: SearchSpace, sampling: Sampling, count: int) -> Iterator[Draft]:
    """Guidance dropped from the last three scales on: branch, early guidance, late temperature."""
    if not space.variants:
        return
    start = drop_start(count)
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
                yield Draft(name, "drop", steps, Drop(branch, start, schedule, cool))


def _skips(count: int) -> Iterator[Draft]:
    for late in (1, 2):
        if late < count:
            steps = [{"scale": k, "run": "skip"} for k in range(count - late, count)]
            yield Draft(f"skip the last {late}", "skip", steps, Skip(late))


def late_scales(scales: Sequence[ScaleSpec]) -> tuple[int, ...]:
    """The last two scales whose tokens can be reduced, ascending."""
    maps = [s.index for s in scales[1:] if s.kind == "ar" and s.tokens == s.height * s.width]
    return tuple(maps[-2:])


def _token_draft(
    change: Tokens, span: str, kind: str = "tokens", parts: tuple[Hashable, ...] = ()
) -> Draft:
    """The same token option at each of its scales."""
    option = {"keep": change.keep, "select": change.select, "restore": change.restore, "span": span}
    at = ", ".join(map(str, change.scales))
    name = f"{change.option}, keep {change.keep:g} at {at}"
    steps = [{"scale": k, "tokens": option} for k in change.scales]
    return Draft(name, kind, steps, change, parts)


def _tokens(scales: Sequence[ScaleSpec], grid: Grid) -> Iterator[Draft]:
    """Every selector and restorer: each ratio at the last scale, the first ratio at both."""
    late = late_scales(scales)
    for at, ratios in ((late[-1:], grid.keep), (late, grid.keep[:1])):
        for keep in ratios:
            for select, restore in grid.pairs():
                change = Tokens(select, restore, keep, at)
                alone = tuple(replace(change, scales=(k,)) for k in at)
                parts = alone if len(at) > 1 else ()
                yield _token_draft(change, grid.span, parts=parts)


def _low_rank(info: ModelInfo, scales: Sequence[ScaleSpec], grid: Grid) -> Iterator[Draft]:
    """Every rank, measured and random, at the last scale and at both; the last with tokens too."""
    late = late_scales(scales)
    for share in grid.ranks:
        rank = max(1, round(share * info.width))
        for basis in ("pca", "random"):
            option = {"rank": rank, "basis": basis}
            for at in (late[-1:], late)[: len(late)]:
                name = f"features {rank} {basis} at {', '.join(map(str, at))}"
                steps = [{"scale": k, "features": option} for k in at]
                yield Draft(name, "features", steps, LowRank(basis, rank, at))
        if DEVIATION in grid.pairs():
            tokens = _token_draft(Tokens(*DEVIATION, grid.keep[0], late[-1:]), grid.span)
            (step,) = tokens.steps
            step = {**step, "features": {"rank": rank, "basis": "pca"}}
            name = f"features {rank} pca at {late[-1]} with {tokens.name}"
            parts = (LowRank("pca", rank, late[-1:]), tokens.change)
            yield Draft(name, "joint", [step], parts=parts)


def _joint(space: SearchSpace, scales: Sequence[ScaleSpec], grid: Grid) -> Iterator[Draft]:
    """Plans whose parts are rows too, to see whether losses add up."""
    late, keep = late_scales(scales), grid.keep[0]
    if len(late) < 2 or DEVIATION not in grid.pairs():
        return
    yield _token_draft(Tokens(*DEVIATION, keep, late[:1]), grid.span, "joint")
    if not space.variants:
        return
    start = drop_start(len(scales))
    drop = Drop("cond", start, PUBLISHED, cool=False)
    dropped = {k: {"scale": k, "guidance": "cond"} for k in range(start, len(scales))}
    for at in (late[-1:], late):
        tokens = _token_draft(Tokens(*DEVIATION, keep, at), grid.span)
        reduced = {step["scale"]: step for step in tokens.steps}
        steps = [{**dropped.get(k, {}), **reduced.get(k, {})} for k in sorted({*dropped, *reduced})]
        name = f"cond from {start} with {tokens.name}"
        yield Draft(name, "joint", steps, parts=(drop, tokens.change))
