"""What a quality metric is, and what it may be asked to look at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from .features import PIXELS, Features
from .perceptual import UNLIKENESS, Perceptual

Items = Sequence[int | str]


class Quality(Protocol):
    """``smooth`` is what searches compare (low variance), ``score`` what is reported; per image,
    higher is better, in [0, 1]. ``default_loss`` is the budget used when none is asked.

    ``others``: metrics beside this one, each with a budget of its own. ``features`` are for the
    distribution and for semantic likeness, ``reference`` those of real pictures; ``perceptual`` is
    the distance to the exact picture."""

    name: str
    default_loss: float
    features: Features
    reference: Tensor | None
    perceptual: Perceptual
    others: tuple[Quality, ...]

    def score(self, images: Tensor, items: Items, exact: Tensor) -> Tensor:
        """``(B,)`` for images ``(B, 3, H, W)`` asked as ``items``."""

    def smooth(self, images: Tensor, items: Items, exact: Tensor) -> Tensor:
        """The same quantity with less noise, ``(B,)``."""

    def real(self) -> Features:
        """The features, with a reference of real pictures where the metric knows some."""


class Looking:
    """What every metric sees pictures through, until told otherwise."""

    features: Features = PIXELS
    reference: Tensor | None = None
    perceptual: Perceptual = UNLIKENESS
    others: tuple[Quality, ...] = ()

    def real(self) -> Features:
        """The features as they are: the metric knows no real pictures."""
        return self.features
