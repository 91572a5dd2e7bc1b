"""Which plans are tried on fresh images.

pytest tests/probe/solve/test_candidates.py
"""

from __future__ import annotations

from dataclasses import replace

from conftest import some_figures
from small_measurements import ARMS, MENU, MS, TOKEN_COUNTS, measured

from stagevar_probe.intervals import Interval
from stagevar_probe.measure.figures import Figures
from stagevar_probe.measure.interventions import PUBLISHED
from stagevar_probe.solve.candidates import (
    RUNGS,
    UNCHANGED,
    WIDE,
    cooler,
    cooler_helps,
    propose_candidates,
)
from stagevar_runtime.profile import PlanStep


def test_the_race_has_plans_with_and_without_another_guidance() -> None:
    candidates = propose_candidates(measured(), 0.02)
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
    seen = [c.steps for c in propose_candidates(made, 0.02)]
    assert drop in seen and any(s.tokens for steps in seen for s in steps)


def test_the_race_is_sampled_cooler_where_that_suits() -> None:
    made = measured()
    warm, cool = propose_candidates(made, 0.02), propose_candidates(made, 0.02, cool=True)
    assert {c.steps for c in cool} == {cooler(c.steps, TOKEN_COUNTS, 1.0) for c in warm}

    def figures(kid: float, loss: float) -> Figures:
        lost = Interval(loss, loss, loss)
        return some_figures(kid_loss=Interval(kid, kid - 9, kid + 9), loss=lost, smooth_loss=lost)

    assert cooler_helps(figures(-5.0, 0.01), 0.02) and not cooler_helps(figures(5.0, 0.0), 0.02)
    assert cooler_helps(figures(4.0, 0.0), 0.02)  # within a standard error of nothing
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
