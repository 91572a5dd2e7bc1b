"""Run with: pytest tests/probe/metrics/test_images.py"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from stagevar_probe.metrics.images import (
    cosine_similarity,
    kid,
    kid_interval,
    kid_loss,
    mmd2,
    nearest_distance,
    psnr,
    ssim,
)
from stagevar_runtime.errors import CalibrationError


def pictures(batch=3, size=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(batch, 3, 6, 6, generator=generator)
    return torch.nn.functional.interpolate(coarse, size=size, mode="bilinear")


def noisy(images, amount, seed=1):
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
    return (images + amount * noise).clamp(0, 1)


def test_psnr_known_values():
    a = torch.zeros(2, 3, 4, 4)
    b = torch.stack([torch.full((3, 4, 4), 0.1), torch.full((3, 4, 4), 1.0)])
    assert psnr(a, b).tolist() == pytest.approx([20, 0], abs=1e-5)
    assert psnr(a, a).tolist() == [100, 100]


def test_ssim_equals_a_plain_gaussian_filter():
    a, b = pictures(1)[0], noisy(pictures(1), 0.1)[0]
    crop = slice(5, -5)

    def blur(x):  # truncate 3.5 with sigma 1.5 is a radius of 5
        return gaussian_filter(x, 1.5, truncate=3.5)[crop, crop]

    scores = []
    for x, y in zip(a.double().numpy(), b.double().numpy(), strict=True):
        mx, my = blur(x), blur(y)
        vx, vy, c = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
        top = (2 * mx * my + 1e-4) * (2 * c + 9e-4)
        scores.append((top / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))).mean())
    assert ssim(a[None], b[None]).item() == pytest.approx(np.mean(scores), abs=1e-9)


def test_ssim_is_one_for_equal_and_falls_with_noise_image_by_image():
    a = pictures()
    assert ssim(a, a).tolist() == pytest.approx([1, 1, 1])
    scores = torch.stack([ssim(noisy(a, s), a) for s in (0.01, 0.05, 0.2)])
    assert (scores.diff(dim=0) < 0).all()
    one = a.clone()
    one[1] = noisy(a, 0.2)[1]
    assert ssim(one, a)[0] == 1 and ssim(one, a)[1] < 0.9
    assert torch.allclose(ssim(one, a)[1:2], ssim(one[1:2], a[1:2]))


@pytest.mark.parametrize("size", [1, 2, 4, 10])
def test_ssim_of_small_images(size):
    a = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    assert ssim(a, a).tolist() == pytest.approx([1, 1])
    assert (ssim(1 - a, a) < 1).all()


def test_cosine():
    a = torch.tensor([[1.0, 0], [1, 1], [0, 0]])
    b = torch.tensor([[0.0, 2], [3, 3], [1, 0]])
    assert cosine_similarity(a, b).tolist() == pytest.approx([0, 1, 0], abs=1e-9)


def features(n, shift=0.0, seed=0, d=8):
    return np.random.default_rng(seed).normal(size=(n, d)) + shift


def test_mmd_equals_the_double_loop():
    a, b = features(7), features(5, 0.3, 1)

    def k(x, y):
        return (x @ y / 8 + 1) ** 3

    aa = np.mean([k(a[i], a[j]) for i in range(7) for j in range(7) if i != j])
    bb = np.mean([k(b[i], b[j]) for i in range(5) for j in range(5) if i != j])
    ab = np.mean([k(x, y) for x in a for y in b])
    assert mmd2(a, b) == pytest.approx(aa + bb - 2 * ab)


def test_kid_is_unbiased_and_grows_with_distance():
    none = [mmd2(features(30, seed=s), features(30, seed=1000 + s)) for s in range(400)]
    assert abs(np.mean(none)) < 3 * np.std(none) / math.sqrt(400)
    near, far = (kid(features(300), features(300, s, 1), subset_size=100) for s in (0.2, 0.5))
    assert 0 < near.mean < far.mean
    assert near.values.shape == (50,) and near.std == pytest.approx(near.values.std())


def test_kid_seed_and_full_subsets():
    a, b = torch.from_numpy(features(60)), features(60, 0.2, 1)
    assert kid(a, b, 5, 30, seed=1).mean == kid(a, b, 5, 30, seed=1).mean
    assert kid(a, b, 5, 30, seed=1).mean != kid(a, b, 5, 30, seed=2).mean
    assert kid(a, b, 2, 60).mean == pytest.approx(mmd2(a.numpy(), b))


def test_kid_loss_is_the_difference_and_is_paired():
    reference, exact = features(200), features(150, 0.1, 1)
    fast = exact + 0.01 * features(150, seed=2)
    found = kid_loss(reference, exact, fast)
    assert found.mean == pytest.approx(mmd2(fast, reference) - mmd2(exact, reference))
    other = kid_loss(reference, exact, features(150, 0.1, 3))
    assert (found.high - found.low) < 0.2 * (other.high - other.low)
    assert kid_loss(reference, exact, exact) == pytest.approx((0, 0, 0), abs=1e-12)


def test_kid_loss_sees_a_shift():
    reference, exact = features(300), features(300, seed=1)
    assert kid_loss(reference, exact, exact + 0.3).low > 0
    assert kid_loss(reference, exact + 0.3, exact).high < 0


def test_kid_loss_interval_covers_the_truth():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):  # both arms shifted alike, in different directions: the true loss is 0
        reference, exact = rng.normal(size=(80, 4)), rng.normal(size=(80, 4))
        fast = exact + 0.3 * rng.normal(size=(80, 4))
        fast /= math.sqrt(1.09)
        exact, fast = exact + 0.5 * np.eye(4)[0], fast + 0.5 * np.eye(4)[1]
        _, low, high = kid_loss(reference, exact, fast)
        hits += low <= 0 <= high
    assert 0.89 <= hits / 200 <= 0.995


def test_kid_loss_counts_the_chance_in_the_reference():
    rng = np.random.default_rng(0)
    found = []
    for _ in range(150):
        exact = rng.normal(size=(200, 3))
        found.append(kid_loss(rng.normal(size=(15, 3)), exact, exact + np.eye(3)[0]))
    spread = np.std([f.mean for f in found])
    claimed = np.mean([(f.high - f.low) / (2 * 1.96) for f in found])
    assert 0.7 < claimed / spread < 1.3


def test_kid_interval_covers_what_resampling_gives():
    rng = np.random.default_rng(0)
    found = [
        kid_interval(rng.normal(size=(100, 3)) + 0.5 * np.eye(3)[0], rng.normal(size=(100, 3)))
        for _ in range(100)
    ]
    spread = np.std([f.mean for f in found])
    claimed = np.mean([(f.high - f.low) / (2 * 1.96) for f in found])
    assert 0.7 < claimed / spread < 1.3
    far = kid_interval(features(100) + 2, torch.from_numpy(features(100, seed=1)))
    assert far.low > 0 and far.mean == pytest.approx(mmd2(features(100) + 2, features(100, seed=1)))


def test_nearest_distance_is_that_of_the_nearest():
    rows, reference = (torch.from_numpy(features(n, seed=n)) for n in (7, 11))
    every = (rows[:, None] - reference[None]).norm(dim=2)
    torch.testing.assert_close(nearest_distance(rows, reference, batch=3), every.amin(1))
    copied = torch.cat([rows[:2], reference[4:5]])
    assert nearest_distance(copied, reference, batch=2).argmin() == 2


def test_refuses():
    for call in (
        lambda: psnr(torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 4, 5)),
        lambda: ssim(torch.zeros(3, 4, 4), torch.zeros(3, 4, 4)),
        lambda: cosine_similarity(torch.zeros(2, 3), torch.zeros(3, 3)),
        lambda: kid(features(10), features(20), subset_size=11),
        lambda: kid(np.full((10, 2), np.nan), features(20)),
        lambda: kid(features(1), features(20)),
        lambda: kid_loss(features(10), features(10), features(9)),
        lambda: nearest_distance(torch.zeros(2, 3), torch.zeros(2, 4)),
        lambda: nearest_distance(torch.zeros(2, 3), torch.zeros(0, 3)),
    ):
        with pytest.raises(CalibrationError):
            call()
