"""Choose a plan: the fastest options whose measured losses stay within a budget, exactly.

A multiple-choice knapsack with ordering constraints (METHODS section 4), as one mixed-integer
linear programme. Six things are chosen: a guidance schedule, one *drop event* (guidance gone from
scale k on, keeping one branch variant) or none, on how many tokens null runs before, any *skip
events* (scales k to j - 1 not run) that do not touch, from which scale on products run in fewer
bits, if any, and a token option at every scale that is run.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from stagevar_runtime.errors import CalibrationError

from .problem import FEWER_BITS, FULL, SKIP, Choice, Drop, Problem, Skip, Solution, exact_plan

__all__ = [
    "FULL",
    "SKIP",
    "Choice",
    "Drop",
    "Problem",
    "Solution",
    "exact_plan",
    "frontier",
    "least_loss",
    "least_loss_per_speed",
    "solve",
]

ROUNDING = 1e-9
EDGE = 1e-4  # of a time: more than the solver's tolerance, so that paces do not touch
SLIVER = 1e-3  # of the exact time: what counts as no time in a ratio


@dataclass(frozen=True)
class _Columns:
    """The binary variables: what each means, its cost, its counted and its raw loss."""

    guide: list[tuple[str, Drop | None]]
    skip: list[Skip]
    part: list[str]
    bits: list[int]
    scale: list[tuple[int, int, str]]  # (k, rows, tokens), rows 0 for a skipped scale
    ms: NDArray[np.float64]
    loss: NDArray[np.float64]
    raw: NDArray[np.float64]

    @property
    def places(self) -> int:
        """Where the columns of scales begin."""
        return len(self.guide) + len(self.skip) + len(self.part) + len(self.bits)


def _columns(problem: Problem) -> _Columns:
    guide: list[tuple[str, Drop | None]] = []
    losses: list[tuple[float, ...]] = []  # of every column, in parts that are counted apart
    for name, offset in problem.schedules.items():
        joint = {(k, v): x for (s, k, v), x in problem.joint_loss.items() if s == name}
        guide.append((name, None))
        losses.append((offset,))
        for event in sorted({*problem.drop_loss, *joint}):
            guide.append((name, event))  # a sum nobody measured: a gain of one pays for no other
            losses.append((joint[event],) if event in joint else (offset, problem.drop_loss[event]))
    skip, part = sorted(problem.skip_loss), sorted(problem.part_loss)
    bits = sorted(problem.bits_loss)
    losses += [(problem.skip_loss[span],) for span in skip]
    losses += [(problem.part_loss[name],) for name in part]
    losses += [(problem.bits_loss[start],) for start in bits]
    scale: list[tuple[int, int, str]] = [(k, 0, SKIP) for k in range(problem.scales)]
    losses += [()] * problem.scales
    times = [0.0] * len(losses)
    for (k, rows, tokens), ms in problem.ms.items():
        option = tokens.removesuffix(FEWER_BITS)
        if option != tokens and not bits:
            continue
        if option == FULL or option in part or (k, option) in problem.token_loss:
            scale.append((k, rows, tokens))
            losses.append((problem.token_loss.get((k, option), 0.0),))
            times.append(ms)
    counted = np.array([sum(max(x, 0.0) for x in own) for own in losses], np.float64)
    raw = np.array([sum(own) for own in losses], np.float64)
    return _Columns(guide, skip, part, bits, scale, np.array(times, np.float64), counted, raw)


def _matrix(problem: Problem, columns: _Columns) -> tuple[NDArray[np.float64], ...]:
    """Rows of lower <= A x <= upper: one of each kind, and the ordering constraints."""
    g, s = len(columns.guide), len(columns.skip)
    first, e = columns.places, g + s + len(columns.part)  # scales and fewer bits begin there
    total = first + len(columns.scale)
    rows: list[NDArray[np.float64]] = []
    low: list[float] = []
    high: list[float] = []

    def add(row: NDArray[np.float64], lower: float, upper: float) -> None:
        rows.append(row)
        low.append(lower)
        high.append(upper)

    def row() -> NDArray[np.float64]:
        return np.zeros(total)

    one = row()
    one[:g] = 1
    add(one, 1, 1)
    parted = row()
    parted[:g] = [drop is not None and drop[1] in problem.apart for _, drop in columns.guide]
    parted[g + s : e] = 1
    add(parted, 0, 1)
    if columns.bits:
        event = row()
        event[e:first] = 1
        add(event, 0, 1)
    names = np.array([tokens.removesuffix(FEWER_BITS) for _, _, tokens in columns.scale])
    fewer = np.array([tokens.endswith(FEWER_BITS) for _, _, tokens in columns.scale])
    for k in range(problem.scales):
        dropped = np.array([drop is not None and drop[0] <= k for _, drop in columns.guide])
        starts = np.array([drop is not None and drop[0] == k for _, drop in columns.guide])
        skipped = np.array([start <= k < stop for start, stop in columns.skip])
        touches = np.array([k in span for span in columns.skip])
        here = np.array([place == k for place, _, _ in columns.scale])
        kinds = np.array([number for _, number, _ in columns.scale])
        choose, skip, apart, single, order = row(), row(), row(), row(), row()
        choose[first:] = here
        add(choose, 1, 1)
        skip[first:] = here & (kinds == 0)
        skip[g : g + s] = -1.0 * skipped
        add(skip, 0, 0)  # skipped here exactly if a skip event spans k
        apart[g : g + s] = touches
        add(apart, 0, 1)  # two that touch are a longer one, which has a loss of its own
        if columns.bits:
            began = np.array([start <= k for start in columns.bits])
            reached, before = row(), row()
            reached[first:], reached[e:first] = here & fewer, -1.0 * began
            add(reached, -1, 0)  # fewer bits need an event at or before k
            before[first:], before[e:first] = here & (kinds > 0) & ~fewer, began
            add(before, 0, 1)  # and all others none
        if problem.rows == 2:
            single[first:] = here & (kinds == 1)
            single[:g] = -1.0 * dropped
            add(single, -1, 0)  # one row needs a drop at or before k
            double = row()
            double[first:] = here & (kinds == 2)
            double[:g] = dropped
            add(double, 0, 1)  # two rows need none
            order[:g], order[g : g + s] = starts, skipped
            add(order, 0, 1)  # dropping guidance of a skipped scale means nothing
            for i, name in enumerate(columns.part):
                own = here & (kinds == 2) & (names == name)
                if own.any():
                    never, always = row(), row()
                    never[first:], never[g + s + i] = own, -1
                    add(never, -1, 0)  # in part only if that number of tokens is chosen
                    always[first:], always[g + s + i] = here & (kinds == 2) & ~own, 1
                    add(always, 0, 1)  # and then wherever guidance is left
    return np.stack(rows), np.asarray(low), np.asarray(high)


class _Model:
    """One problem as a programme: minimise a cost under bounds on milliseconds and loss."""

    def __init__(self, problem: Problem, time_limit: float) -> None:
        self.problem, self.time_limit = problem, time_limit
        self.columns = _columns(problem)
        self.matrix, self.low, self.high = _matrix(problem, self.columns)

    def minimise(
        self,
        cost: NDArray[np.float64],
        max_loss: float,
        max_ms: float = np.inf,
        min_ms: float = 0.0,
    ) -> tuple[NDArray[np.bool_], bool] | None:
        """The chosen columns and whether that was proved optimal; None if nothing fits."""
        from scipy.optimize import Bounds, LinearConstraint, milp

        extra, caps = [], []
        limits = (
            (self.columns.loss, max_loss),
            (self.columns.ms, max_ms),
            (-self.columns.ms, -min_ms),
        )
        for values, cap in limits:
            if np.isfinite(cap):  # unit rows, so the solver's tolerance is relative
                unit = float(np.abs(values).max()) or 1.0
                extra.append(values / unit)
                caps.append(cap / unit)
        found = milp(
            cost / (float(np.abs(cost).max()) or 1.0),
            integrality=np.ones(cost.size),
            bounds=Bounds(0, 1),
            constraints=LinearConstraint(
                np.vstack([self.matrix, *extra]),
                np.concatenate([self.low, np.full(len(caps), -np.inf)]),
                np.concatenate([self.high, caps]),
            ),
            options={"mip_rel_gap": 0.0, "time_limit": self.time_limit},
        )
        if found.x is None:
            return None
        return found.x > 0.5, found.status == 0

    def solution(self, chosen: NDArray[np.bool_], budget: float, optimal: bool) -> Solution:
        problem, columns = self.problem, self.columns
        g, s = len(columns.guide), len(columns.skip)
        schedule, drop = columns.guide[int(chosen[:g].argmax())]
        skips = tuple(columns.skip[i] for i in np.flatnonzero(chosen[g : g + s]))
        first, e = columns.places, g + s + len(columns.part)
        parts = [columns.part[i] for i in np.flatnonzero(chosen[g + s : e])]
        choices = []
        for i in np.flatnonzero(chosen[first:]):
            k, rows, tokens = columns.scale[i]
            gone = drop is not None and drop[0] <= k
            guidance = SKIP if rows == 0 else drop[1] if gone and drop else FULL
            run: Literal["full", "skip"] = "skip" if rows == 0 else "full"
            choices.append(Choice(k, run, guidance, rows, tokens, float(columns.ms[first + i])))
        return Solution(
            tuple(sorted(choices, key=lambda choice: choice.scale)),
            schedule,
            drop,
            skips,
            parts[0] if parts else None,
            float(columns.ms[chosen].sum()),
            problem.exact_ms,
            float(columns.loss[chosen].sum()),
            budget,
            optimal=optimal,
            bits=next((columns.bits[i] for i in np.flatnonzero(chosen[e:first])), None),
        )

    def fastest(self, budget: float) -> Solution | None:
        """Least milliseconds within the budget; among those the least loss, gains included."""
        first = self.minimise(self.columns.ms, budget)
        if first is None:
            return None
        ms = float(self.columns.ms[first[0]].sum())
        best = self.minimise(self.columns.raw, budget, ms * (1 + ROUNDING) + ROUNDING)
        chosen, proved = best if best is not None else first
        return self.solution(chosen, budget, proved and first[1])


def solve(problem: Problem, budget: float | None = None, *, time_limit_s: float = 30.0) -> Solution:
    """The fastest plan whose counted losses sum to at most ``budget`` (the problem's by default).

    An option that measured better than exact counts as 0, so that noise is not spent on other
    options. (A joint loss is one measurement: a schedule that gains more than its drop loses counts
    as 0 there.) Plans of equal time are ranked by their loss with gains. If nothing fits the budget
    the exact path comes back, ``feasible`` False. Raises nothing: a time limit gives the best plan
    found, ``optimal`` False.
    """
    limit = problem.budget if budget is None else budget
    model = _Model(problem, time_limit_s)
    return model.fastest(limit) or replace(exact_plan(problem, limit), feasible=False)


def least_loss(problem: Problem, max_ms: float, *, time_limit_s: float = 30.0) -> Solution:
    """The plan that loses least within ``max_ms`` of loop time; among those the fastest.

    Its budget is its own loss. Where nothing is that fast, the fastest plan of all comes back,
    ``feasible`` False.
    """
    model = _Model(problem, time_limit_s)
    best = model.minimise(model.columns.loss, np.inf, max_ms * (1 + ROUNDING))
    feasible = best is not None
    if best is None:
        best = model.minimise(model.columns.ms, np.inf)
    assert best is not None  # without bounds the exact path fits
    chosen, proved = best
    if feasible:
        plan = model.fastest(float(model.columns.loss[chosen].sum()) + ROUNDING)
        if plan is not None and plan.ms <= max_ms * (1 + 2 * ROUNDING):
            return replace(plan, budget=plan.loss)
    plan = model.solution(chosen, 0.0, proved)
    return replace(plan, budget=plan.loss, feasible=feasible)


def frontier(
    problem: Problem,
    points: int = 9,
    *,
    max_loss: float = np.inf,
    time_limit_s: float = 30.0,
) -> list[Solution]:
    """At most ``points`` non-dominated plans, slow to fast.

    From the fastest plan that loses nothing to the fastest that loses at most ``max_loss``, with
    times spread evenly between: each is the least loss for its time and the least time for its
    loss. The budget of each is its own loss. The problem's own budget plays no part.
    """
    if points < 2:
        raise CalibrationError(f"got {points} points, expected 2 or more")
    model = _Model(problem, time_limit_s)
    least = model.minimise(model.columns.loss, np.inf)
    quickest = model.minimise(model.columns.ms, max_loss)
    if least is None or quickest is None:
        return []
    floor = float(model.columns.loss[least[0]].sum())
    slowest = model.fastest(floor + ROUNDING)
    bottom = float(model.columns.ms[quickest[0]].sum())
    found = [slowest] if slowest is not None else []
    for target in np.linspace(found[0].ms if found else bottom, bottom, points)[1:]:
        best = model.minimise(model.columns.loss, np.inf, float(target) * (1 + ROUNDING) + ROUNDING)
        if best is None:
            continue
        plan = model.fastest(float(model.columns.loss[best[0]].sum()) + ROUNDING)
        if plan is not None and plan.ms < found[-1].ms - ROUNDING:
            found.append(plan)
    return [replace(plan, budget=plan.loss) for plan in found]


def least_loss_per_speed(
    problem: Problem, rungs: int, max_loss: float, *, time_limit_s: float = 30.0
) -> list[Solution]:
    """The plan of least loss at every pace, slow to fast, whatever faster plans promise.

    Paces are ``rungs`` equal ratios of time between the exact path and the fastest plan that loses
    at most ``max_loss``. A :func:`frontier` leaves out what a faster plan beats; where losses are
    noisy that may be luck. A pace at which no plan keeps ``max_loss`` has none.
    """
    model = _Model(problem, time_limit_s)
    quickest = model.minimise(model.columns.ms, max_loss)
    if quickest is None:
        return []
    least = float(model.columns.ms[quickest[0]].sum())
    edges = np.geomspace(problem.exact_ms, max(least, SLIVER * problem.exact_ms), rungs + 1)
    found = []
    for slow, fast in pairwise(edges.tolist()):
        bottom = 0.0 if fast == edges[-1] else fast * (1 - ROUNDING)
        best = model.minimise(model.columns.loss, max_loss, slow * (1 - EDGE), bottom)
        if best is not None:
            plan = model.solution(best[0], 0.0, best[1])
            found.append(replace(plan, budget=plan.loss))
    return found
