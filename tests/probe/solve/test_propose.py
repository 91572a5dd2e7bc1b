"""From measurements to a problem, to steps, to a profile.

pytest tests/probe/solve/test_propose.py
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from conftest import some_figures
from hypothesis import given, settings
from hypothesis import strategies as st

from stagevar_probe.calibrate.profile import (
    build_profile,
    estimate,
    scale_measurements,
    stages_of,
)
from stagevar_probe.intervals import Interval
from stagevar_probe.measure.costs import Costs
from stagevar_probe.measure.figures import Figures
from stagevar_probe.measure.interventions import PUBLISHED, Intervention, SearchSpace
from stagevar_probe.measure.measurements import Measurements
from stagevar_probe.measure.validation import Validation
from stagevar_probe.observe.rank import ALPHA, ratio_name
from stagevar_probe.solve.build import problem_from, steps_of
from stagevar_probe.solve.candidates import (
    RUNGS,
    UNCHANGED,
    WIDE,
    cooler,
    cooler_helps,
    field,
    stop_early,
)
from stagevar_probe.solve.milp import FULL, SKIP, Choice, Solution, solve
from stagevar_runtime.errors import CalibrationError
from stagevar_runtime.loop.plan import compile_plan
from stagevar_runtime.model.protocol import ModelInfo, ScaleSpec
from stagevar_runtime.model.sampling import Sampling
from stagevar_runtime.profile import PlanStep, TokenOption, dump_profile, parse_profile

SIDES = (1, 2, 3, 4)
TOKEN_COUNTS = (1, 4, 9, 16)  # 1 of 30 before scale 1, 5 before scale 2
SCALES = tuple(ScaleSpec(k, s, s, s * s) for k, s in enumerate(SIDES))
INFO = ModelInfo("var", 2, 64, 2, (range(0, 1), range(1, 2)), guidance="ramp")
SAMPLING = Sampling(guidance=2.0)
TOKENS = {"half": TokenOption(keep=0.5, select="norm", restore="cache", span="all")}
MENU = SearchSpace(
    {PUBLISHED: None, "constant 3": 3.0},
    {"cond": ("cond", None), "cool": ("cond", 0.6), "null": ("null", None)},
    TOKENS,
)
ARMS = [
    Intervention("constant 3", 0, "constant 3"),
    Intervention("cond from 2", 2, PUBLISHED, "cond"),
    Intervention("null from 2", 2, PUBLISHED, "null"),
    Intervention("joint", 2, "constant 3", "cool"),
    Intervention("half at 3", 3, tokens="half"),
    Intervention("skip from 3", 3, skip=True),
]
MS = {
    **{(k, rows, FULL): float(rows * (k + 1)) for k in range(4) for rows in (1, 2)},
    **{(3, rows, "half"): 2.5 * rows for rows in (1, 2)},
}


def measured(**values: list[float]) -> Measurements:
    losses = {
        "exact": [1.0, 0.8],
        "constant 3": [1.0, 0.9],
        "cond from 2": [0.9, 0.8],
        "null from 2": [0.5],  # given up
        "joint": [1.0, 0.76],
        "half at 3": [0.9, 0.88],
        "skip from 3": [0.6, 0.6],
    }
    curve = [[0.1, 0.5, 0.9, 1.0], [0.1, 0.6, 0.9, 1.0]]
    return Measurements(
        job={
            "checkpoint": "m.pth",
            "family": "var",
            "architecture": "sha256:" + "a" * 64,
            "weights": "sha256:" + "b" * 64,
            "schedule_name": "4x4",
            "scales": [[s, s, s * s] for s in SIDES],
            "groups": [[0, 1], [1, 2]],
            "inputs": {
                "name": "balanced-labels",
                "sha256": "sha256:" + "c" * 64,
                "count": 2,
                "held_out": 2,
            },
            "seed": 0,
            "batch": 2,
            "sampling": {"guidance": 2.0, "temperature": 1.0, "top_k": 20, "top_p": 0.95},
            "metric": "agreement",
            "max_loss": 0.01,
            "dtype": "float32",
            "hardware": {"device": "cpu", "threads": 1},
            "version": "0.1.0",
        },
        space=MENU,
        interventions=ARMS,
        smooth=losses | values,
        sensitivity={2: {"cond": [0.1, 0.3]}},
        ranks=[
            {"scale": 3, "group": g, "branch": "cond", "centring": c, "values": row}
            for g in (1, 0)
            for c in ("pca", "svd")
            for row in [
                {
                    ratio_name(ALPHA): [0.25, 0.75] if g else [0.5, 0.5],
                    "effective_rank": [2.0, 4.0],
                    "stable_rank": [1.0, 2.0],
                }
            ]
        ],
        semantic=curve,
        structural=curve,
        costs=Costs(MS, {cell: 0.1 for cell in MS}, 5.0, 2, 3),
    )


def test_problem_holds_the_mean_loss_of_every_finished_arm() -> None:
    problem = problem_from(measured(), 0.02)
    assert problem.budget == 0.02 and problem.scales == 4 and problem.ms == MS
    assert problem.drop_loss == {(2, "cond"): pytest.approx(0.05)}  # null was given up
    assert problem.schedules == {PUBLISHED: 0.0, "constant 3": pytest.approx(-0.05)}
    assert problem.joint_loss == {("constant 3", 2, "cool"): pytest.approx(0.02)}
    assert problem.token_loss == {(3, "half"): pytest.approx(0.01)}
    assert problem.skip_loss == {(3, 4): pytest.approx(0.3)}


def test_joint_losses_go_with_a_schedule_that_was_given_up() -> None:
    problem = problem_from(measured(**{"constant 3": [0.1]}), 0.02)
    assert problem.joint_loss == {} and list(problem.schedules) == [PUBLISHED]


def test_no_costs() -> None:
    made = measured()
    made.costs = None
    with pytest.raises(CalibrationError, match="no costs"):
        problem_from(made, 0.1)


def solution(schedule=PUBLISHED, drop=None, skip=None, tokens: dict[int, str] | None = None):
    choices = []
    for k in range(4):
        if skip is not None and skip[0] <= k < skip[1]:
            choices.append(Choice(k, "skip", SKIP, 0, SKIP, 0.0))
            continue
        gone = drop is not None and k >= drop[0]
        guidance, rows = (drop[1], 1) if gone else (FULL, 2)
        choices.append(Choice(k, "full", guidance, rows, (tokens or {}).get(k, FULL), 1.0))
    return Solution(
        tuple(choices), schedule, drop, (skip,) if skip else (), None, 1.0, 2.0, 0.0, 0.1
    )


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(list(MENU.schedules)),
    st.none() | st.tuples(st.integers(1, 3), st.sampled_from(list(MENU.variants))),
    st.none() | st.sampled_from([(k, j) for k in (1, 2, 3) for j in range(k + 1, 5)]),
    st.sets(st.integers(1, 3)),
)
def test_steps_mean_what_the_solution_says(schedule, drop, skip, reduced) -> None:
    if drop and skip is not None and skip[0] <= drop[0] < skip[1]:
        drop = None
    chosen = solution(schedule, drop, skip, dict.fromkeys(reduced, "half"))
    steps = steps_of(chosen, measured())
    plan = compile_plan(steps, INFO, SCALES, SAMPLING)
    exact = compile_plan((), INFO, SCALES, SAMPLING)
    for choice, step, published in zip(chosen.choices, plan, exact, strict=True):
        assert step.run == choice.run
        if choice.run == "skip":
            continue
        if len(step.branches) != choice.rows:  # a ramp's first scale: null has no weight there
            assert step.branches == ("cond",) and (schedule, choice.scale) == (PUBLISHED, 0)
            continue
        assert step.reduced == (choice.tokens == "half")
        if choice.rows == 2:
            constant = schedule != PUBLISHED
            assert step.weights == ((3.0, -2.0) if constant else published.weights)
            assert step.temperature == 1.0
        else:
            branch, temperature = MENU.variants[choice.guidance]
            assert step.branches == (branch,)
            assert step.temperature == (temperature or 1.0)
    # what does not need saying is not said
    assert len(steps) == len({s.scale for s in steps})
    assert all(step != PlanStep(scale=step.scale) for step in steps)
    if (schedule, drop, skip) == (PUBLISHED, None, None) and not reduced:
        assert steps == ()


def test_a_dropped_branch_is_said_once() -> None:
    steps = steps_of(solution(drop=(1, "null"), tokens={3: "half"}), measured())
    assert steps == (PlanStep(scale=1, guidance="null"), PlanStep(scale=3, tokens=TOKENS["half"]))
    cool = steps_of(solution(drop=(2, "cool")), measured())
    assert [(s.guidance, s.temperature) for s in cool] == [("cond", 0.6), (None, 0.6)]


def test_part_of_the_tokens_is_guided_at_every_scale_where_guidance_is_left() -> None:
    made = measured(guided=[0.999, 0.799], **{"skip from 3": [0.5, 0.5]})
    made.space = replace(MENU, parts={"guided 0.2": {2: 0.5, 3: 0.25}})
    made.interventions = [*ARMS[1:3], Intervention("guided", 2, part="guided 0.2")]
    assert made.costs is not None
    part = {(k, 2, "guided 0.2"): 1.2 * (k + 1) for k in (2, 3)}
    made.costs = replace(made.costs, ms={**MS, **part})
    problem = problem_from(made, 0.002)
    assert problem.part_loss == {"guided 0.2": pytest.approx(0.001)}
    assert problem.apart == {"null"}
    best = solve(problem, 0.002)
    both = (PlanStep(scale=2, null_keep=0.5), PlanStep(scale=3, null_keep=0.25))
    assert best.part == "guided 0.2" and steps_of(best, made) == both
    dropped = solve(problem, 1.0)
    assert dropped.drop == (2, "cond") and dropped.part is None


def test_a_solved_problem_becomes_steps() -> None:
    made = measured()
    best = solve(problem_from(made, 0.02), 0.02)
    assert best.schedule == "constant 3" and best.drop == (2, "cool")
    assert compile_plan(steps_of(best, made), INFO, SCALES, SAMPLING)[2].branches == ("cond",)


def test_profile_round_trips_through_yaml() -> None:
    made = measured()
    made.validation = Validation({"balanced": some_figures(loss=Interval(0.003, -0.007, 0.013))})
    plans = {"balanced": steps_of(solution(drop=(2, "cool"), skip=(3, 4)), made), "fast": ()}
    profile = build_profile(made, plans, 0.01, True, "0.1.0", "2026-11-22T22:37:00Z")
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
    made.job["sampling"] |= {"guidance": [1.0, 2.0, 3.0, 4.0], "top_k": [1, 2, 3, 4]}
    profile = build_profile(made, {"balanced": ()}, 0.01, True, "0.1.0", "now")
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
    for row in made.ranks:
        row["values"][ratio_name(ALPHA)] = [float(row["group"])]
    assert made.group_means(3, "svd", ratio_name(ALPHA)) == (0.0, 1.0)
    assert made.group_means(3, "svd", ratio_name(ALPHA), branch="null") is None


def test_estimates_and_stages() -> None:
    made = estimate([0.0, 1.0])
    assert made.value == 0.5 and made.ci95 is not None and made.ci95[0] < 0.5 < made.ci95[1]
    found = stages_of(measured())
    assert 0 <= found.structure <= found.refinement <= 3


def test_the_race_has_plans_with_and_without_another_guidance() -> None:
    candidates = field(measured(), 0.02)
    assert [c.ms for c in candidates] == sorted((c.ms for c in candidates), reverse=True)
    assert len({c.steps for c in candidates}) == len(candidates) <= WIDE + UNCHANGED + 2 * RUNGS
    assert all(c.steps for c in candidates)
    changed = [any(s.guidance_scale is not None for s in c.steps) for c in candidates]
    assert any(changed) and not all(changed)
    unchanged = [c for c, other in zip(candidates, changed, strict=True) if not other]
    assert PlanStep(scale=3, tokens=MENU.tokens["half"]) in [c.steps[-1] for c in unchanged]


def test_the_race_has_plans_that_a_lucky_faster_one_would_hide() -> None:
    """Half the tokens at scale 3 seem free, and hide the drop that costs something."""
    made = measured(**{"half at 3": [1.0, 0.8], "cond from 2": [1.0, 0.79]})
    made.space = replace(MENU, schedules={PUBLISHED: None})
    made.interventions = [
        intervention for intervention in ARMS if intervention.schedule == PUBLISHED
    ]
    made.costs = replace(made.costs, ms={**MS, (3, 2, "half"): 1.0, (3, 1, "half"): 1.0})
    drop = (PlanStep(scale=2, guidance="cond"),)
    seen = [c.steps for c in field(made, 0.02)]
    assert drop in seen and any(s.tokens for steps in seen for s in steps)


def test_the_race_is_sampled_cooler_where_that_suits() -> None:
    made = measured()
    warm, cool = field(made, 0.02), field(made, 0.02, cool=True)
    assert {c.steps for c in cool} == {cooler(c.steps, TOKEN_COUNTS, 1.0) for c in warm}

    def figures(kid: float, loss: float) -> Figures:
        lost = Interval(loss, loss, loss)
        return some_figures(kid_loss=Interval(kid, kid - 9, kid + 9), loss=lost, smooth_loss=lost)

    assert cooler_helps(figures(-5.0, 0.01), 0.02) and not cooler_helps(figures(5.0, 0.0), 0.02)
    assert not cooler_helps(figures(-5.0, 0.011), 0.02)
    assert not cooler_helps(some_figures(), 0.02)


def test_cooler_begins_after_a_twentieth_of_the_tokens() -> None:
    assert cooler((), TOKEN_COUNTS, 0.5) == tuple(
        PlanStep(scale=k, temperature=0.15) for k in (2, 3)
    )
    own = (
        PlanStep(scale=1, guidance="cond", temperature=0.4),
        PlanStep(scale=2, run="skip"),
        PlanStep(scale=3, guidance_scale=3.0),
    )
    assert cooler(own, TOKEN_COUNTS, 0.5) == (
        *own[:2],
        PlanStep(scale=3, guidance_scale=3.0, temperature=0.15),
    )


def test_hopeless_needs_three_standard_errors() -> None:
    def figures(loss: float, kid: float) -> Figures:
        around = {"smooth_loss": (loss, 0.04), "kid_loss": (kid, 100.0)}
        found = {name: Interval(m, m - half, m + half) for name, (m, half) in around.items()}
        return some_figures(**found)

    assert not stop_early(figures(0.08, 140.0), 0.01)  # the loosest budget is 0.03
    assert stop_early(figures(0.1, 0.0), 0.01) and stop_early(figures(0.0, 160.0), 0.01)
    assert not stop_early(some_figures(smooth_loss=Interval(0.08, 0.04, 0.12)), 0.01)
