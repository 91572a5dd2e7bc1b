"""Several metrics with a budget each, and the one that is used where none is asked.

pytest tests/probe/metrics/test_several.py
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stagevar_probe.metrics import several
from stagevar_probe.metrics.protocol import Looking, Quality
from stagevar_probe.metrics.quality import Likeness
from stagevar_probe.metrics.several import BETTER, find_metrics, fitting_metric
from stagevar_runtime.errors import CalibrationError

PICTURES = torch.zeros(2, 3, 8, 8)


class Fixed(Looking):
    """Always the same score."""

    def __init__(self, name: str, value: float, budget: float) -> None:
        self.name, self.value, self.default_loss = name, value, budget

    def score(self, images, items, exact):
        return torch.full((len(images),), self.value)

    smooth = score


def find(part: str | Quality | None) -> Quality:
    return {"a": Fixed("a", 0.8, 0.01), "b": Fixed("b", 0.5, 0.1)}[str(part)]


def test_one_metric_is_itself() -> None:
    found = find_metrics("a", Path("x"), 0, (), find)
    assert found.name == "a" and found.others == ()


def test_searches_compare_losses_in_units_of_their_budgets() -> None:
    found = find_metrics("a+b", Path("x"), 0, (0.02,), find)
    assert found.name == "a" and [other.name for other in found.others] == ["b"]
    assert found.score(PICTURES, ("p", "q"), PICTURES).tolist() == pytest.approx([0.8, 0.8])
    # half of each: b's own budget of .1 counts as the .02 that was asked of a
    smooth = found.smooth(PICTURES, ("p", "q"), PICTURES)
    assert smooth.tolist() == pytest.approx([0.4 + 0.5 * 0.2 / 2] * 2)


def test_budgets_are_for_metrics_that_are_there() -> None:
    with pytest.raises(CalibrationError, match="got 3 budgets for 2 metrics"):
        find_metrics("a+b", Path("x"), 0, (0.1, 0.1, 0.1), find)


def test_without_clip_on_the_machine_sameness_is_said_to_be_sameness(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def nothing(**_: object) -> None:
        raise CalibrationError("no CLIP here")

    monkeypatch.setattr(several, "ClipScore", nothing)
    assert fitting_metric(None, Path("infinity.pth"), 0) == Likeness.name
    assert BETTER in caplog.text and "--metric clip-score" in BETTER


def test_with_clip_on_the_machine_prompts_are_scored_by_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clip = Fixed("clip", 0.3, 0.003)
    monkeypatch.setattr(several, "ClipScore", lambda fetch: clip)
    assert fitting_metric(None, Path("infinity.pth"), 0) is clip
    assert fitting_metric(None, Path("var.pth"), 1000) is None  # labels are no prompts
    assert fitting_metric("a", Path("infinity.pth"), 0) == "a"
