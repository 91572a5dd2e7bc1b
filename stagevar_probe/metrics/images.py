"""Fidelity of one picture to another, and the distance between two sets of features.

Pure functions: images are ``(B, C, H, W)`` in [0, 1], features ``(n, d)`` from any network. A
kernel distance over EfficientNet features is "EffNet-KID", never FID.
"""

from __future__ import annotations

from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from stagevar_runtime.errors import CalibrationError

from ..intervals import Interval

PSNR_CEILING = 100.0  # dB, given to identical images so that means and JSON stay finite
WINDOW, SIGMA = 11, 1.5


class Kid(NamedTuple):
    """Mean and standard deviation over subsets, and the values of all subsets."""

    mean: float
    std: float
    values: NDArray[np.float64]


def _same(a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape or a.ndim != 4:
        raise CalibrationError(
            f"images are {tuple(a.shape)} and {tuple(b.shape)}, expected (B, C, H, W)"
        )


def psnr(images: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of images in [0, 1]: ``(B, C, H, W)`` twice → ``(B,)``.

    At most 100 dB, which identical images get.
    """
    _same(images, reference)
    mse = (images.double() - reference.double()).square().flatten(1).mean(1)
    return -10 * mse.clamp(min=10 ** (-PSNR_CEILING / 10)).log10()


def ssim(images: Tensor, reference: Tensor) -> Tensor:
    """Structural similarity of images in [0, 1]: ``(B, C, H, W)`` twice → ``(B,)`` float64.

    Gaussian window 11x11, sigma 1.5, no padding, mean over channels and positions. Images smaller
    than the window use the largest odd window that fits. Source: Wang et al. 2004.
    """
    _same(images, reference)
    channels, height, width = images.shape[1:]
    window = min(WINDOW, height, width)
    window -= 1 - window % 2
    grid = torch.arange(window, dtype=torch.float64, device=images.device) - window // 2
    kernel = torch.exp(-grid.square() / (2 * SIGMA**2))
    kernel = (kernel / kernel.sum()).expand(channels, 1, window)

    def blur(x: Tensor) -> Tensor:
        x = F.conv2d(x, kernel[:, :, :, None], groups=channels)
        return F.conv2d(x, kernel[:, :, None, :], groups=channels)

    a, b = images.double(), reference.double()
    mean_a, mean_b = blur(a), blur(b)
    var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
    cov = blur(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    score = (2 * mean_a * mean_b + c1) * (2 * cov + c2)
    score = score / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    return score.flatten(1).mean(1)


def cosine_similarity(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of the angle between matching rows, ``(n, d)`` twice → ``(n,)``; 0 for a zero row."""
    if a.shape != b.shape or a.ndim != 2:
        raise CalibrationError(
            f"features are {tuple(a.shape)} and {tuple(b.shape)}, expected (n, d)"
        )
    return F.cosine_similarity(a.double(), b.double(), dim=1, eps=1e-30)


def _features(values: ArrayLike | Tensor, name: str) -> NDArray[np.float64]:
    raw = values.detach().cpu().numpy() if isinstance(values, Tensor) else values
    array = np.asarray(raw, dtype=np.float64)
    if array.ndim != 2 or array.shape[0] < 2:
        raise CalibrationError(
            f"{name} has shape {array.shape}, expected (n, d) with n of 2 or more"
        )
    if not np.isfinite(array).all():
        raise CalibrationError(f"{name} holds NaN or infinity")
    return array


def _kernel(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray((a @ b.T / a.shape[1] + 1) ** 3)


def _inside(a: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean kernel of every row with the others of its own set, ``(n,)``."""
    gram = _kernel(a, a)
    return np.asarray((gram.sum(1) - gram.diagonal()) / (len(a) - 1))


def mmd2(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Unbiased squared maximum mean discrepancy, cubic kernel (x·y/d + 1)³; may be negative."""
    return float(_inside(a).mean() + _inside(b).mean() - 2 * _kernel(a, b).mean())


def kid(
    features_a: ArrayLike | Tensor,
    features_b: ArrayLike | Tensor,
    subsets: int = 50,
    subset_size: int = 100,
    seed: int = 0,
) -> Kid:
    """Kernel inception distance of two feature sets ``(n, d)`` and ``(m, d)``, not multiplied.

    Mean of the unbiased MMD² over ``subsets`` pairs of subsets drawn without replacement. The
    draws depend on n, m and the seed alone, so two sample sets of one size meet the same subsets.
    The spread is that of subsets of this size, not of the mean: :func:`kid_loss` has an interval.
    Source: Bińkowski et al. 2018. Raises :class:`CalibrationError` if a set is too small.
    """
    a, b = _features(features_a, "first set"), _features(features_b, "second set")
    smaller = min(len(a), len(b))
    if not 2 <= subset_size <= smaller:
        raise CalibrationError(
            f"subset_size is {subset_size}, expected 2 to {smaller} (smaller set)"
        )
    rng = np.random.default_rng(seed)
    values = np.empty(subsets)
    for i in range(subsets):
        rows_a = rng.choice(len(a), subset_size, replace=False)
        rows_b = rng.choice(len(b), subset_size, replace=False)
        values[i] = mmd2(a[rows_a], b[rows_b])
    return Kid(float(values.mean()), float(values.std()), values)


def kid_loss(
    reference: ArrayLike | Tensor,
    exact: ArrayLike | Tensor,
    fast: ArrayLike | Tensor,
    level: float = 0.95,
) -> Interval:
    """KID(fast, reference) - KID(exact, reference) with an interval; above 0: fast is worse.

    ``exact`` and ``fast`` ``(n, d)`` hold the same prompts and seeds row by row, ``reference``
    ``(m, d)`` is shared. Every pair is used once (the limit of many subsets), and the variance
    comes from each row's influence on that difference: rows are paired and the reference is
    common, so what both arms share cancels. Quantiles over subsets would not do: they shrink to
    nothing when a subset is the whole set, and are too wide when it is small. The loss is
    significant where ``low > 0``. Source: U-statistics, Hoeffding 1948, first-order projection.
    """
    r = _features(reference, "reference")
    e, f = _features(exact, "exact set"), _features(fast, "fast set")
    if e.shape != f.shape:
        raise CalibrationError(f"exact {e.shape} and fast {f.shape} are not the same prompts")
    within = _inside(f) - _inside(e)
    across = _kernel(f, r) - _kernel(e, r)
    loss = within.mean() - 2 * across.mean()
    per_prompt = 2 * within - 2 * across.mean(1)
    per_reference = -2 * across.mean(0)
    variance = per_prompt.var(ddof=1) / len(e) + per_reference.var(ddof=1) / len(r)
    half = NormalDist().inv_cdf((1 + level) / 2) * float(variance) ** 0.5
    return Interval(float(loss), float(loss - half), float(loss + half))


def kid_shares(
    reference: ArrayLike | Tensor, exact: ArrayLike | Tensor, fast: ArrayLike | Tensor
) -> NDArray[np.float64]:
    """What every row of one batch adds to :func:`kid_loss`, ``(n,)``: their mean is that loss of
    the batch, without bias, and so is the mean over batches (a block estimate, Zaremba et al.
    2013). So it can be kept as one number an image."""
    r = _features(reference, "reference")
    e, f = _features(exact, "exact set"), _features(fast, "fast set")
    within = _inside(f) - _inside(e)
    return np.asarray(within - 2 * (_kernel(f, r).mean(1) - _kernel(e, r).mean(1)))


def kid_interval(
    features: ArrayLike | Tensor, reference: ArrayLike | Tensor, level: float = 0.95
) -> Interval:
    """KID of ``features`` ``(n, d)`` to those of real pictures ``(m, d)``, with its interval.

    The value is that of :func:`kid` over 20 subsets of at most 1000, the interval that of the
    projection of :func:`kid_loss`; the reference's share of it comes from its first 2000 rows.
    """
    f, every = _features(features, "features"), _features(reference, "reference")
    r = every[:2000]
    across = _kernel(f, r)
    per_prompt = 2 * _inside(f) - 2 * across.mean(1)
    per_reference = 2 * _inside(r) - 2 * across.mean(0)
    variance = per_prompt.var(ddof=1) / len(f) + per_reference.var(ddof=1) / len(every)
    half = NormalDist().inv_cdf((1 + level) / 2) * float(variance) ** 0.5
    mean = kid(f, every, 20, min(1000, len(f), len(every))).mean
    return Interval(mean, mean - half, mean + half)


def nearest_distance(features: Tensor, reference: Tensor, batch: int = 512) -> Tensor:
    """Euclidean distance ``(n,)`` of every row of ``(n, d)`` to the nearest of ``(m, d)``.

    With features of training pictures as ``reference``: a made picture much nearer to one than
    held-out real pictures are was copied.
    """
    if features.ndim != 2 or reference.ndim != 2 or features.shape[1] != reference.shape[1]:
        raise CalibrationError(
            f"features are {tuple(features.shape)} and {tuple(reference.shape)}, "
            "expected (n, d) and (m, d)"
        )
    if len(reference) == 0:
        raise CalibrationError("the reference is empty, expected at least one row")
    nearest = features.new_full((len(features),), torch.inf)
    for part in reference.split(batch):
        rows = [torch.cdist(rows, part).amin(1) for rows in features.split(batch)]
        nearest = torch.minimum(nearest, torch.cat(rows))
    return nearest
