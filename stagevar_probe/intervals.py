"""Intervals: bootstrap over prompts, paired losses, proportions.

Everything resamples axis 0, the prompts: scales and groups of one prompt are not independent, so
they travel together. Percentile intervals; a fixed seed gives the same interval every time.
Source: METHODS section 3 (one point a scale with a 95 % bootstrap interval over prompts).
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stagevar_runtime.errors import CalibrationError

FloatArray = NDArray[np.float64]

CHUNK = 1 << 18  # elements of a resampling matrix held at once: they fit a cache


class Interval(NamedTuple):
    """A point estimate and its interval, as plain floats (they go into YAML and JSON)."""

    mean: float
    low: float
    high: float


def _checked(values: ArrayLike, what: str) -> FloatArray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim == 0 or array.shape[0] == 0:
        raise CalibrationError(f"{what} has shape {array.shape}, expected at least one prompt")
    if not np.isfinite(array).all():
        bad = int(np.size(array) - np.isfinite(array).sum())
        raise CalibrationError(f"{what} holds {bad} NaN or infinite values, expected none")
    return array


def _tails(level: float) -> list[float]:
    if not 0 < level < 1:
        raise CalibrationError(f"level is {level}, expected between 0 and 1")
    return [(1 - level) / 2, (1 + level) / 2]


def resampled_means(values: ArrayLike, seed: int, resamples: int = 2000) -> FloatArray:
    """Means of ``resamples`` bootstrap samples of ``values`` ``(n, ...)``: ``(resamples, ...)``.

    Raises :class:`CalibrationError` on an empty array or one with NaN.
    """
    array = _checked(values, "values")
    n = array.shape[0]
    flat = array.reshape(n, -1)
    rng = np.random.default_rng(seed)
    rows = max(1, CHUNK // n)
    parts = [
        _times_drawn(rng, min(rows, resamples - start), n) @ flat / n
        for start in range(0, resamples, rows)
    ]
    return np.concatenate(parts).reshape(resamples, *array.shape[1:])


def _times_drawn(rng: np.random.Generator, resamples: int, n: int) -> FloatArray:
    """How often each of ``n`` prompts is in each resample of ``n``: ``(resamples, n)``."""
    drawn = rng.integers(n, size=(resamples, n)) + n * np.arange(resamples)[:, None]
    return np.bincount(drawn.ravel(), minlength=resamples * n).reshape(-1, n).astype(np.float64)


def bootstrap_mean(
    values: ArrayLike, seed: int = 0, resamples: int = 2000, level: float = 0.95
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Mean over prompts with its percentile bootstrap interval.

    ``values`` ``(n,)`` or ``(n, k)``, prompts first. Returns ``(mean, low, high)``, each of the
    shape of one prompt (0-d or ``(k,)``). The columns share their resamples. With one prompt the
    interval is that prompt. Raises :class:`CalibrationError` on an empty array or one with NaN.
    """
    array = _checked(values, "values")
    low, high = np.quantile(resampled_means(array, seed, resamples), _tails(level), axis=0)
    return array.mean(axis=0), low, high


def mean_interval(
    values: ArrayLike, seed: int = 0, resamples: int = 2000, level: float = 0.95
) -> Interval:
    """:func:`bootstrap_mean` of ``values`` ``(n,)`` as plain floats."""
    mean, low, high = bootstrap_mean(values, seed, resamples, level)
    return Interval(float(mean), float(low), float(high))


def paired_loss(
    exact: ArrayLike, fast: ArrayLike, seed: int = 0, resamples: int = 2000, level: float = 0.95
) -> Interval:
    """How much a score falls: mean of ``exact - fast`` over prompts, positive when fast is worse.

    ``exact`` and ``fast`` ``(n,)`` hold the same prompts and seeds in the same order (coupled
    noise, METHODS section 3), so the difference is resampled and not the two scores apart.
    """
    a, b = _checked(exact, "exact scores"), _checked(fast, "fast scores")
    if a.shape != b.shape or a.ndim != 1:
        raise CalibrationError(f"got exact {a.shape} and fast {b.shape}, expected the same (n,)")
    return mean_interval(a - b, seed, resamples, level)


def binomial_interval(successes: int, trials: int, level: float = 0.95) -> Interval:
    """Share of successes with the Wilson score interval (never outside [0, 1], never of width 0).

    Raises :class:`CalibrationError` unless 0 <= successes <= trials and trials > 0.
    """
    if not 0 <= successes <= trials or trials == 0:
        raise CalibrationError(f"got {successes} successes of {trials} trials")
    z = NormalDist().inv_cdf(_tails(level)[1])
    p = successes / trials
    centre = (p + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z * (p * (1 - p) / trials + z * z / (4 * trials**2)) ** 0.5 / (1 + z * z / trials)
    return Interval(p, max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half)))


def bootstrap_statistic(
    values: ArrayLike,
    function: Callable[[FloatArray], float],
    seed: int = 0,
    resamples: int = 2000,
    level: float = 0.95,
    discrete: bool = False,
) -> Interval:
    """Percentile interval of any statistic of the prompts.

    ``function`` maps ``values`` ``(n, ...)`` (or a resample of it) to a number. ``discrete``
    returns values the statistic really took (a scale index) instead of interpolating between two.
    """
    array = _checked(values, "values")
    rng = np.random.default_rng(seed)
    n = array.shape[0]
    draws = [float(function(array[rng.integers(0, n, n)])) for _ in range(resamples)]
    low, high = np.quantile(draws, _tails(level), method="inverted_cdf" if discrete else "linear")
    return Interval(float(function(array)), float(low), float(high))
