"""Run with: pytest tests/probe/solve/test_solve.py"""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stagevar_probe.solve.milp import (
    FULL,
    Problem,
    exact_plan,
    frontier,
    least_loss_per_speed,
    solve,
)
from stagevar_probe.solve.problem import FEWER_BITS
from stagevar_runtime.errors import CalibrationError


def sets_apart(spans):
    """Every set of spans of which none touch."""
    sets = [()]
    for span in sorted(spans):
        sets += [(*others, span) for others in sets if all(end < span[0] for _, end in others)]
    return sets


def brute(problem, budget):
    """(ms, raw loss) of the best plan."""
    plans = [(ms, raw) for ms, loss, raw in every_plan(problem) if loss <= budget]
    return min(plans, default=None)


def every_plan(problem):
    """(ms, counted loss, raw loss) of all plans, written from METHODS section 4."""
    drops = {(k, v) for k, v in problem.drop_loss} | {(k, v) for _, k, v in problem.joint_loss}
    for schedule, drop, skips, part, bits in itertools.product(
        problem.schedules,
        [None, *drops],
        sets_apart(problem.skip_loss),
        [None, *problem.part_loss],
        [None, *problem.bits_loss],
    ):
        if part and drop and drop[1] in problem.apart:
            continue
        offset = problem.schedules[schedule]
        if drop is None:
            base = [offset]
        elif (schedule, *drop) in problem.joint_loss:
            base = [problem.joint_loss[(schedule, *drop)]]
        elif drop in problem.drop_loss:
            base = [offset, problem.drop_loss[drop]]
        else:
            continue
        run = [k for k in range(problem.scales) if not any(a <= k < b for a, b in skips)]
        if drop is not None and drop[0] not in run:
            continue
        base += [problem.skip_loss[skip] for skip in skips]
        base += [problem.part_loss[part]] if part else []
        base += [problem.bits_loss[bits]] if bits is not None else []
        rows = {k: 1 if problem.rows == 1 or (drop and k >= drop[0]) else 2 for k in run}
        menus = [
            [
                (cost, problem.token_loss.get((k, plain(t)), 0.0))
                for (at, r, t), cost in problem.ms.items()
                if at == k
                and r == rows[k]
                and t.endswith(FEWER_BITS) == (bits is not None and k >= bits)
                and allowed(problem, k, r, plain(t), part)
            ]
            for k in run
        ]
        for picks in itertools.product(*menus):
            raw = base + [x for _, x in picks]
            yield sum(c for c, _ in picks), sum(max(x, 0) for x in raw), sum(raw)


def plain(option):
    return option.removesuffix(FEWER_BITS)


def allowed(problem, k, rows, option, part):
    """Whether a scale that is run may have this option where ``part`` is guided."""
    if rows == 2 and any((k, 2, f"{part}{end}") in problem.ms for end in ("", FEWER_BITS)):
        return option == part
    return option == FULL or (k, option) in problem.token_loss


def random_problem(seed, scales, tokens=2):
    """Whole milliseconds and thousandths, so that budgets between them have no ties."""
    r = random.Random(seed)
    names = [FULL, *(f"keep{i}" for i in range(tokens))]

    def loss():
        return r.randint(-5, 30) / 1000

    ms, token_loss = {}, {}
    for k in range(scales):
        for name in names:
            double = r.randint(5, 60)
            if name == FULL or r.random() < 0.8:
                ms[k, 2, name] = double
                if name == FULL or r.random() < 0.8:
                    ms[k, 1, name] = r.randint(1, double)
            if name != FULL and r.random() < 0.8:
                token_loss[k, name] = loss()
    for name in ("guided few", "guided none", "not measured"):
        for k in range(r.randint(0, scales), scales):
            ms[k, 2, name] = r.randint(1, 40)
    for (k, rows, name), cost in list(ms.items()):
        if r.random() < 0.7:
            ms[k, rows, name + FEWER_BITS] = r.randint(1, cost + 2)
    pairs = [(k, v) for k in range(scales) for v in ("cond", "null") if r.random() < 0.7]
    return Problem(
        scales,
        ms,
        drop_loss={pair: loss() for pair in pairs},
        token_loss=token_loss,
        skip_loss={
            (k, j): loss()
            for k in range(scales)
            for j in range(k + 1, scales + 1)
            if r.random() < 0.4
        },
        schedules={"published": 0.0, "constant": loss(), "early": loss()},
        joint_loss={("constant", *pair): loss() for pair in pairs if r.random() < 0.5},
        part_loss={name: loss() for name in ("guided few", "guided none")},
        bits_loss={k: loss() for k in range(scales) if r.random() < 0.5},
        apart=frozenset({"null"}),
    )


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(-2, 60))
def test_equals_brute_force(seed, scales, budget):
    problem, limit = random_problem(seed, scales), budget / 1000 + 0.0005
    ours, best = solve(problem, limit), brute(problem, limit)
    if best is None:
        assert not ours.feasible and ours.choices == exact_plan(problem).choices
        return
    assert ours.feasible and ours.optimal
    assert ours.ms == pytest.approx(best[0])
    raw = raw_loss(problem, ours)
    assert raw == pytest.approx(best[1], abs=1e-7)
    assert ours.loss <= limit
    assert ours.ms == pytest.approx(sum(c.ms for c in ours.choices))
    assert ours.loss >= raw - 1e-12


def raw_loss(problem, plan):
    """Losses of a plan, from what the plan says and nothing else."""
    total = problem.schedules[plan.schedule]
    if plan.drop is not None:
        both = (plan.schedule, *plan.drop)
        added = total + problem.drop_loss.get(plan.drop, 0)
        total = problem.joint_loss.get(both, added)
    total += sum(problem.skip_loss[skip] for skip in plan.skips)
    total += problem.part_loss.get(plan.part, 0)
    total += problem.bits_loss.get(plan.bits, 0)
    return total + sum(
        problem.token_loss[c.scale, c.option]
        for c in plan.choices
        if c.option not in (FULL, "skip", plan.part)
    )


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 6))
def test_plans_are_ordered_as_the_engine_needs(seed, scales):
    problem = random_problem(seed, scales)
    for plan in frontier(problem, 5):
        assert [c.scale for c in plan.choices] == list(range(scales))
        for c in plan.choices:
            gone = plan.drop is not None and c.scale >= plan.drop[0]
            skipped = any(start <= c.scale < stop for start, stop in plan.skips)
            assert c.rows == (0 if skipped else 1 if gone else 2)
            assert c.run == ("skip" if skipped else "full")
            assert c.guidance == ("skip" if skipped else plan.drop[1] if gone else "full")


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_frontier_is_not_dominated_and_reaches_both_ends(seed):
    problem = random_problem(seed, 3)
    plans = frontier(problem, 6)
    assert 1 <= len(plans) <= 6
    for slow, fast in itertools.pairwise(plans):
        assert slow.ms > fast.ms and slow.loss < fast.loss
    assert plans[0].ms == pytest.approx(brute(problem, 0.0005)[0])
    assert plans[-1].ms == pytest.approx(brute(problem, math.inf)[0])
    for plan in plans:
        assert plan.ms == pytest.approx(brute(problem, plan.loss + 0.0005)[0])


def small(**changes):
    base = Problem(
        scales=3,
        ms={
            (k, r, t): (k + 1) * r * 10 * s
            for k in range(3)
            for r in (1, 2)
            for t, s in ((FULL, 1.0), ("half", 0.5))
        },
        drop_loss={(1, "cond"): 0.02, (2, "cond"): 0.004, (2, "null"): 0.001, (1, "null"): 0.05},
        token_loss={(2, "half"): 0.008},
        skip_loss={(2, 3): 0.1},
    )
    return replace(base, **changes)


def test_a_plan_read_by_hand():
    assert solve(small(), 0).ms == small().exact_ms == 120
    plan = solve(small(), 0.01)  # dropping at 2 (null) saves 30 for .001, and half 15 more for .008
    assert (plan.drop, plan.choices[2].tokens, plan.ms) == ((2, "null"), "half", 75)
    assert plan.loss == pytest.approx(0.009) and plan.speedup == pytest.approx(1.6)
    skip = solve(small(), 1.0)
    assert (skip.skips, skip.drop, skip.choices[2].rows) == (((2, 3),), (1, "cond"), 0)


def test_skips_that_touch_are_not_added_up():
    problem = small(skip_loss={(0, 1): 0.001, (1, 2): 0.001}, drop_loss={}, token_loss={})
    assert solve(problem, 0.01).skips == ((1, 2),)  # 40 of 120 saved; both together: unknown
    known = replace(problem, skip_loss={**problem.skip_loss, (0, 2): 0.009})
    assert solve(known, 0.01).skips == ((0, 2),)
    apart = replace(problem, skip_loss={(0, 1): 0.001, (2, 3): 0.001})
    assert solve(apart, 0.01).skips == ((0, 1), (2, 3))


def test_options_without_a_measured_loss_are_never_used():
    plan = solve(small(), 100)
    assert all(c.tokens in (FULL, "skip") for c in plan.choices)  # half has a loss at scale 2 only


def test_gains_are_not_spent():
    problem = small(skip_loss={}, drop_loss={}, token_loss={(0, "half"): -0.05, (2, "half"): 0.04})
    assert solve(problem, 0.0).choices[0].tokens == "half"
    assert solve(problem, 0.0).choices[2].tokens == FULL
    assert solve(problem, 0.0).loss == 0


def test_a_better_schedule_of_the_same_cost_is_preferred():
    plan = solve(small(schedules={"published": 0.0, "constant": -0.02}), 0.0)
    assert plan.schedule == "constant" and plan.ms == 120


def test_a_gain_of_the_schedule_pays_for_no_unmeasured_drop():
    better = small(schedules={"published": 0.0, "constant": -0.02})
    assert solve(better, 0.0).drop is None
    measured = replace(better, joint_loss={("constant", 1, "cond"): 0.0})
    assert solve(measured, 0.0).drop == (1, "cond")


def test_joint_losses_replace_the_sum():
    cheap = small(
        schedules={"published": 0.0, "constant": -0.01},
        joint_loss={("constant", 0, "cond@0.6"): 0.003},
    )
    plan = solve(cheap, 0.005)
    assert plan.schedule == "constant" and plan.drop == (0, "cond@0.6") and plan.ms == 60


def test_infeasible_gives_the_exact_path_flagged():
    plan = solve(small(), -0.001)
    assert not plan.feasible and plan.ms == 120 and plan.speedup == 1


def test_unguided_models_have_one_row():
    ms = {(k, 1, t): 10.0 / (1 + (t != FULL)) for k in range(3) for t in (FULL, "half")}
    problem = Problem(3, ms, token_loss={(2, "half"): 0.001}, skip_loss={(2, 3): 0.2})
    plan = solve(problem, 0.01)
    assert plan.ms == 25 and [c.guidance for c in plan.choices] == [FULL] * 3


def tabulate(problem, thousandths):
    """Least milliseconds by dynamic programming over whole thousandths of loss."""

    def units(*losses):
        return sum(max(0, round(x * 1000)) for x in losses)

    best = math.inf
    drops = {(k, v) for k, v in problem.drop_loss} | {(k, v) for _, k, v in problem.joint_loss}
    for name, drop, skips in itertools.product(
        problem.schedules, [None, *drops], sets_apart(problem.skip_loss)
    ):
        run = [k for k in range(problem.scales) if not any(a <= k < b for a, b in skips)]
        if drop is not None and drop[0] not in run:
            continue
        start = units(*(problem.skip_loss[skip] for skip in skips))
        if drop is not None and (name, *drop) in problem.joint_loss:
            start += units(problem.joint_loss[(name, *drop)])
        else:
            start += units(problem.schedules[name], problem.drop_loss[drop] if drop else 0.0)
        if start > thousandths:
            continue
        least = np.full(thousandths + 1, math.inf)  # by loss spent so far
        least[start] = 0
        for k in run:
            rows = 1 if drop is not None and k >= drop[0] else 2
            after = np.full_like(least, math.inf)
            for (at, r, t), ms in problem.ms.items():
                if at != k or r != rows or (t != FULL and (k, t) not in problem.token_loss):
                    continue
                step = 0 if t == FULL else units(problem.token_loss[k, t])
                if step <= thousandths:
                    moved = least[: len(least) - step] + ms
                    after[step:] = np.minimum(after[step:], moved)
            least = after
        best = min(best, float(least.min()))
    return best


@pytest.mark.parametrize("seed", range(6))
def test_real_sizes_equal_dynamic_programming(seed):
    problem = random_problem(seed, 10, tokens=8)
    tokens = {key: abs(x) + 0.003 for key, x in problem.token_loss.items()}
    drops = {key: abs(x) + 0.005 * (10 - key[0]) for key, x in problem.drop_loss.items()}
    problem = replace(
        problem,
        token_loss=tokens,
        drop_loss=drops,
        joint_loss={},
        part_loss={},
        bits_loss={},
        skip_loss={(9, 10): 0.05, (6, 8): 0.03, (3, 4): 0.01, (4, 5): 0.01},
    )
    for budget in (30, 60):
        plan = solve(problem, budget / 1000 + 0.0005)
        assert plan.optimal and plan.ms == pytest.approx(tabulate(problem, budget))


@pytest.mark.parametrize(
    "changes",
    [
        {"ms": {(0, 2, FULL): 1.0}},
        {"drop_loss": {(9, "cond"): 0.1}},
        {"joint_loss": {("unknown", 1, "cond"): 0.1}},
        {"skip_loss": {(1, 2): math.nan}},
        {"skip_loss": {(1, 9): 0.1}},
        {"schedules": {}},
        {"ms": {(k, 1, FULL): 1.0 for k in range(3)}},
    ],
)
def test_refuses(changes):
    with pytest.raises(CalibrationError):
        small(**changes)


def test_refuses_too_few_points():
    with pytest.raises(CalibrationError):
        frontier(small(), 1)


def test_a_frontier_ends_at_the_loss_it_is_given():
    whole, bounded = frontier(small(), 5), frontier(small(), 5, max_loss=0.03)
    assert max(plan.loss for plan in whole) > 0.03 >= max(plan.loss for plan in bounded)
    assert bounded[-1].ms == solve(small(), 0.03).ms


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 3))
def test_a_ladder_has_the_least_loss_of_every_pace(seed, rungs, scales):
    problem, limit = random_problem(seed, scales), 0.0405
    plans = [(ms, loss) for ms, loss, _ in every_plan(problem) if loss <= limit]
    if not plans:
        assert not least_loss_per_speed(problem, rungs, limit)
        return
    edges = np.geomspace(problem.exact_ms, max(min(plans)[0], problem.exact_ms / 1000), rungs + 1)
    edges[-1] = 0
    want = []
    for slow, fast in itertools.pairwise(edges):
        here = [loss for ms, loss in plans if fast <= ms < slow * (1 - 1e-4)]
        want += [min(here)] if here else []
    found = least_loss_per_speed(problem, rungs, limit)
    assert [plan.loss for plan in found] == pytest.approx(want, abs=1e-9)
    assert found == sorted(found, key=lambda plan: -plan.ms)
