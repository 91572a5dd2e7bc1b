"""Run with: pytest tests/probe/observe/test_spectrum.py"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stagevar_probe.observe import rank as module
from stagevar_probe.observe.rank import (
    ALPHAS,
    MEASURES,
    RankKey,
    RankMeter,
    effective_rank,
    energy_rank,
    ratio_name,
    spectrum,
    stable_rank,
)
from stagevar_runtime.errors import CalibrationError

shapes = st.tuples(st.integers(1, 3), st.integers(1, 12), st.integers(1, 12))


def draw(shape, seed, rank=None):
    rng = np.random.default_rng(seed)
    b, n, d = shape
    x = rng.normal(size=shape)
    if rank is not None:
        x = rng.normal(size=(b, n, rank)) @ rng.normal(size=(b, rank, d))
    return x


@settings(max_examples=60, deadline=None)
@given(shapes, st.integers(0, 99), st.booleans())
def test_equals_numpy_svd(shape, seed, centred):
    x = draw(shape, seed) + 0.5
    ours = spectrum(torch.from_numpy(x), centred)
    for one, row in zip(x, ours.squared, strict=True):
        if centred:
            one = one - one.mean(0)
        s = np.linalg.svd(one, compute_uv=False) ** 2
        assert np.allclose(row, s, atol=1e-9)
        for alpha in ALPHAS:
            share = np.cumsum(s) / max(s.sum(), 1e-30)
            expected = 1 + int(np.sum(share < alpha - 1e-9)) if s.sum() > 1e-12 else 0
            if np.min(np.abs(share - alpha)) > 1e-7 and s.sum() > 1e-12:
                assert int(energy_rank(row, alpha)) == expected
        if s.sum() > 1e-12:
            p = s[s > 1e-14] / s.sum()
            assert float(effective_rank(row)) == pytest.approx(np.exp(-(p * np.log(p)).sum()), 1e-6)
            norms = np.linalg.norm(one) ** 2 / np.linalg.norm(one, 2) ** 2
            assert float(stable_rank(row)) == pytest.approx(norms, 1e-9)


@settings(max_examples=40, deadline=None)
@given(shapes, st.integers(0, 99))
def test_order_and_bounds(shape, seed):
    s2 = spectrum(torch.from_numpy(draw(shape, seed)), centred=False).squared
    ranks = torch.stack([energy_rank(s2, alpha) for alpha in ALPHAS])
    assert (ranks.diff(dim=0) >= 0).all()
    assert (ranks >= 1).all() and (ranks <= min(shape[1:])).all()
    assert (effective_rank(s2) <= min(shape[1:]) + 1e-9).all()
    assert (stable_rank(s2) <= effective_rank(s2) + 1e-9).all()


def test_known_values():
    s2 = torch.tensor([[4.0, 3.0, 2.0, 1.0]], dtype=torch.float64)
    assert energy_rank(s2, 0.4).tolist() == [1]  # reaches, not exceeds
    assert energy_rank(s2, 0.41).tolist() == [2]
    assert energy_rank(s2, 0.7).tolist() == [2]
    assert energy_rank(s2, 1.0).tolist() == [4]
    assert stable_rank(s2).tolist() == [2.5]
    assert effective_rank(torch.ones(5, dtype=torch.float64)).item() == pytest.approx(5)


def test_low_rank_is_seen_and_scale_does_not_matter():
    x = torch.from_numpy(draw((2, 40, 16), 0, rank=3)).float()
    for factor in (1.0, 1e-4, 1e4):
        s2 = spectrum(x * factor, centred=False).squared
        assert (energy_rank(s2, 0.999) <= 3).all()


def test_centring_removes_the_common_token():
    x = torch.randn(1, 50, 8, generator=torch.Generator().manual_seed(0)) * 0.01 + 3
    assert energy_rank(spectrum(x, centred=False).squared, 0.96).item() == 1
    assert energy_rank(spectrum(x, centred=True).squared, 0.96).item() >= 7


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize(
    ("x", "rank"),
    [
        (torch.zeros(2, 5, 4), 0),
        (torch.ones(2, 5, 4), None),
        (torch.full((1, 7, 4), 0.1, dtype=torch.float64), None),
        (torch.ones(1, 1, 4), None),
        (torch.ones(1, 4, 1), None),
        (torch.full((1, 6, 3), 1e-30), None),
    ],
)
def test_degenerate_matrices_give_numbers(x, rank, centred):
    s2 = spectrum(x, centred).squared
    expected = 0 if rank == 0 or centred else 1
    assert (energy_rank(s2, 0.96) == expected).all()
    assert torch.allclose(effective_rank(s2), torch.tensor(float(expected), dtype=torch.float64))
    assert torch.allclose(stable_rank(s2), torch.tensor(float(expected), dtype=torch.float64))


def test_large_matrices_use_the_randomised_svd(monkeypatch):
    monkeypatch.setattr(module, "LARGE", 64)
    x = torch.from_numpy(draw((1, 90, 80), 0, rank=5)) + 0.01 * torch.randn(
        1, 90, 80, generator=torch.Generator().manual_seed(1)
    )
    ours = spectrum(x, centred=False)
    exact = np.linalg.svd(x[0].numpy(), compute_uv=False) ** 2
    assert not ours.exact and ours.squared.shape == (1, 80)
    assert ours.energy.item() == pytest.approx(exact.sum(), rel=1e-9)
    assert np.allclose(ours.squared[0, :5], exact[:5], rtol=1e-6)
    assert energy_rank(ours.squared, 0.96).item() == energy_rank(torch.tensor(exact), 0.96).item()


def test_large_matrices_of_full_rank_fall_back_to_the_exact_one(monkeypatch):
    monkeypatch.setattr(module, "LARGE", 64)
    x = torch.from_numpy(draw((1, 90, 80), 0))
    ours = spectrum(x, centred=True)
    centred = x[0].numpy() - x[0].numpy().mean(0)
    assert ours.exact
    assert np.allclose(ours.squared[0], np.linalg.svd(centred, compute_uv=False) ** 2)


def test_meter_keeps_prompts_apart_and_merges():
    x = torch.randn(6, 10, 4, generator=torch.Generator().manual_seed(0))
    whole, first, second = RankMeter(), RankMeter(), RankMeter()
    whole.add(3, 1, "cond", x)
    first.add(3, 1, "cond", x[:4])
    second.add(3, 1, "cond", x[4:])
    first.merge(second)
    key = RankKey(3, 1, "cond", "pca")
    assert list(whole.keys()) == [key, key._replace(centring="svd")]
    a, b = whole.values(key), first.values(key)
    assert tuple(a) == MEASURES
    for name in MEASURES:
        assert a[name].shape == (6,) and np.allclose(a[name], b[name])
    expected = energy_rank(spectrum(x, centred=True).squared, 0.96) / 10
    assert np.allclose(a[ratio_name(0.96)], expected)
    interval = whole.intervals(key)["effective_rank"]
    assert interval.low < interval.mean < interval.high


def test_refuses():
    with pytest.raises(CalibrationError, match=r"\(b, n, d\)"):
        spectrum(torch.zeros(3, 3), True)
    with pytest.raises(CalibrationError, match="NaN"):
        spectrum(torch.full((1, 2, 2), torch.nan), True)
    with pytest.raises(CalibrationError, match="alpha"):
        energy_rank(torch.ones(3), 1.2)
    with pytest.raises(CalibrationError, match="no rank"):
        RankMeter().values(RankKey(0, 0, "cond", "pca"))
    meter = RankMeter()
    meter.add(0, 0, "cond", torch.ones(1, 2, 2))
    with pytest.raises(CalibrationError, match="tokens"):
        meter.add(0, 0, "cond", torch.ones(1, 3, 2))
