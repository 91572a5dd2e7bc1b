"""How good a picture is: one score an image, and features for the distribution of many.

Three metrics: agreement of a classifier with the asked class, where a scorer file lies beside the
checkpoint (``model.scorer.safetensors``); a user's own ``module:function``; and, where nothing is
known, likeness to the exact path's image (SSIM, no network).
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from stagevar_runtime.errors import CalibrationError

from .classifier import Scorer, load_scorer
from .images import ssim

Items = Sequence[int | str]

logger = logging.getLogger("stagevar_probe")


class Quality(Protocol):
    """``smooth`` is what searches compare (low variance), ``score`` what is reported; per image,
    higher is better, in [0, 1]. ``default_loss`` is the budget used when none is asked."""

    name: str
    default_loss: float
    reference: Tensor | None

    def score(self, images: Tensor, items: Items, exact: Tensor) -> Tensor:
        """``(B,)`` for images ``(B, 3, H, W)`` asked as ``items``."""

    def smooth(self, images: Tensor, items: Items, exact: Tensor) -> Tensor:
        """The same quantity with less noise, ``(B,)``."""

    def features(self, images: Tensor) -> Tensor:
        """``(B, F)``, for the distribution and for semantic likeness."""


class Agreement:
    """Does a classifier see the asked class? ``smooth`` is the probability it gives that class."""

    name = "agreement"
    default_loss = 0.01

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer
        self.reference: Tensor | None = scorer.reference_features

    def _probabilities(self, images: Tensor) -> Tensor:
        return self.scorer.model.logits(self._fitting(images)).softmax(-1)

    def _fitting(self, images: Tensor) -> Tensor:
        side = self.scorer.model.config.side
        if tuple(images.shape[-2:]) != (side, side):
            raise CalibrationError(
                f"the scorer looks at {side}x{side} pixels, the model draws "
                f"{images.shape[-2]}x{images.shape[-1]}. Choose another metric: --metric"
            )
        return images.float().cpu()

    def score(self, images: Tensor, items: Items, exact: Tensor) -> Tensor:
        """1 where the most likely class is the asked one."""
        asked = torch.tensor([int(item) for item in items])
        return (self._probabilities(images).argmax(1) == asked).float()

    def smooth(self, images: Tensor, items: Items, exact: Tensor) -> Tensor:
        """Probability of the asked class."""
        asked = torch.tensor([int(item) for item in items])
        return self._probabilities(images).gather(1, asked[:, None])[:, 0]

    def features(self, images: Tensor) -> Tensor:
        """The classifier's features."""
        return self.scorer.model.features(self._fitting(images))


class Likeness:
    """SSIM to the exact path's image, for models that nobody wrote a scorer for."""

    name = "ssim-to-exact"
    default_loss = 0.10
    reference: Tensor | None = None

    def score(self, images: Tensor, items: Items, exact: Tensor) -> Tensor:
        """SSIM; 1 is the same picture."""
        return ssim(images.float().cpu(), exact.float().cpu()).float()

    smooth = score

    def features(self, images: Tensor) -> Tensor:
        """Pixels of a 16 x 16 thumbnail: what a glance sees."""
        small = torch.nn.functional.interpolate(images.float().cpu(), size=(16, 16), mode="area")
        return small.flatten(1)


class Custom(Likeness):
    """A user's function ``(images, items, exact) -> (B,)``, higher is better."""

    default_loss = 0.01

    def __init__(self, name: str, function: Callable[[Tensor, Items, Tensor], Tensor]) -> None:
        self.name, self.function = name, function

    def score(self, images: Tensor, items: Items, exact: Tensor) -> Tensor:
        """What the function says, checked."""
        try:
            got = torch.as_tensor(self.function(images, items, exact)).float().flatten().cpu()
        except Exception as error:  # whatever the user's code raises
            raise CalibrationError(f"metric {self.name} failed: {_said(error)}") from error
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


def find_quality(metric: str | None, checkpoint: Path, classes: int) -> Quality:
    """The metric asked for (``module:function``, ``agreement``, ``ssim-to-exact``) or fitting.

    Raises:
        CalibrationError: it cannot be found, or was made for other classes.
    """
    if metric and ":" in metric:
        return Custom(metric, _imported(metric))
    path = scorer_beside(checkpoint)
    if metric in (None, "agreement") and path is not None:
        scorer = load_scorer(path)
        if len(scorer.class_names) == classes:
            return Agreement(scorer)
        wrong = f"{path} scores {len(scorer.class_names)} classes, the model has {classes}"
        if metric is not None:
            raise CalibrationError(wrong)
        logger.warning("%s: using %s instead", wrong, Likeness.name)
        return Likeness()
    if metric in (None, Likeness.name):
        return Likeness()
    raise CalibrationError(
        f"metric {metric!r} cannot be used with {checkpoint.name}: expected module:function, "
        f"{Likeness.name}, or agreement with {checkpoint.stem}.scorer.safetensors beside it"
    )


def _imported(metric: str) -> Callable[[Tensor, Items, Tensor], Tensor]:
    module, _, name = metric.partition(":")
    if os.getcwd() not in sys.path:  # a script's path starts at its own folder
        sys.path.insert(0, os.getcwd())
    try:
        function = getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever the user's module raises
        raise CalibrationError(
            f"metric {metric}: {_said(error)}; expected module:function"
        ) from error
    if not callable(function):
        raise CalibrationError(f"metric {metric}: got {function!r}, expected a function")
    return function


def _said(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
