"""How good a picture is: one score per image, and features for the distribution of many.

Six metrics: agreement of a classifier with the asked class, where a scorer file lies beside the
checkpoint (``model.scorer.safetensors``); a rule for scenes of coloured shapes; retrieval among the
real pictures of an archive; CLIP score for prompts; a user's own ``module:function``; and, where
nothing is known, likeness to the exact path's image (SSIM, no network).
"""

from __future__ import annotations

import copy
import importlib
import logging
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from stagevar_runtime.errors import CalibrationError, one_line

from .classifier import Scorer, load_scorer
from .features import find_features, scorer_features, with_reference
from .images import ssim
from .perceptual import find_perceptual
from .protocol import Items, Looking, Quality

logger = logging.getLogger("stagevar_probe")


BUILT_IN = ("agreement", "scenes", "ssim-to-exact", "clip-score")  # what a file may name


class Agreement(Looking):
    """Does a classifier see the asked class? ``smooth`` is the probability it gives that class."""

    name = "agreement"
    default_loss = 0.01

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer
        self.features = scorer_features(scorer)
        self.reference = scorer.reference_features

    def _probabilities(self, images: Tensor) -> Tensor:
        return self.scorer.model.logits(self.scorer.fitting(images)).softmax(-1)

    def score(self, images: Tensor, items: Items, exact: Tensor) -> Tensor:
        """1 where the most likely class is the asked one."""
        asked = torch.tensor([int(item) for item in items])
        return (self._probabilities(images).argmax(1) == asked).float()

    def smooth(self, images: Tensor, items: Items, exact: Tensor) -> Tensor:
        """Probability of the asked class."""
        asked = torch.tensor([int(item) for item in items])
        return self._probabilities(images).gather(1, asked[:, None])[:, 0]


class Likeness(Looking):
    """SSIM to the exact path's image, for models that nobody wrote a scorer for."""

    name = "ssim-to-exact"
    default_loss = 0.10

    def score(self, images: Tensor, items: Items, exact: Tensor) -> Tensor:
        """SSIM; 1 is the same picture."""
        return ssim(images.float().cpu(), exact.float().cpu()).float()

    smooth = score


class Custom(Looking):
    """A user's function ``(images, items, exact) -> (B,)``, higher is better."""

    default_loss = 0.01

    def __init__(self, name: str, function: Callable[[Tensor, Items, Tensor], Tensor]) -> None:
        self.name, self.function = name, function

    def score(self, images: Tensor, items: Items, exact: Tensor) -> Tensor:
        """What the function says, checked."""
        try:
            got = torch.as_tensor(self.function(images, items, exact)).float().flatten().cpu()
        except Exception as error:  # whatever the user's code raises
            raise CalibrationError(f"metric {self.name} failed: {one_line(error)}") from error
        if got.shape != (len(images),) or not torch.isfinite(got).all():
            raise CalibrationError(
                f"metric {self.name} gave shape {tuple(got.shape)} for {len(images)} images, "
                "expected one finite score each"
            )
        return got

    smooth = score


def scorer_beside(checkpoint: Path) -> Path | None:
    """``model.scorer.safetensors`` beside ``model.pth`` (``scorer.safetensors`` in a directory)."""
    if checkpoint.is_dir():
        path = checkpoint / "scorer.safetensors"
    else:
        path = checkpoint.with_suffix(".scorer.safetensors")
    return path if path.is_file() else None


def named_by_file(metric: str | None, checkpoint: Path) -> str | None:
    """The metric that a checkpoint's own settings name, if it is one that comes with us.

    A file may not name code, a network to fetch or another file: those come from whoever runs us.

    Raises:
        CalibrationError: it names anything else.
    """
    if metric is None or metric in BUILT_IN:
        return metric
    raise CalibrationError(
        f"{checkpoint.name} asks for the metric {metric!r}: a file may name {', '.join(BUILT_IN)} "
        "alone. Pass --metric yourself"
    )


def find_quality(
    metric: str | Quality | None,
    checkpoint: Path,
    classes: int,
    features: str | None = None,
    reference: Path | None = None,
) -> Quality:
    """The metric and the features asked for, or fitting.

    ``metric``: one that is there, which stays as it is (what is found is a copy), or agreement,
    scenes, retrieval=ARCHIVE, ssim-to-exact,
    clip-score, clip-score=FOLDER or module:function.
    ``features``: see :func:`~stagevar_probe.metrics.features.find_features`. ``reference``: a
    folder of real pictures, for the distribution.

    Raises:
        CalibrationError: they cannot be found, or were made for other classes.
    """
    scorer, wrong = _scorer(checkpoint, classes)
    if metric is None or isinstance(metric, str):
        metric = _metric(metric, checkpoint, classes, scorer, wrong)
    quality = copy.copy(metric)
    quality.features = find_features(features, scorer)
    if reference:
        quality.features = with_reference(quality.features, reference)
    elif quality.features.reference is None:
        quality.features = quality.real()
    quality.reference = quality.features.reference
    quality.perceptual = find_perceptual()
    return quality


def _scorer(checkpoint: Path, classes: int) -> tuple[Scorer | None, str]:
    """The scorer beside a checkpoint, or why there is none."""
    path = scorer_beside(checkpoint)
    if path is None:
        return None, ""
    scorer = load_scorer(path)
    if len(scorer.class_names) == classes:
        return scorer, ""
    return None, f"{path} scores {len(scorer.class_names)} classes, the model has {classes}"


def _metric(
    metric: str | None, checkpoint: Path, classes: int, scorer: Scorer | None, wrong: str
) -> Quality:
    name, _, source = (metric or "").partition("=")
    if name == "clip-score":
        from .clip_score import ClipScore

        if classes:
            raise CalibrationError(f"{name} compares with prompts, this model draws from labels")
        return ClipScore(source) if source else ClipScore()
    if name == "scenes":
        from .scene_rules import SceneRules

        return SceneRules()
    if name == "retrieval" and source:
        from .retrieval import Retrieval

        if classes:
            raise CalibrationError(f"{name} compares by prompts, this model draws from labels")
        return Retrieval(source)
    if metric and ":" in metric:
        return Custom(metric, _imported(metric))
    if metric in (None, Agreement.name) and scorer is not None:
        return Agreement(scorer)
    if wrong and metric == Agreement.name:
        raise CalibrationError(wrong)
    if metric in (None, Likeness.name):
        if wrong and metric is None:
            logger.warning("%s: using %s instead", wrong, Likeness.name)
        return Likeness()
    raise CalibrationError(
        f"metric {metric!r} cannot be used with {checkpoint.name}: expected module:function, "
        f"{Likeness.name}, clip-score, scenes, retrieval=ARCHIVE, or agreement with "
        f"{checkpoint.stem}.scorer.safetensors beside it"
    )


def _imported(metric: str) -> Callable[[Tensor, Items, Tensor], Tensor]:
    module, _, name = metric.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever the user's module raises
        raise CalibrationError(
            f"metric {metric}: {one_line(error)}; expected module:function"
        ) from error
    if not callable(function):
        raise CalibrationError(f"metric {metric}: got {function!r}, expected a function")
    return function
