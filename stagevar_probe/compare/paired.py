"""What questions about a comparison look at: values per image, paired differences."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from stagevar_runtime.loop.plan import EXACT

from ..intervals import Interval, mean_interval
from ..measure.figures import Figures
from ..metrics.images import kid_loss
from ..tables import NONE
from ..validate.rows import Row
from ..validate.run import per_image
from .comparison import Comparison

Array = NDArray[np.float64]
EVEN, ODD = slice(0, None, 2), slice(1, None, 2)  # images to choose on, images to judge on


C = TypeVar("C", bound=Any)  # of :mod:`.changes`


@dataclass
class Finding:
    """``sentence`` says what was found; ``numbers`` hold it; ``table`` (header first) shows it."""

    question: str
    sentence: str
    numbers: dict[str, Any] = field(default_factory=dict)
    table: list[list[str]] = field(default_factory=list)


class PairedRows:
    """Values per image of every row, and paired differences between rows."""

    def __init__(self, found: Comparison) -> None:
        self.found = found
        self.kid = found.quality.features.kid  # what the distance of distributions is called
        self.rows = {row.name: row for row in found.rows}
        self.by_change = {row.change: row for row in found.rows if row.change is not None}

    def changed(self, change: Hashable) -> Row | None:
        """The row that makes a change."""
        return self.by_change.get(change)

    def of(self, kind: type[C]) -> dict[str, C]:
        """Rows of a kind with what they change, in order."""
        return {
            row.name: row.change
            for row in self.rows.values()
            if row.kind == kind.kind and isinstance(row.change, kind)
        }

    def figures(self, name: str) -> Figures:
        """Of a row."""
        return self.found.figures[name]

    def kid_cell(self, name: str) -> str:
        """The distance of distributions of a row, as text."""
        kid = self.figures(name).kid
        return NONE if kid is None else f"{kid:.2f}"

    def values(self, name: str, key: str) -> Array:
        """One value per image."""
        return per_image(self.found.seen, name, key)

    def loss(self, name: str) -> Array:
        """Smooth loss per image against exact."""
        return self.values(EXACT, "smooth") - self.values(name, "smooth")

    def least_lost(self, names: Sequence[str]) -> str:
        """The row that loses least on every second image."""
        return min(names, key=lambda name: self.loss(name)[EVEN].mean())

    def gain(self, a: str, b: str, key: str, half: slice = slice(None)) -> Interval:
        """How much higher ``a`` is than ``b``, mean over images."""
        return mean_interval((self.values(a, key) - self.values(b, key))[half])

    def kid_gain(self, a: str, b: str) -> Interval | None:
        """How much lower (better) the KID of ``a`` is than that of ``b``, x 1000."""
        reference = self.found.quality.reference
        if reference is None:
            return None
        found = kid_loss(reference, self.values(a, "features"), self.values(b, "features"))
        return Interval(*(1000 * x for x in found))

    def against(self, a: str, b: str) -> dict[str, list[float]]:
        """``a`` compared with ``b``; above 0: ``a`` is better."""
        out = {key: list(self.gain(a, b, key)) for key in ("smooth", "psnr", "ssim")}
        kid = self.kid_gain(a, b)
        return out if kid is None else out | {"kid": list(kid)}


def verdict(gain: Sequence[float], better: str = "is better", worse: str = "is worse") -> str:
    """What an interval of a gain says."""
    return better if gain[1] > 0 else worse if gain[2] < 0 else "shows no difference"


def say(value: Sequence[float], digits: int = 4, unit: str = "") -> str:
    """``+0.0123 [+0.0100, +0.0145]``."""
    mean, low, high = value
    return f"{mean:+.{digits}f}{unit} [{low:+.{digits}f}, {high:+.{digits}f}]"
