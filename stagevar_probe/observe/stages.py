"""Where a picture is settled: semantic, structure and refinement stages from measured curves.

A curve holds, at index k, a measure of the canvas decoded *after* scale k, per prompt. A boundary
is the first scale from which the mean curve stays within a tolerance of its plateau, with a
bootstrap interval over prompts. METHODS sections 1 and 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stagevar_runtime.errors import CalibrationError

from ..intervals import FloatArray, resampled_means

Plateau = Literal["last", "tail", "extreme"]

TAIL = 3  # scales averaged by the "tail" plateau


@dataclass(frozen=True)
class BoundaryEstimate:
    """``scale``: after it the curve stays at its plateau. ``low``, ``high``: interval of it.

    ``plateau`` and ``band`` are in the curve's own unit: settled means |mean - plateau| <= band.
    """

    scale: int
    low: int
    high: int
    plateau: float
    band: float


def settled_from(
    means: FloatArray, tolerance: float, plateau: Plateau, relative: bool
) -> tuple[NDArray[np.int64], FloatArray, FloatArray]:
    """First settled scale of every mean curve ``(r, K)``, with its plateau and band ``(r,)``."""
    count = means.shape[1]
    if plateau == "last":
        level = means[:, -1]
    elif plateau == "tail":
        level = means[:, -min(TAIL, count) :].mean(1)
    elif plateau == "extreme":  # the value farthest from where the curve began
        far = np.abs(means - means[:, :1]).argmax(1)
        level = means[np.arange(len(means)), far]
    else:
        raise CalibrationError(f"plateau is {plateau!r}, expected last, tail or extreme")
    gap = np.abs(means - level[:, None])
    band = tolerance * gap.max(1) if relative else np.full(len(means), float(tolerance))
    inside = gap <= band[:, None] + 1e-12
    stays = np.logical_and.accumulate(inside[:, ::-1], axis=1)[:, ::-1]
    first = np.where(stays.any(1), stays.argmax(1), count - 1)
    return first.astype(np.int64), level, band


def boundary(
    curves: ArrayLike,
    tolerance: float = 0.05,
    plateau: Plateau = "last",
    *,
    relative: bool = True,
    seed: int = 0,
    resamples: int = 2000,
    level: float = 0.95,
) -> BoundaryEstimate:
    """First scale from which the mean of ``curves`` ``(prompts, K)`` stays at its plateau.

    Similarities that rise and distances that fall are treated alike. ``tolerance`` is a share of
    the curve's largest distance from its plateau when ``relative``, else in the curve's unit.
    ``plateau``: ``last`` the last value, ``tail`` the mean of the last three, ``extreme`` the
    value farthest from the first. A curve that never settles gives the last scale.

    Raises :class:`CalibrationError` on a wrong shape, NaN, or a negative tolerance.
    """
    values = np.asarray(curves, dtype=np.float64)
    if values.ndim != 2 or 0 in values.shape:
        raise CalibrationError(f"curves have shape {values.shape}, expected (prompts, scales)")
    if tolerance < 0:
        raise CalibrationError(f"tolerance is {tolerance}, expected 0 or more")
    means = resampled_means(values, seed, resamples)
    found, levels, bands = settled_from(values.mean(0)[None], tolerance, plateau, relative)
    draws, _, _ = settled_from(means, tolerance, plateau, relative)
    tails = [(1 - level) / 2, (1 + level) / 2]
    low, high = np.quantile(draws, tails, method="inverted_cdf")
    return BoundaryEstimate(int(found[0]), int(low), int(high), float(levels[0]), float(bands[0]))


@dataclass(frozen=True)
class StageEstimates:
    """First scale of the structure and of the refinement stage, intervals and evidence."""

    structure: int
    structure_interval: tuple[int, int]
    refinement: int
    refinement_interval: tuple[int, int]
    semantic_evidence: str
    structural_evidence: str


def find_stages(
    semantic: ArrayLike,
    structural: ArrayLike,
    *,
    semantic_tolerance: float = 0.05,
    structural_tolerance: float = 0.05,
    plateau: Plateau = "last",
    relative: bool = True,
    semantic_name: str = "semantic similarity",
    structural_name: str = "structural similarity",
    seed: int = 0,
) -> StageEstimates:
    """Cut the K scales into three stages from curves ``(prompts, K)`` measured after each scale.

    A stage begins at the scale *after* the one that settles its curve (the settling scale was
    still needed), at most at the last scale; refinement never begins before structure.
    """
    first, second = np.asarray(semantic), np.asarray(structural)
    if first.shape != second.shape:
        raise CalibrationError(f"semantic curves {first.shape}, structural {second.shape}")
    meaning = boundary(first, semantic_tolerance, plateau, relative=relative, seed=seed)
    layout = boundary(second, structural_tolerance, plateau, relative=relative, seed=seed)
    prompts, count = first.shape

    def begins(scale: int) -> int:
        return min(scale + 1, count - 1)

    structure = begins(meaning.scale)
    refinement = max(structure, begins(layout.scale))
    low = begins(meaning.low), begins(meaning.high)
    high = max(low[0], begins(layout.low)), max(low[1], begins(layout.high))
    return StageEstimates(
        structure,
        low,
        refinement,
        high,
        _evidence(semantic_name, meaning, prompts),
        _evidence(structural_name, layout, prompts),
    )


def _evidence(name: str, found: BoundaryEstimate, prompts: int) -> str:
    return (
        f"{name} stays within {found.band:.3g} of its plateau {found.plateau:.3g} "
        f"after scale {found.scale} (95 % {found.low} to {found.high}, {prompts} prompts)"
    )
