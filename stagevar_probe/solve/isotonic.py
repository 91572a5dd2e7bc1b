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

from stagevar_runtime.loop.plan import EXACT

from ..measure.interventions import Intervention
from ..measure.measurements import Measurements

LEVEL = 0.99  # of the interval that a rise must leave, shared by the pairs of a curve


@dataclass(frozen=True)
class Curve:
    """Interventions that differ in where they begin, with their mean losses. ``breaks``: pairs of
    scales of which the later start loses more, beyond noise."""

    name: str
    interventions: tuple[Intervention, ...]
    measured: tuple[float, ...]
    smooth: tuple[float, ...]
    breaks: tuple[tuple[int, int], ...]

    @property
    def losses(self) -> tuple[float, ...]:
        """What to count with: smoothed unless the data say otherwise."""
        return self.measured if self.breaks else self.smooth


def curves(measured: Measurements) -> list[Curve]:
    """Every family of interventions that should be monotone, those that were run on all images."""
    images = len(measured.smooth[EXACT])
    families: dict[str, list[Intervention]] = {}
    for intervention in measured.interventions:
        if len(measured.smooth.get(intervention.name, ())) < images or intervention.tokens:
            continue
        if intervention.skip:
            name = "skip" if intervention.until is None else f"skip to {intervention.until - 1}"
            families.setdefault(name, []).append(intervention)
        elif intervention.precision:
            families.setdefault(intervention.precision, []).append(intervention)
        elif intervention.variant and measured.space.variants[intervention.variant][1] is None:
            families.setdefault(f"{intervention.variant}, {intervention.schedule}", []).append(
                intervention
            )
    return [
        _curve(name, sorted(interventions, key=lambda intervention: intervention.scale), measured)
        for name, interventions in families.items()
        if len(interventions) > 1
    ]


def _curve(name: str, interventions: list[Intervention], measured: Measurements) -> Curve:
    from sklearn.isotonic import IsotonicRegression

    table = np.array([measured.losses(intervention.name) for intervention in interventions])
    means = table.mean(1)
    smooth = IsotonicRegression(increasing=False).fit_transform(
        np.arange(len(interventions)), means
    )
    scales = [intervention.scale for intervention in interventions]
    return Curve(
        name,
        tuple(interventions),
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
    """Mean loss by intervention, after smoothing."""
    return {
        intervention.name: loss
        for curve in curves(measured)
        for intervention, loss in zip(curve.interventions, curve.losses, strict=True)
    }


def disagreements(measured: Measurements) -> list[str]:
    """One sentence for every curve that the data show not to be monotone."""
    return [
        f"{curve.name}: beginning at scale {late} loses more than at scale {early}, beyond noise; "
        "its losses are used as measured"
        for curve in curves(measured)
        for early, late in curve.breaks
    ]
