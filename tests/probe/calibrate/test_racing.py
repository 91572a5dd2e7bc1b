"""Who goes on in a race, and who is proved: by what they promise.

pytest tests/probe/calibrate/test_racing.py
"""

from __future__ import annotations

from stagevar_probe.calibrate.clock import Clock, default_seconds
from stagevar_probe.calibrate.racing import Raced, Standing, spread
from stagevar_probe.solve.candidates import Candidate


def raced(**standings: Standing) -> Raced:
    candidates = [Candidate(name, (), 1.0, 0.0) for name in standings]
    return Raced(candidates, {}, standings=dict(standings))


def test_a_promise_is_the_gain_times_the_chance() -> None:
    assert Standing(0.01, 0.005, 3.0).promise(0.01) == 1.0  # an even chance of twice as much
    assert Standing(0.0, 1e-9, 1.5).promise(0.01) == 0.5
    assert Standing(0.0, 1e-9, 4.0, worse=3.1).promise(0.01) == 0  # the distribution is worse
    sure, hopeful = Standing(0.0, 0.001, 1.3), Standing(0.012, 0.01, 2.5)
    assert hopeful.promise(0.01) > sure.promise(0.01)


def test_finalists_are_by_promise_and_apart_in_speed() -> None:
    found = raced(
        slow=Standing(0.0, 0.001, 1.5),
        good=Standing(0.005, 0.005, 2.3),
        twin=Standing(0.006, 0.005, 2.31),
        wild=Standing(0.1, 0.01, 5.0),
        slower=Standing(0.0, 0.001, 0.9),
    )
    assert [c.name for c in found.finalists(0.01)] == ["good", "slow"]


def test_the_fastest_rather_keeps_the_budget_than_not() -> None:
    found = raced(
        a=Standing(0.004, 0.01, 1.5), b=Standing(0.02, 0.01, 2.0), c=Standing(0.06, 0.01, 3.0)
    )
    best = {x: found.fastest(x) for x in (0.001, 0.005, 0.03, 0.1)}
    assert {x: c and c.name for x, c in best.items()} == {
        0.001: None,
        0.005: "a",
        0.03: "b",
        0.1: "c",
    }


def test_a_short_race_has_fewer_candidates_of_every_pace() -> None:
    every = [Candidate(str(ms), (), float(ms), 0.0) for ms in (50, 10, 40, 20, 30, 60, 70)]
    assert [c.ms for c in spread(every, 4)] == [70, 50, 30, 10]
    assert spread(every, 9) == every


def test_the_default_time_is_by_device_and_model() -> None:
    assert default_seconds("cpu", 0.001) == 180 == default_seconds("cuda", 0.001)
    assert default_seconds("cpu", 0.04) == 200 and default_seconds("cpu", 1.0) == 420
    assert default_seconds("cuda", 1.0) == 900


def test_a_clock_counts_what_was_spent_before() -> None:
    now = [100.0]
    clock = Clock(60.0, lambda: now[0])
    now[0] = 110.0
    assert clock.spent == 10 and clock.left(0.5) == 20
    clock.resume(25.0)
    clock.resume(5.0)  # less than is known
    assert clock.spent == 25
    now[0] = 115.0
    assert clock.spent == 30 and clock.left(1.0) == 30
