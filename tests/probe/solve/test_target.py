"""What is asked for, and losses that cannot fall.

pytest tests/probe/solve/test_target.py
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import SMALL, invoke, some_figures, write_tiny
from small_measurements import JOB

from stagevar_probe.intervals import Interval
from stagevar_probe.measure.costs import Costs
from stagevar_probe.measure.description import ScaleSize
from stagevar_probe.measure.figures import Figures
from stagevar_probe.measure.interventions import PUBLISHED, Intervention, SearchSpace
from stagevar_probe.measure.measurements import Measurements, load_measurements
from stagevar_probe.solve.build import problem_from
from stagevar_probe.solve.isotonic import curves, disagreements, smoothed
from stagevar_probe.solve.milp import FULL, Problem, least_loss, solve
from stagevar_probe.solve.target import Target
from stagevar_runtime.errors import CalibrationError
from stagevar_runtime.profile import load_profile

PROBLEM = Problem(
    scales=3,
    ms={(k, rows, FULL): rows * 10.0 * (k + 1) for k in range(3) for rows in (1, 2)},
    drop_loss={(1, "cond"): 0.05, (2, "cond"): 0.01},
    skip_loss={(2, 3): 0.04},
    budget=0.02,
)  # exact 120 ms; drop from 2: 90, from 1: 70; skip 2: 60; both: 40
COSTS = Costs(dict(PROBLEM.ms), {}, decode_ms=20.0, batch=4, repeats=1)


@pytest.mark.parametrize(
    ("limit", "ms", "loss"),
    [(200, 120, 0), (119, 90, 0.01), (90, 90, 0.01), (89, 60, 0.04), (60, 60, 0.04)],
)
def test_gentlest_is_the_least_loss_within_the_time(limit, ms, loss) -> None:
    found = least_loss(PROBLEM, limit)
    assert found.feasible and found.ms == pytest.approx(ms) and found.loss == pytest.approx(loss)


def test_gentlest_where_nothing_is_fast_enough_is_the_fastest() -> None:
    found = least_loss(PROBLEM, 1.0)
    assert not found.feasible
    assert found.ms == solve(PROBLEM, budget=1e9).ms


def test_speed_is_end_to_end() -> None:
    # 140 / 110 = 1.27: dropping from 2 is enough for 1.25, not for 1.3
    assert Target(0.02, min_speedup=1.25).choose(PROBLEM, COSTS)["balanced"].ms == 90
    assert Target(0.02, min_speedup=1.3).choose(PROBLEM, COSTS)["balanced"].ms == 60
    # a batch of 4: 27.5 ms an image are 110 a batch
    assert Target(0.02, max_ms=27.5).choose(PROBLEM, COSTS)["balanced"].ms == 90
    assert Target(0.02, max_ms=27.0).choose(PROBLEM, COSTS)["balanced"].ms == 60
    assert Target(0.02, max_ms=500).choose(PROBLEM, COSTS)["balanced"].ms == 120
    plans = Target(0.02, min_speedup=1.5).choose(PROBLEM, COSTS)
    assert plans["quality"].ms >= plans["balanced"].ms >= plans["fast"].ms
    with pytest.raises(CalibrationError, match=r"decoding alone.*at most 7\.00x"):
        Target(0.02, min_speedup=8).choose(PROBLEM, COSTS)


def figures(total: float, loss: float) -> Figures:
    lost = Interval(loss, loss, loss)
    return some_figures(exact_total_ms=140.0, total_ms=total, batch=4, loss=lost)


def test_goal_is_held_against_what_was_measured() -> None:
    assert Target(0.02, min_speedup=1.4).met(figures(100, 0.5))
    assert not Target(0.02, min_speedup=1.4).met(figures(101, 0.0))
    assert not Target(0.02, min_speedup=1.4, loss_asked=True).met(figures(100, 0.5))
    assert Target(0.02, max_ms=25).met(figures(100, 0.5))
    assert not Target(0.02, max_ms=24).met(figures(100, 0.0))
    assert Target(0.02).met(figures(139, 0.02)) and not Target(0.02).met(figures(1, 0.03))


def test_a_missed_speed_asks_for_more() -> None:
    target = Target(0.02, min_speedup=1.4)
    factor = target.harder(figures(110, 0), 1.0)
    assert factor == pytest.approx(1.1)
    assert target.choose(PROBLEM, COSTS, factor)["balanced"].ms == 60


def measured(losses: dict[str, np.ndarray], interventions: list[Intervention]) -> Measurements:
    exact = np.full(len(next(iter(losses.values()))), 0.9)
    space = SearchSpace({PUBLISHED: None}, {"cond": ("cond", None), "cond@0.6": ("cond", 0.6)}, {})
    smooth = {"exact": exact.tolist()} | {n: (exact - v).tolist() for n, v in losses.items()}
    job = replace(JOB, scales=(ScaleSize(1, 1, 1),) * 5)
    found = Measurements(job=job, space=space, interventions=interventions, smooth=smooth)
    ms = {(k, rows, FULL): float(rows) for k in range(5) for rows in (1, 2)}
    found.costs = Costs(ms, dict.fromkeys(ms, 0.0), 1.0, 4, 1)
    return found


def drops(means: list[float], noise: float, variant: str = "cond") -> Measurements:
    rng = np.random.default_rng(0)
    interventions = [Intervention(f"{variant} {k}", k, PUBLISHED, variant) for k in range(1, 5)]
    own = [rng.normal(0, 1, 50) for _ in interventions]
    exactly = [noise * (x - x.mean()) for x in own]  # the means are as given
    return measured(
        {a.name: m + x for a, m, x in zip(interventions, means, exactly, strict=True)},
        interventions,
    )


def test_noise_is_smoothed_to_a_falling_curve() -> None:
    found = drops([0.10, 0.05, 0.06, 0.01], noise=0.1)
    assert list(smoothed(found).values()) == pytest.approx([0.10, 0.055, 0.055, 0.01])
    assert disagreements(found) == []
    problem = problem_from(found, 0.02)
    assert problem.drop_loss[2, "cond"] == pytest.approx(0.055)


def test_falling_curves_are_left_alone() -> None:
    found = drops([0.10, 0.05, 0.02, 0.01], noise=0.1)
    assert list(smoothed(found).values()) == pytest.approx([0.10, 0.05, 0.02, 0.01])


def test_a_rise_beyond_noise_is_flagged_and_kept() -> None:
    found = drops([0.10, 0.02, 0.06, 0.01], noise=0.01)
    assert [curve.breaks for curve in curves(found)] == [((2, 3),)]
    assert smoothed(found)["cond 2"] == pytest.approx(0.02)
    (said,) = disagreements(found)
    assert "scale 3 loses more than at scale 2" in said
    assert problem_from(found, 0.02).drop_loss[3, "cond"] == pytest.approx(0.06)


def test_cooler_drops_and_given_up_arms_are_no_curve() -> None:
    assert smoothed(drops([0.1, 0.05, 0.06, 0.01], 0.1, "cond@0.6")) == {}
    found = drops([0.10, 0.05, 0.06, 0.01], noise=0.1)
    found.smooth["cond 2"] = found.smooth["cond 2"][:10]
    assert "cond 2" not in smoothed(found) and len(smoothed(found)) == 3


def test_skips_are_a_curve() -> None:
    interventions = [Intervention(f"skip {k}", k, skip=True) for k in (3, 4)]
    found = measured({"skip 3": np.zeros(9), "skip 4": np.full(9, 0.0)}, interventions)
    assert list(smoothed(found)) == ["skip 3", "skip 4"]


def test_calibrate_by_speed(tmp_path: Path) -> None:
    checkpoint = write_tiny(tmp_path)
    result = invoke("calibrate", checkpoint, *SMALL, "--min-speedup", 1.05, "--json")
    assert result.exception is None, result
    said = json.loads(result.stdout)
    target = load_profile(Path(said["profile"])).target
    assert target is not None and target.min_speedup == 1.05 and target.max_ms is None
    balanced = said["plans"]["balanced"]
    faster = balanced["exact_total_ms"] / balanced["total_ms"]
    assert said["satisfied"] == target.satisfied == (faster >= 1.05)
    assert "at least 1.05x end to end" in result.stderr and "minutes at most" in result.stderr
    stored = load_measurements(Path(said["measurements"]))
    assert stored.job.min_speedup == 1.05
    assert 1 <= len(stored.validation.frontier) <= 9
    again = invoke("solve", said["measurements"], "--max-ms", 1e6, "--json")
    assert again.exception is None, again
    assert json.loads(again.stdout)["plans"]["balanced"]["loss"] == 0
    report = Path(said["report"]).read_text()
    assert "target of 1.05x end to end" in report
