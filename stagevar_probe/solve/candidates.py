"""Promising plans run side by side on fresh inputs; the fastest that keeps its budget wins.

Losses of single changes are noisy on few images and do not add up, so the solver's word is not
taken for one plan: it names a field of candidates, and measurement chooses among them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise

from stagevar_runtime.profile import PlanStep

from ..intervals import Interval
from ..measure.figures import Figures
from ..measure.interventions import PUBLISHED
from ..measure.measurements import Measurements
from .build import problem_from, steps_of
from .milp import FULL, Problem, Solution, exact_plan, frontier, least_loss_per_speed, solve
from .target import BUDGETS

CAUTION = (0.0, 1.0, 2.0)  # standard errors: the least of many losses is often a lucky one
LOOSEST = 2.0  # of the loosest budget: sums of losses are often too high
WIDE = 6  # candidates of all options at most, besides the drops of guidance
UNCHANGED = 4  # under the published guidance
RUNGS = 9  # of paces, all tokens kept: with the losses as measured, and with caution
POINTS = 12  # of a frontier
COOLER = 0.3  # of the temperature
SETTLED = 0.05  # share of the tokens that are drawn as warm as exact
CONTROL = "exact, cooler"


@dataclass(frozen=True)
class Candidate:
    """A plan with what the solver promised: ``ms`` a batch (loop) and ``loss``."""

    name: str
    steps: tuple[PlanStep, ...]
    ms: float
    loss: float


def propose_candidates(
    measured: Measurements, max_loss: float, cool: bool = False
) -> list[Candidate]:
    """Distinct candidates, slow to fast, sampled cooler (:func:`cooler`) where that is asked.

    Three parts, for what the solver cannot know:

    * All options: for every scale the best way to drop guidance from it on, where it promises to
      keep the loosest budget; what the solver picks for the one asked for; frontiers to several
      times the loosest budget, with the losses as measured and with caution.
    * A frontier under the published guidance: another guidance changes the whole picture, so that
      its loss has the widest interval, and a lucky one would be in every plan.
    * Ladders of plans that keep all tokens and leave out no two scales in a row, which change the
      distribution least: of that the losses say nothing.
    """
    problems = [problem_from(measured, max_loss, caution) for caution in CAUTION]
    problem, careful, _ = problems
    alone = {PUBLISHED: problem.schedules[PUBLISHED]}
    published = [replace(p, schedules=alone, joint_loss={}) for p in problems]
    loosest = max(BUDGETS.values()) * max_loss
    drops = [s for s in best_drops(careful) if s.loss <= loosest]
    must = {steps_of(s, measured) for s in drops}
    chosen = [solve(losses) for losses in problems]
    for losses in (problem, careful):
        chosen += frontier(losses, POINTS, max_loss=LOOSEST * loosest)
    unchanged = frontier(published[0], POINTS, max_loss=LOOSEST * loosest)
    rungs = []
    for losses in published[:2]:
        single = {span: x for span, x in losses.skip_loss.items() if span[1] - span[0] == 1}
        whole = replace(losses, token_loss={}, skip_loss=single)
        rungs += least_loss_per_speed(whole, RUNGS, LOOSEST * loosest)
    distinct: dict[tuple[PlanStep, ...], Candidate] = {}
    parts = ([*drops, *chosen], WIDE), (unchanged, UNCHANGED), (rungs, len(rungs))
    for group, size in parts:
        found = {steps_of(s, measured): s for s in reversed(group)}
        found.pop((), None)  # the exact path runs beside them
        candidates = [Candidate("", steps, s.ms, s.loss) for steps, s in found.items()]
        distinct |= {candidate.steps: candidate for candidate in _spread(candidates, must, size)}
    if cool:
        tokens = [size.tokens for size in measured.job.scales]
        warm = measured.job.sampling.temperature
        twins = [replace(c, steps=cooler(c.steps, tokens, warm)) for c in distinct.values()]
        distinct = {twin.steps: twin for twin in twins}
    ordered = sorted(distinct.values(), key=lambda c: -c.ms)
    return [replace(c, name=f"candidate {i + 1}") for i, c in enumerate(ordered)]


def cooler(
    steps: Sequence[PlanStep], tokens: Sequence[int], temperature: float
) -> tuple[PlanStep, ...]:
    """The plan, sampled cooler at every scale after the first twentieth of the tokens.

    What is dropped, reduced or left out makes late scales noisier; the layout is drawn by then.
    ``tokens``: of every scale. ``temperature``: the exact path's.
    """
    own = {step.scale: step for step in steps}
    for k, drawn in enumerate(accumulate(tokens[:-1], initial=0)):
        step = own.get(k, PlanStep(scale=k))
        if drawn >= SETTLED * sum(tokens) and step.run != "skip":
            own[k] = step.model_copy(update={"temperature": COOLER * temperature})
    return tuple(own[k] for k in sorted(own))


def cooler_helps(figures: Figures, max_loss: float) -> bool:
    """Whether sampling cooler is not seen to hurt the exact path, where that can be seen: within a
    standard error it loses half of the budget at most, and no distribution."""
    if figures.kid_loss is None:
        return False

    def least(interval: Interval) -> float:
        return interval.mean - (interval.mean - interval.low) / 1.96

    return least(figures.kid_loss) <= 0 and least(figures.smooth_loss) <= max_loss / 2


def _spread(
    candidates: Sequence[Candidate], must: Collection[tuple[PlanStep, ...]], size: int
) -> list[Candidate]:
    """So many of them, spread over time."""
    ordered = sorted(candidates, key=lambda c: -c.ms)
    while len(ordered) > size:  # leave out the one nearest in time to the next slower one
        gaps = {
            after.steps: before.ms - after.ms
            for before, after in pairwise(ordered)
            if after.steps not in must
        }
        if not gaps:
            break
        nearest = min(gaps, key=gaps.__getitem__)
        ordered = [c for c in ordered if c.steps != nearest]
    return ordered


def best_drops(problem: Problem) -> list[Solution]:
    """For every scale the plan of least loss that drops guidance from it on, and nothing else."""
    events: dict[int, list[tuple[float, str, str]]] = {}
    for (k, variant), loss in problem.drop_loss.items():
        events.setdefault(k, []).append((loss, problem.default_schedule, variant))
    for (schedule, k, variant), loss in problem.joint_loss.items():
        events.setdefault(k, []).append((loss, schedule, variant))
    exact = exact_plan(problem)
    found = []
    for k, ways in sorted(events.items()):
        loss, schedule, variant = min(ways)
        choices = tuple(
            c
            if c.scale < k
            else replace(c, guidance=variant, rows=1, ms=problem.ms[c.scale, 1, FULL])
            for c in exact.choices
        )
        ms = sum(c.ms for c in choices)
        found.append(
            replace(exact, choices=choices, schedule=schedule, drop=(k, variant), ms=ms, loss=loss)
        )
    return found
