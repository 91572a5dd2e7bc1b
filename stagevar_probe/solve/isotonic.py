"""Losses that cannot fall when a change begins earlier: smoothed, or flagged where they do.

Dropping guidance or skipping from an earlier scale on leaves out more, so its loss is at least
that of a later start. Measured means break this by noise; isotonic regression gives the nearest
losses that do not. Where they break it beyond noise, they are left as measured, and it is said.
A drop with another temperature is not covered: cooler sampling may pay at any scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from ..measure.interventions import Arm
from ..measure.measurements import Measurements

LEVEL = 0.99  # of the interval that a rise must leave, shared by the pairs of a curve


@dataclass(frozen=True)
class Curve:
    """Arms that differ in where they begin, with their mean losses. ``breaks``: pairs of scales
    of which the later start loses more, beyond noise."""

    name: str
    arms: tuple[Arm, ...]
    measured: tuple[float, ...]
    smooth: tuple[float, ...]
    breaks: tuple[tuple[int, int], ...]

    @property
    def losses(self) -> tuple[float, ...]:
        """What to count with: smoothed unless the data say otherwise."""
        return self.measured if self.breaks else self.smooth


def curves(measured: Measurements) -> list[Curve]:
    """Every family of arms that should be monotone, those that were run on all images."""
    images = len(measured.smooth["exact"])
    families: dict[str, list[Arm]] = {}
    for arm in measured.arms:
        if len(measured.smooth.get(arm.name, ())) < images or arm.tokens:
            continue
        if arm.skip:
            name = "skip" if arm.until is None else f"skip to {arm.until - 1}"
            families.setdefault(name, []).append(arm)
        elif arm.variant and measured.menu.variants[arm.variant][1] is None:
            families.setdefault(f"{arm.variant}, {arm.schedule}", []).append(arm)
    return [
        _curve(name, sorted(arms, key=lambda arm: arm.scale), measured)
        for name, arms in families.items()
        if len(arms) > 1
    ]


def _curve(name: str, arms: list[Arm], measured: Measurements) -> Curve:
    from sklearn.isotonic import IsotonicRegression

    table = np.array([measured.losses(arm.name) for arm in arms])
    means = table.mean(1)
    smooth = IsotonicRegression(increasing=False).fit_transform(np.arange(len(arms)), means)
    scales = [arm.scale for arm in arms]
    return Curve(
        name,
        tuple(arms),
        tuple(float(x) for x in means),
        tuple(float(x) for x in smooth),
        tuple((scales[i], scales[j]) for i, j in _breaks(table)),
    )


def _breaks(table: NDArray[np.float64]) -> list[tuple[int, int]]:
    """Neighbours of which the later start loses significantly more, paired by image."""
    rises = np.diff(table, axis=0)
    error = rises.std(1, ddof=1) / rises.shape[1] ** 0.5 if rises.shape[1] > 1 else np.inf
    bound = NormalDist().inv_cdf(1 - (1 - LEVEL) / 2 / len(rises)) * error
    high = (rises.mean(1) > bound) & (rises.mean(1) > 0)
    return [(int(i), int(i) + 1) for i in np.flatnonzero(high)]


def smoothed(measured: Measurements) -> dict[str, float]:
    """Mean loss by arm, after smoothing."""
    return {
        arm.name: loss
        for curve in curves(measured)
        for arm, loss in zip(curve.arms, curve.losses, strict=True)
    }


def disagreements(measured: Measurements) -> list[str]:
    """One sentence for every curve that the data show not to be monotone."""
    return [
        f"{curve.name}: beginning at scale {late} loses more than at scale {early}, beyond noise; "
        "its losses are used as measured"
        for curve in curves(measured)
        for early, late in curve.breaks
    ]
