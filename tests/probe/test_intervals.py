"""Run with: pytest tests/probe/test_statistics.py"""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest, bootstrap

from stagevar_probe.intervals import (
    binomial_interval,
    bootstrap_mean,
    bootstrap_statistic,
    mean_interval,
    paired_loss,
    resampled_means,
)
from stagevar_runtime.errors import CalibrationError


def test_agrees_with_scipy():
    values = np.random.default_rng(1).gamma(2.0, size=80)
    mean, low, high = bootstrap_mean(values, seed=0, resamples=6000)
    theirs = bootstrap(
        (values,), np.mean, n_resamples=6000, method="percentile", rng=np.random.default_rng(5)
    ).confidence_interval
    assert mean == pytest.approx(values.mean())
    assert low == pytest.approx(theirs.low, abs=0.02)
    assert high == pytest.approx(theirs.high, abs=0.02)


def test_columns_are_the_same_as_each_alone():
    values = np.random.default_rng(2).normal(size=(30, 4))
    mean, low, high = bootstrap_mean(values, seed=3)
    assert mean.shape == low.shape == high.shape == (4,)
    for k in range(4):
        alone = mean_interval(values[:, k], seed=3)
        assert np.allclose((mean[k], low[k], high[k]), alone)


def test_columns_share_their_resamples():
    values = np.random.default_rng(2).normal(size=30)
    means = resampled_means(np.stack([values, values + 5], 1), seed=0, resamples=50)
    assert np.allclose(means[:, 1] - means[:, 0], 5)


def test_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(300):
        _, low, high = bootstrap_mean(rng.normal(size=40), seed=trial, resamples=400)
        hits += bool(low <= 0 <= high)
    assert 0.90 <= hits / 300 <= 0.98


def test_seed_decides_and_chunks_do_not_change_the_shape(monkeypatch):
    values = np.random.default_rng(2).normal(size=10)
    assert mean_interval(values, seed=1) == mean_interval(values, seed=1)
    assert mean_interval(values, seed=1) != mean_interval(values, seed=2)
    monkeypatch.setattr("stagevar_probe.intervals.CHUNK", 70)
    assert resampled_means(values, 0, resamples=100).shape == (100,)


def test_pairing_removes_what_prompts_share():
    rng = np.random.default_rng(0)
    hard = rng.normal(size=100) * 10
    loss = paired_loss(hard + 0.5, hard + rng.normal(size=100) * 0.01)
    assert loss.mean == pytest.approx(0.5, abs=0.01)
    assert loss.high - loss.low < 0.02
    assert paired_loss([1, 1], [0, 0]).mean == 1  # positive: the fast plan is worse


def test_one_prompt_gives_its_own_value():
    assert mean_interval([0.25]) == (0.25, 0.25, 0.25)


@pytest.mark.parametrize(("k", "n"), [(0, 10), (10, 10), (3, 7), (480, 500)])
def test_wilson_agrees_with_scipy(k, n):
    ours = binomial_interval(k, n)
    theirs = binomtest(k, n).proportion_ci(method="wilson")
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)
    assert ours.low <= ours.mean <= ours.high


def test_statistic_of_a_median_and_of_an_index():
    values = np.arange(101.0)
    median = bootstrap_statistic(values, lambda v: float(np.median(v)), resamples=500)
    assert median.mean == 50 and 30 < median.low < 50 < median.high < 70
    curves = np.random.default_rng(0).normal(size=(20, 6))
    index = bootstrap_statistic(
        curves, lambda v: float(v.mean(0).argmax()), resamples=200, discrete=True
    )
    assert index.low == int(index.low) and index.high == int(index.high)


@pytest.mark.parametrize(
    "call",
    [
        lambda: bootstrap_mean([]),
        lambda: bootstrap_mean([1.0, float("nan")]),
        lambda: bootstrap_mean([1.0], level=1.5),
        lambda: paired_loss([1, 2], [1, 2, 3]),
        lambda: binomial_interval(3, 2),
        lambda: binomial_interval(0, 0),
    ],
)
def test_refuses(call):
    with pytest.raises(CalibrationError):
        call()
