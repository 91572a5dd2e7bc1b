"""From measurements to a problem, and from its solution to steps.

pytest tests/probe/solve/test_build.py
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_measurements import ARMS, INFO, MENU, MS, SAMPLING, SCALES, TOKENS, measured, solution

from stagevar_probe.measure.interventions import PUBLISHED, Intervention
from stagevar_probe.measure.measurements import Measurements
from stagevar_probe.solve.build import problem_from, steps_of
from stagevar_probe.solve.milp import solve
from stagevar_probe.solve.problem import FEWER_BITS, FULL
from stagevar_runtime.errors import CalibrationError
from stagevar_runtime.loop.plan import compile_plan
from stagevar_runtime.profile import PlanStep


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


def in_8_bits(begins: int) -> Measurements:
    """With products in int8 from scale 2 and from scale 3 on, at half the time."""
    made = measured(**{"int8 from 2": [0.98, 0.78], "int8 from 3": [1.0, 0.79]})
    made.space = replace(MENU, precision="int8")
    made.interventions = [
        *ARMS,
        *(Intervention(f"int8 from {k}", k, precision="int8") for k in (2, 3) if k >= begins),
    ]
    assert made.costs is not None
    whole = {(k, rows, "int8"): ms / 2 for (k, rows, name), ms in MS.items() if name == FULL}
    made.costs = replace(made.costs, ms=MS | whole)
    return made


def test_options_gain_by_fewer_bits_what_whole_scales_gain() -> None:
    problem = problem_from(in_8_bits(2), 0.02)
    assert problem.bits_loss == {2: pytest.approx(0.02), 3: pytest.approx(0.005)}
    assert problem.ms[3, 1, "half" + FEWER_BITS] == MS[3, 1, "half"] / 2
    assert problem.ms[2, 2, FULL + FEWER_BITS] == MS[2, 2, FULL] / 2


def test_fewer_bits_are_chosen_where_they_fit_and_said_in_the_steps() -> None:
    made = in_8_bits(2)
    made.interventions = [a for a in made.interventions if a.precision]
    generous = solve(problem_from(made, 0.03))
    assert steps_of(generous, made) == (
        PlanStep(scale=2, precision="int8"),
        PlanStep(scale=3, precision="int8"),
    )
    assert generous.ms == sum(MS[k, 2, FULL] for k in (0, 1)) + (6 + 8) / 2
    careful = solve(problem_from(made, 0.01))
    assert steps_of(careful, made) == (PlanStep(scale=3, precision="int8"),)
    assert steps_of(solve(problem_from(made, 0.0)), made) == ()


def test_a_skipped_scale_has_no_precision() -> None:
    chosen = solution(skip=(3, 4))
    late = [replace(c, tokens=c.tokens + FEWER_BITS) if c.scale == 2 else c for c in chosen.choices]
    steps = steps_of(replace(chosen, choices=tuple(late)), in_8_bits(2))
    assert steps == (PlanStep(scale=2, precision="int8"), PlanStep(scale=3, run="skip"))


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
