"""From measurements to a profile.

pytest tests/probe/calibrate/test_calibrated_profile.py
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from conftest import some_figures
from small_measurements import measured, solution

from stagevar_probe.calibrate.profile import (
    build_profile,
    estimate,
    scale_measurements,
    stages_of,
)
from stagevar_probe.intervals import Interval
from stagevar_probe.measure.validation import Validation
from stagevar_probe.observe.rank import ALPHA, ratio_name
from stagevar_probe.solve.build import steps_of
from stagevar_probe.solve.target import Target
from stagevar_runtime.model.sampling import Sampling
from stagevar_runtime.profile import dump_profile, parse_profile


def test_profile_round_trips_through_yaml() -> None:
    made = measured()
    made.validation = Validation({"balanced": some_figures(loss=Interval(0.003, -0.007, 0.013))})
    plans = {"balanced": steps_of(solution(drop=(2, "cool"), skip=(3, 4)), made), "fast": ()}
    profile = build_profile(made, plans, Target(0.01), True, "2026-11-22T22:37:00Z")
    again = parse_profile(dump_profile(profile))
    assert dump_profile(again) == dump_profile(profile)
    assert again.plans["balanced"].steps == plans["balanced"]
    expected = again.plans["balanced"].expected
    assert expected is not None
    assert (expected.speedup_loop, expected.speedup_total) == (2.0, 1.5)
    assert (expected.loss, expected.loss_ci95) == (0.003, (-0.007, 0.013))
    assert again.plans["fast"].expected is None
    assert again.target is not None and again.target.satisfied
    assert again.calibration is not None and again.calibration.hardware["batch"] == 2
    assert again.model.schedules == {"4x4": ((1, 1), (2, 2), (3, 3), (4, 4))}


def test_guidance_and_top_k_of_each_scale_survive_the_file() -> None:
    made = measured()
    sampling = Sampling(guidance=(1.0, 2.0, 3.0, 4.0), top_k=(1, 2, 3, 4))
    made.job = replace(made.job, sampling=sampling)
    profile = build_profile(made, {"balanced": ()}, Target(0.01), True, "now")
    calibration = parse_profile(dump_profile(profile)).calibration
    assert calibration is not None
    used = calibration.sampling_settings()
    assert (used["guidance"], used["top_k"]) == ((1, 2, 3, 4), (1, 2, 3, 4))


def test_scale_measurements() -> None:
    rows = scale_measurements(measured())
    assert [row.tokens for row in rows] == [1, 4, 9, 16]
    assert rows[3].ms is not None and rows[3].ms.value == 8.0  # both rows, full
    assert rows[3].ms.ci95 == (7.9, 8.1)
    assert rows[2].cfg_sensitivity is not None and rows[2].cfg_sensitivity.value == 0.2
    assert rows[2].cfg_effect is not None and rows[2].cfg_effect.value == pytest.approx(0.05)
    assert rows[1].cfg_sensitivity is None and rows[1].cfg_effect is None
    assert rows[3].rank_pca == (0.5, 0.5) and rows[0].rank_pca is None
    assert rows[3].effective_rank == (3.0, 3.0) and rows[3].stable_rank == (1.5, 1.5)


def test_group_means_are_in_the_order_of_groups() -> None:
    made = measured()
    for key, values in made.ranks.items():
        values[ratio_name(ALPHA)] = [float(key.group)]
    assert made.group_means(3, "svd", ratio_name(ALPHA)) == (0.0, 1.0)
    assert made.group_means(3, "svd", ratio_name(ALPHA), branch="null") is None


def test_estimates_and_stages() -> None:
    made = estimate([0.0, 1.0])
    assert made.value == 0.5 and made.ci95 is not None and made.ci95[0] < 0.5 < made.ci95[1]
    found = stages_of(measured())
    assert (found.structure, found.refinement) == (3, 3)  # .9 at scale 2 is below the plateau
    assert found.structure_interval == found.refinement_interval == (3, 3)
    assert found.semantic_evidence.startswith("semantic similarity (features) stays within")
