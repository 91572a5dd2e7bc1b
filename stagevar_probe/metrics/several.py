"""Several metrics at once: the first is reported, all are kept to a budget each."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from stagevar_runtime.errors import CalibrationError

from .clip_score import NAME, ClipScore
from .protocol import Items, Looking, Quality
from .quality import Likeness, scorer_beside

logger = logging.getLogger("stagevar_probe")

BETTER = (
    "quality is likeness to the exact path's picture (SSIM), for want of a scorer: it measures "
    "sameness, so that plans which draw another picture (stronger guidance, cooler sampling) look "
    "bad however good they are. Does the picture show the prompt? --metric clip-score asks that "
    "(pip install 'stagevar[metrics-net]'; its weights are fetched)"
)


class Several(Looking):
    """The first metric, with ``others`` beside it.

    What searches compare is the mean of all, each in units of its own ``budgets`` and brought to
    those of the first: where every loss keeps its budget, so does that mean.
    """

    def __init__(self, metrics: Sequence[Quality], budgets: Sequence[float]) -> None:
        self.first, self.others = metrics[0], tuple(metrics[1:])
        self.name, self.default_loss = self.first.name, self.first.default_loss
        self.weights = [budgets[0] / max(budget, 1e-9) / len(metrics) for budget in budgets]

    def score(self, images: Tensor, items: Items, exact: Tensor) -> Tensor:
        """The first metric's score."""
        return self.first.score(images, items, exact)

    def smooth(self, images: Tensor, items: Items, exact: Tensor) -> Tensor:
        """The mean of all in units of their budgets; no score, but its losses compare."""
        total = self.weights[0] * self.first.smooth(images, items, exact)
        for weight, other in zip(self.weights[1:], self.others, strict=True):
            total = total + weight * other.smooth(images, items, exact).to(total)
        return total


def fitting_metric(metric: str | None, checkpoint: Path, classes: int) -> str | Quality | None:
    """The metric where none was asked: for prompts CLIP score, where its weights are on the
    machine; a scorer beside the checkpoint comes first. Says what is used, and why."""
    if metric is not None or classes or scorer_beside(checkpoint):
        return metric
    try:
        found = ClipScore(fetch=False)
    except CalibrationError:
        logger.warning(BETTER)
        return Likeness.name
    logger.info("%s: scored by %s, whose weights are on this machine", checkpoint.name, NAME)
    return found


def find_metrics(
    names: str | None, checkpoint: Path, classes: int, budgets: Sequence[float], find: Find
) -> Quality:
    """One metric, or several (``clip-score+ssim-to-exact``) with a budget each.

    ``find``: what makes one metric of a name. Where ``budgets`` are fewer than metrics, the others
    have their own.

    Raises:
        CalibrationError: there are more budgets than metrics.
    """
    parts = [fitting_metric(names, checkpoint, classes)] if names is None else names.split("+")
    if len(budgets) > len(parts):
        raise CalibrationError(
            f"got {len(budgets)} budgets for {len(parts)} metrics, expected one for each at most"
        )
    found = [find(part) for part in parts]
    if len(found) == 1:
        return found[0]
    asked = [*budgets, *(metric.default_loss for metric in found[len(budgets) :])]
    made = Several(found, asked)
    made.features, made.reference = found[0].features, found[0].reference
    made.perceptual = found[0].perceptual
    return made


Find = Callable[[str | Quality | None], Quality]
