"""When is a loss shown to keep a budget? Intervals that may be looked at while inputs come in.

Looking at an ordinary interval after every batch, and stopping when it suits, is wrong far more
often than the interval says. Here the error of each end is *spent*, a little at every look, by the
share of the planned inputs that is in (Lan and DeMets 1983). The spending function resembles
O'Brien and Fleming (1979): next to nothing early, so that the last look costs almost nothing. When
to look may depend on the clock, not on the losses. Critical values are exact for a Brownian motion
(Armitage, McPherson and Rowe 1969). Confidence sequences (Howard et al. 2021, Waudby-Smith and
Ramdas 2024) need no planned number of inputs, but showed a loss of .005 half as often in
simulations of 400 to 1,000 inputs.

Several plans are tested: each has a share of the error (Bonferroni), so that in at most ``ERROR``
of all calibrations any plan is wrongly called satisfied, whichever is chosen in the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stagevar_runtime.errors import CalibrationError

from ..intervals import Interval

ERROR = 0.05  # of each end, over all plans of a calibration
GRID = 801  # points of a density: critical values to three digits
NORMAL = NormalDist()


def spent(fraction: float, error: float) -> float:
    """The part of an error that may be spent once a ``fraction`` of the inputs is in."""
    if fraction <= 0:
        return 0.0
    bound = NORMAL.inv_cdf(1 - error / 2) / math.sqrt(min(1.0, fraction))
    return 2 * (1 - NORMAL.cdf(bound))


def critical_values(fractions: Sequence[float], error: float, final: bool = False) -> list[float]:
    """Standard errors that an estimate must be away from a limit, one for each look.

    ``fractions``: of the planned inputs at each look, rising, in (0, 1]. ``final``: the last look
    is the last one, and has all that is left of the ``error``.

    Raises:
        CalibrationError: fractions do not rise, or lie outside of (0, 1].
    """
    if not fractions or any(b <= a for a, b in zip([0.0, *fractions], fractions, strict=False)):
        raise CalibrationError(f"got looks at {list(fractions)}, expected rising shares")
    if fractions[-1] > 1:
        raise CalibrationError(f"got a look at {fractions[-1]:g} of the inputs, expected 1 at most")
    grid, density = np.zeros(1), np.ones(1)  # of the motion, where no look has ended it
    weight = np.ones(1)
    before, used, found = 0.0, 0.0, []
    for look, fraction in enumerate(fractions):
        whole = final and look == len(fractions) - 1
        share = (error if whole else spent(fraction, error)) - used
        step = math.sqrt(fraction - before)
        mass = density * weight
        beyond = partial(_beyond, mass, grid, step)
        bound = _solve(beyond, share, math.sqrt(fraction))
        used += beyond(bound)
        found.append(bound / math.sqrt(fraction))
        new = np.linspace(-8 * math.sqrt(fraction), bound, GRID)
        kernel = np.exp(-0.5 * ((new[:, None] - grid) / step) ** 2) / (
            step * math.sqrt(2 * math.pi)
        )
        grid, density = new, kernel @ mass
        weight = np.full(GRID, new[1] - new[0])
        weight[[0, -1]] /= 2
        before = fraction
    return found


def _beyond(
    mass: NDArray[np.float64], grid: NDArray[np.float64], step: float, bound: float
) -> float:
    """The chance that a step from where the motion is goes beyond a bound."""
    from scipy.special import ndtr

    return float(mass @ ndtr((grid - bound) / step))


def _solve(beyond: Callable[[float], float], share: float, scale: float) -> float:
    """Where so much lies beyond; eight standard deviations where that is nothing."""
    from scipy.optimize import brentq

    top = 8 * scale
    if share <= beyond(top):
        return top
    return float(brentq(lambda bound: beyond(bound) - share, -top, top, xtol=1e-7))


@dataclass(frozen=True)
class Control:
    """Something that is known of more inputs than a plan has run on: the exact path's own scores.

    ``values`` ``(n, k)``: of the inputs of the plan; ``means`` ``(k,)`` over all ``count`` inputs
    that the exact path has run on, those among them.
    """

    values: NDArray[np.float64]
    means: NDArray[np.float64]
    count: int


def paired_bounds(
    losses: ArrayLike, critical: tuple[float, float], control: Control | None = None
) -> Interval:
    """The mean loss of a plan with its two ends.

    ``losses`` ``(n,)``: exact minus plan, one value an input. ``critical``: standard errors below
    and above. Of pass or fail a loss is -1, 0 or 1 and rarely not 0: there the ends are those of
    the score test of paired proportions (Tango 1998), whose standard error is that of the loss
    which is tested, so that few inputs without a difference show little. An interval from the
    sample's own variance is wrong up to three times as often as it says; in simulations this one
    never is (see the tests). Of other scores the quantiles are Student's.

    ``control``: what the plan's inputs have more or less of than others is taken out by regression
    (a control variate). Nothing is gained where it is known of the same inputs alone: a control
    variate needs a mean that is known better than the sample's own.

    Raises:
        CalibrationError: fewer than two losses, or one that is not finite.
    """
    found = np.asarray(losses, dtype=np.float64)
    if found.ndim != 1 or len(found) < 2 or not np.isfinite(found).all():
        raise CalibrationError(f"got losses {found.shape}, expected two or more finite ones")
    n, mean = len(found), float(found.mean())
    variance = float(found.var(ddof=1)) / n
    shift, kept = 0.0, 1.0
    if control is not None and control.count > n and variance > 0:
        centred = control.values - control.values.mean(0)
        slope = np.linalg.lstsq(centred, found - mean, rcond=None)[0]
        shift = float(slope @ (control.values.mean(0) - control.means))
        explained = float((centred @ slope).var(ddof=1)) * (1 / n - 1 / control.count)
        kept = math.sqrt(max(0.0, 1 - explained / variance))
    if np.isin(found, (-1.0, 0.0, 1.0)).all():
        lost, won = int((found > 0).sum()), int((found < 0).sum())
        below = mean + _score_end(won, lost, n, critical[0])
        above = _score_end(lost, won, n, critical[1]) - mean
    else:
        below, above = (_student(z, n) * math.sqrt(variance) for z in critical)
    mean -= shift
    return Interval(mean, mean - kept * below, mean + kept * above)


def _score_end(lost: int, won: int, n: int, z: float) -> float:
    """The upper end of (lost - won) / n by the score test of paired proportions."""

    def beyond(limit: float) -> float:
        half = (2 * n - lost + won) * limit - lost - won
        root = math.sqrt(max(half * half + 8 * n * won * limit * (1 - limit), 0.0))
        opposite = (root - half) / (4 * n)  # the share that the plan wins, were the limit true
        variance = n * (2 * opposite + limit * (1 - limit))
        return (n * limit - lost + won) / math.sqrt(max(variance, 1e-300)) - z

    low, high = (lost - won) / n, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if beyond(middle) < 0 else (low, middle)
    return high


def _student(z: float, n: int) -> float:
    """The quantile of Student's distribution of ``n`` values that a normal one stands for."""
    from scipy.stats import t

    return float(t.isf(max(NORMAL.cdf(-z), 1e-12), n - 1))
