"""What the inputs of a proof show of a plan: by metric, by kind of prompts.

pytest tests/probe/validate/test_evidence.py
"""

from __future__ import annotations

import json

import numpy as np
import pytest

from stagevar_probe.datasets.supply import supply
from stagevar_probe.measure.validation import Evidence
from stagevar_probe.validate.evidence import evidence_of, losses_by_tag, losses_of
from stagevar_probe.validate.run import Batch, Observed
from stagevar_probe.validate.table import evidence_lines
from stagevar_probe.validate.verdict import UNPROVEN, Budget

PROMPTS = ("a cat", "two cats", "a red cat", "a blue cat")
TAGS = {"a cat": "single", "two cats": "counting", "a red cat": "colors", "a blue cat": "colors"}
DRAWS = supply("p", PROMPTS, "proof", 0)
BUDGET = Budget("scenes", 0.01)


def observed(score: np.ndarray, other: np.ndarray) -> Observed:
    ones = [1.0] * len(score)
    return Observed(
        score=score.tolist(),
        smooth=score.tolist(),
        features=[],
        psnr=ones,
        ssim=ones,
        transformer=1.0,
        loop=1.0,
        decode=1.0,
        scales=[1.0],
        beside={"sameness": other.tolist()},
    )


def seen(batches: int, counting: float = 0.0, sameness: float = 1.0) -> list:
    """Batches of 16 in which the plan fails a share of the counting prompts."""
    rng, out = np.random.default_rng(0), []
    for i in range(batches):
        part = DRAWS.part(16 * i, 16)
        fails = np.array([TAGS[str(item)] == "counting" for item in part.items])
        own = 1.0 - (fails & (rng.random(16) < counting))
        batch: Batch = {
            "exact": observed(np.ones(16), np.ones(16)),
            "plan": observed(own, np.full(16, sameness)),
        }
        out.append((part, batch))
    return out


def test_a_plan_that_loses_nothing_is_shown_to_once_inputs_are_enough() -> None:
    few, many = (evidence_of(seen(n), "plan", [BUDGET], 2.05) for n in (4, 20))
    assert few.verdict == UNPROVEN and many.verdict is True
    assert few.inputs == 64 and few.more is not None and few.more > 64
    assert many.more is None and few.keeps


def test_every_budget_counts() -> None:
    budgets = [BUDGET, Budget("sameness", 0.05)]
    kept = evidence_of(seen(20, sameness=0.97), "plan", budgets, 2.05)
    broken = evidence_of(seen(20, sameness=0.9), "plan", budgets, 2.05)
    assert kept.verdict is True and broken.verdict is False and not broken.keeps
    assert broken.budgets[1].bounds.mean == pytest.approx(0.1)
    assert "sameness" in evidence_lines(broken)[1]


def test_losses_by_kind_and_the_kind_that_loses_is_named() -> None:
    batches = seen(40, counting=0.4)
    by_tag = losses_by_tag(batches, "plan", TAGS)
    assert {tag: len(losses) for tag, losses in by_tag.items()} == {
        "single": 160,
        "counting": 160,
        "colors": 320,
    }
    found = evidence_of(batches, "plan", [BUDGET], 2.05, tags=TAGS)
    assert found.named == ("counting",)
    assert found.tags["single"].mean == 0 and 0.3 < found.tags["counting"].mean < 0.5
    assert any("counting prompts" in line for line in evidence_lines(found))


def test_a_budget_of_one_kind_is_held_against_that_kind() -> None:
    batches = seen(40, counting=0.03)
    loose = evidence_of(
        batches, "plan", [BUDGET, Budget("scenes", 0.2, "counting")], 2.05, tags=TAGS
    )
    tight = evidence_of(
        batches, "plan", [BUDGET, Budget("scenes", 0.0, "counting")], 2.05, tags=TAGS
    )
    assert loose.verdict is True and tight.verdict is not True
    nobody = evidence_of(batches, "plan", [BUDGET, Budget("scenes", 0.2, "emoji")], 2.05, tags=TAGS)
    assert nobody.verdict == UNPROVEN  # there was no such prompt


def test_evidence_goes_into_a_file_and_back() -> None:
    found = evidence_of(seen(20, 0.1), "plan", [BUDGET], 2.05, tags=TAGS)
    assert Evidence.parse(json.loads(json.dumps(found.dump()))) == found
    batches = [batch for _, batch in seen(2, sameness=0.9)]
    assert losses_of(batches, "plan", "sameness") == pytest.approx(np.full(32, 0.1))
