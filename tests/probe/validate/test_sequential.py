"""Intervals that may be looked at on the way: how often they are wrong, and how narrow they are.

pytest tests/probe/validate/test_sequential.py
"""

from __future__ import annotations

from functools import cache
from statistics import NormalDist

import numpy as np
import pytest

from stagevar_probe.intervals import Interval
from stagevar_probe.validate.sequential import (
    ERROR,
    Control,
    critical_values,
    paired_bounds,
    spent,
)
from stagevar_probe.validate.verdict import UNPROVEN, Budget, together
from stagevar_runtime.errors import CalibrationError

LOOKS = (0.25, 0.4, 0.55, 0.7, 0.85, 1.0)
SHARES = (0.5, 0.3, 0.2)
BUDGET = Budget("scenes", 0.01)
NORMAL = NormalDist()


def test_critical_values_are_those_of_the_literature() -> None:
    """Lan-DeMets spending that resembles O'Brien and Fleming: five equal looks, .025 one-sided."""
    found = critical_values([0.2, 0.4, 0.6, 0.8, 1.0], 0.025, final=True)
    assert found == pytest.approx([4.877, 3.357, 2.680, 2.290, 2.031], abs=2e-3)
    assert critical_values([1.0], 0.025) == pytest.approx([NORMAL.inv_cdf(0.975)], abs=1e-3)


def test_all_of_the_error_is_spent_and_no_more() -> None:
    assert spent(1.0, 0.02) == pytest.approx(0.02) and spent(0.0, 0.02) == 0
    rng, runs = np.random.default_rng(0), 20_000
    steps = np.diff([0, *LOOKS])
    motion = (rng.normal(size=(runs, len(LOOKS))) * np.sqrt(steps)).cumsum(1)
    beyond = motion / np.sqrt(LOOKS) > critical_values(LOOKS, 0.02, final=True)
    assert beyond.any(1).mean() == pytest.approx(0.02, abs=0.004)


def test_a_run_that_ends_early_spends_the_rest_at_its_last_look() -> None:
    early = critical_values([0.3, 0.5], 0.02, final=True)
    assert early[1] < critical_values([0.3, 0.5], 0.02)[1]
    assert early[1] == pytest.approx(NORMAL.inv_cdf(0.98), abs=0.01)


@pytest.mark.parametrize("looks", [[], [0.5, 0.5], [0.0, 1.0], [0.5, 1.2]])
def test_looks_rise_to_the_whole(looks: list[float]) -> None:
    with pytest.raises(CalibrationError, match="look"):
        critical_values(looks, 0.05)


def test_few_inputs_without_a_difference_show_little() -> None:
    """Tango's interval for no discordant pair ends at z² / (n + z²)."""
    mean, low, high = paired_bounds(np.zeros(64), (1.96, 1.96))
    assert mean == 0 and high == pytest.approx(1.96**2 / (64 + 1.96**2), abs=1e-6) == -low
    assert BUDGET.verdict(Interval(mean, low, high)) == UNPROVEN


def passes(rng: np.random.Generator, loss: float, n: int) -> np.ndarray:
    """Exact minus plan of pass or fail: margins of both are normal and go together, the plan's lies
    as much lower as to pass ``loss`` less often."""
    level = NORMAL.inv_cdf(0.92)
    shift = level - NORMAL.inv_cdf(0.92 - loss)
    exact = rng.normal(level, 1, n)
    own = 0.97 * (exact - level) + np.sqrt(1 - 0.97**2) * rng.normal(size=n) + level - shift
    return (exact > 0).astype(float) - (own > 0)


def smooth(rng: np.random.Generator, loss: float, n: int) -> np.ndarray:
    """Losses of a score without steps, skewed: most inputs lose nothing, a few much."""
    return rng.exponential(0.05, n) - 0.05 + loss


def shown(
    rng: np.random.Generator, draw, losses: tuple[float, ...], planned: int, cut: float = 1.0
) -> list[bool]:
    """Whether each of several plans is ever called satisfied in one calibration."""
    out = []
    for loss, share in zip(losses, SHARES, strict=False):
        found = draw(rng, loss, planned)
        ends = (*(look for look in LOOKS if look < cut), cut)
        parts = [found[: round(end * planned)] for end in ends]
        bounds = (
            paired_bounds(part, (z, z))
            for part, z in zip(parts, at(ends, ERROR * share), strict=True)
            if part.mean() <= BUDGET.max_loss  # beyond, no verdict is true
        )
        out.append(any(BUDGET.verdict(b) is True for b in bounds))
    return out


@cache
def at(looks: tuple[float, ...], error: float) -> list[float]:
    """Thousands of runs look at the same shares: their critical values are worked out once."""
    return critical_values(looks, error, final=True)


@pytest.mark.parametrize(
    ("draw", "planned", "cut"),
    [(passes, 160, 1.0), (passes, 1000, 1.0), (passes, 640, 0.5), (smooth, 300, 1.0)],
)
def test_wrong_satisfied_in_at_most_one_of_twenty_calibrations(draw, planned, cut) -> None:
    """Three plans, all just beyond what is allowed, looked at as often as a calibration looks."""
    rng, runs = np.random.default_rng(1), 1500
    wrong = sum(any(shown(rng, draw, (BUDGET.limit,) * 3, planned, cut)) for _ in range(runs))
    assert wrong / runs <= 0.05


def test_looking_with_an_ordinary_interval_would_be_wrong_more_often() -> None:
    """The reason for all this: the same looks at 95 % intervals from the sample's own variance."""
    rng, runs, wrong = np.random.default_rng(2), 1500, 0
    for _ in range(runs):
        losses = passes(rng, BUDGET.limit, 400)
        parts = (losses[: round(400 * look)] for look in LOOKS)
        wrong += any(p.mean() + 1.96 * p.std() / len(p) ** 0.5 <= BUDGET.limit for p in parts)
    assert wrong / runs > 0.06


def test_a_harmless_plan_is_shown_to_be() -> None:
    rng, runs = np.random.default_rng(3), 150
    found = sum(shown(rng, passes, (0.0,), 1200)[0] for _ in range(runs))
    assert found / runs > 0.8


def test_a_control_variate_narrows_and_stays_right() -> None:
    """Half of the inputs that the exact path ran on: its own scores tell what they were like."""
    rng, inside, widths = np.random.default_rng(4), 0, []
    for _ in range(400):
        level = rng.normal(size=400)
        losses = 0.05 + 0.3 * level + 0.2 * rng.normal(size=400)
        control = Control(level[:200, None], level.mean(keepdims=True), 400)
        plain = paired_bounds(losses[:200], (1.96, 1.96))
        found = paired_bounds(losses[:200], (1.96, 1.96), control)
        inside += found.low <= 0.05 <= found.high
        widths.append((found.high - found.low) / (plain.high - plain.low))
    assert 0.92 <= inside / 400 <= 0.98 and 0.7 < np.mean(widths) < 0.87
    same = Control(level[:200, None], level[:200].mean(keepdims=True), 200)
    assert paired_bounds(losses[:200], (1.96, 1.96), same) == plain  # known no better


def test_inputs_needed_would_show_it() -> None:
    rng = np.random.default_rng(5)
    losses = passes(rng, 0.0, 300)
    bounds = paired_bounds(losses, (2.05, 2.05))
    assert BUDGET.verdict(bounds) == UNPROVEN
    needed = BUDGET.inputs_needed(bounds, 300)
    assert needed is not None and needed > 300
    more = np.tile(losses, needed // 300 + 1)
    assert paired_bounds(more, (2.05, 2.05)).high == pytest.approx(BUDGET.limit, abs=0.003)
    assert BUDGET.inputs_needed(Interval(0.011, 0.0, 0.02), 300) is None


@pytest.mark.parametrize("high", [0.0201, 0.0204, 0.05])
def test_what_is_just_not_proved_needs_more_inputs(high: float) -> None:
    """304 inputs that end .0004 beyond the limit once needed "0 more"."""
    needed = BUDGET.inputs_needed(Interval(-0.0066, -0.035, high), 304)
    assert needed is not None and needed > 304


@pytest.mark.parametrize("losses", [[0.1], [0.1, float("nan")], [[0.1, 0.2]]])
def test_losses_are_checked(losses) -> None:
    with pytest.raises(CalibrationError, match="got losses"):
        paired_bounds(losses, (2.0, 2.0))


@pytest.mark.parametrize(
    ("bounds", "verdict"),
    [
        ((0.005, -0.01, 0.0199), True),
        ((0.005, -0.01, 0.0201), UNPROVEN),
        ((0.0101, 0.0, 0.0199), UNPROVEN),  # the estimate is beyond the budget
        ((0.03, 0.011, 0.05), False),
        ((0.03, 0.009, 0.05), UNPROVEN),
    ],
)
def test_three_verdicts(bounds: tuple[float, float, float], verdict: bool | str) -> None:
    assert BUDGET.verdict(Interval(*bounds)) == verdict
    assert BUDGET.margin == 0.01 and Budget("x", 0.002).limit == 0.004


def test_several_budgets_make_one_verdict() -> None:
    assert together([True, True]) is True and together([True, UNPROVEN]) == UNPROVEN
    assert together([True, UNPROVEN, False]) is False
