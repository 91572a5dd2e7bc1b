"""Selectors and restorers against plain numpy.

pytest tests/runtime/options/test_tokens.py
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stagevar_runtime.options import restorers, selectors
from stagevar_runtime.options.restorers import RESTORERS, spread
from stagevar_runtime.options.selectors import SELECTORS
from stagevar_runtime.options.sketch import orthonormal_sketch
from stagevar_runtime.options.tokens import Grid, Kept, TokenContext, kept_tokens, put, resize, take


def scene_of(x: Tensor, keep: int, generators: list[torch.Generator]) -> TokenContext:
    """Tokens in one row, with half as many that went before them."""
    n = x.shape[1]
    before = resize(x.roll(1, 1) + 0.3 * x.flip(1), (1, n), (1, max(1, n // 2)))
    return TokenContext(x, (1, n), keep, generators, before=(before, (1, max(1, n // 2))))


def select(
    x: Tensor, keep: int, method: str, generators: list[torch.Generator], leaders: int = 0
) -> Kept:
    return selectors.select(scene_of(x, keep, generators), method, leaders)


def restore(
    x: Tensor,
    kept: Kept,
    y: Tensor,
    method: str,
    grid: Grid,
    before: tuple[Tensor, Grid] | None = None,
    after: tuple[Tensor, Grid] | None = None,
) -> Tensor:
    context = TokenContext(x, grid, kept.index.shape[1], before=before, after=after)
    return restorers.restore(context, kept, y, method)


def lift(x: Tensor, index: Tensor, change: Tensor) -> Tensor:
    return spread(TokenContext(x, (1, x.shape[1]), index.shape[1]).sketch, index, change)


def tokens(rows: int = 2, n: int = 16, d: int = 24, seed: int = 0) -> Tensor:
    return torch.randn(rows, n, d, generator=torch.Generator().manual_seed(seed))


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@given(st.floats(0.001, 1), st.integers(1, 5000), st.sampled_from([1, 8, 16]))
def test_kept_tokens(ratio: float, n: int, multiple: int) -> None:
    r = kept_tokens(ratio, n, multiple)
    assert 1 <= r <= n
    assert r == n or r % multiple == 0
    assert r >= min(n, ratio * n - 0.5)
    assert r <= max(1, ratio * n + 0.5) + multiple - 1
    assert kept_tokens(1.0, n, multiple) == n


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([*SELECTORS]), st.integers(1, 16), st.integers(0, 1000))
def test_kept_indices_are_ascending_and_apart(method: str, keep: int, seed: int) -> None:
    x = tokens(seed=seed)
    kept = select(x, keep, method, generators(1, 2))
    assert kept.x.shape == (2, keep, 24) and kept.index.shape == (2, keep)
    assert (kept.index.diff(dim=1) > 0).all()
    assert kept.index.min() >= 0 and kept.index.max() < 16
    if method != "projection":
        assert torch.equal(kept.positions, kept.index)
        assert torch.equal(kept.x, take(x, kept.index))


@pytest.mark.parametrize("method", SELECTORS)
def test_rows_do_not_see_each_other(method: str) -> None:
    x = tokens(rows=3)
    together = select(x, 6, method, generators(4, 5, 6))
    for i in range(3):
        alone = select(x[i : i + 1], 6, method, generators(4 + i))
        assert torch.equal(alone.index[0], together.index[i])
        torch.testing.assert_close(alone.x[0], together.x[i], atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", ["projection", "norm"])
def test_branches_of_an_image_share_their_draws(method: str) -> None:
    x = tokens(rows=2)
    both = select(torch.cat([x, x]), 6, method, generators(4, 5))
    assert torch.equal(both.index[:2], both.index[2:]) and torch.equal(both.x[:2], both.x[2:])
    assert not torch.equal(both.index[0], both.index[1])


def test_leaders_choose_for_the_rows_behind_them() -> None:
    x = tokens(rows=4)
    for method in SELECTORS:
        led = select(x, 6, method, generators(4, 5), leaders=2)
        assert torch.equal(led.index[:2], led.index[2:])
        alone = select(x[:2], 6, method, generators(4, 5))
        assert torch.equal(led.index[:2], alone.index)


def test_norm_samples_in_proportion_to_squared_norms() -> None:
    """The first of a weighted draw without replacement is taken with p ∝ ‖x‖² exactly."""
    weights = np.array([1.0, 2.0, 3.0, 10.0])
    x = torch.tensor(weights**0.5, dtype=torch.float32)[None, :, None].expand(1, 4, 5) / 5**0.5
    draws = 4000
    picked = select(x.expand(draws, 4, 5), 1, "norm", generators(*range(draws))).index[:, 0]
    shares = np.bincount(picked.numpy(), minlength=4) / draws
    expected = weights / weights.sum()
    assert np.abs(shares - expected).max() < 4 * np.sqrt(0.25 / draws)
    pairs = select(x.expand(draws, 4, 5), 2, "norm", generators(*range(draws))).index
    second = np.bincount(pairs.flatten().numpy(), minlength=4) / draws
    p = expected
    exact = [p[i] + sum(p[j] * p[i] / (1 - p[j]) for j in range(4) if j != i) for i in range(4)]
    assert np.abs(second - exact).max() < 4 * np.sqrt(0.25 / draws)


def test_deviation_takes_the_farthest_from_the_mean() -> None:
    x = tokens(rows=1)
    far = np.linalg.norm(x[0].numpy() - x[0].numpy().mean(0), axis=1)
    kept = select(x, 5, "deviation", generators(0))
    assert kept.index[0].tolist() == sorted(np.argsort(far)[-5:].tolist())


def test_leverage_picks_the_outlier_row_that_norms_miss() -> None:
    generator = torch.Generator().manual_seed(3)
    direction = torch.randn(1, 24, generator=generator)
    x = 5 * torch.randn(16, 1, generator=generator).abs() @ direction
    x = x + 0.01 * torch.randn(16, 24, generator=generator)
    x[7] = 0.3 * torch.randn(24, generator=generator)  # small, but alone in its direction
    kept = select(x[None], 2, "leverage", generators(0))
    assert 7 in kept.index[0].tolist()
    assert 7 not in select(x[None], 2, "norm", generators(0)).index[0].tolist()


def test_sketch_is_orthonormal_and_finds_the_leading_space() -> None:
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(16, 3)))[0]
    scale = np.diag([9.0, 5.0, 3.0])
    right = np.linalg.qr(np.random.default_rng(1).normal(size=(24, 3)))[0]
    x = torch.tensor(basis @ scale @ right.T, dtype=torch.float32)[None]
    q = orthonormal_sketch(x + 1e-4 * tokens(rows=1), 3)[0].numpy()
    np.testing.assert_allclose(q.T @ q, np.eye(3), atol=1e-3)
    np.testing.assert_allclose(q @ q.T @ basis, basis, atol=1e-2)
    assert torch.isfinite(orthonormal_sketch(torch.zeros(1, 16, 24), 3)).all()
    assert orthonormal_sketch(tokens(), 64).shape == (2, 16, 16)


def test_projection_mixes_all_tokens_as_published() -> None:
    x = tokens(rows=1, n=400, d=8)
    kept = select(x, 100, "projection", generators(9))
    assert kept.positions[0].tolist() == list(range(100))
    q = torch.randn(400, 100, generator=generators(9)[0]) / 100**0.5
    torch.testing.assert_close(kept.x[0], q.T @ x[0], atol=1e-4, rtol=0)
    ratio = kept.x.square().sum(-1).mean() / x.square().sum(-1).mean()
    assert abs(float(ratio) - 4) < 1.2  # n / r: the published rows are √(n/r) too long


def test_unknown_names() -> None:
    kept = select(tokens(), 4, "norm", generators(0, 1))
    with pytest.raises(ValueError, match="unknown selector 'best'"):
        select(tokens(), 4, "best", generators(0, 1))
    with pytest.raises(ValueError, match="unknown restorer 'magic'"):
        restore(tokens(), kept, kept.x, "magic", (4, 4))


def test_put_and_take_are_inverse() -> None:
    x, index = tokens(), torch.tensor([[1, 4, 9], [0, 2, 15]])
    assert torch.equal(put(x, index, take(x, index)), x)
    changed = put(x, index, torch.zeros(2, 3, 24))
    assert (changed[0, [1, 4, 9]] == 0).all() and torch.equal(changed[0, 2], x[0, 2])


def test_resize_is_area() -> None:
    x = tokens(rows=1, n=16, d=3)
    maps = x[0].numpy().reshape(4, 4, 3)
    half = maps.reshape(2, 2, 2, 2, 3).mean((1, 3)).reshape(4, 3)
    np.testing.assert_allclose(resize(x, (4, 4), (2, 2))[0].numpy(), half, atol=1e-6)
    double = np.repeat(np.repeat(maps, 2, 0), 2, 1).reshape(64, 3)
    np.testing.assert_allclose(resize(x, (4, 4), (8, 8))[0].numpy(), double, atol=1e-6)
    assert resize(x, (2, 8), (2, 8)) is x
    assert resize(x, (2, 8), (1, 4)).shape == (1, 4, 3)


@pytest.mark.parametrize("method", RESTORERS)
def test_kept_tokens_get_what_they_computed(method: str) -> None:
    x, y = tokens(), tokens(n=6, seed=8)
    kept = select(x, 6, "norm", generators(0, 1))
    before, after = (tokens(n=9, seed=s) for s in (5, 6))
    out = restore(x, kept, y, method, (4, 4), (before, (3, 3)), (after, (3, 3)))
    torch.testing.assert_close(take(out, kept.index), y)
    others = [j for j in range(16) if j not in kept.index[0].tolist()]
    expected = {
        "none": x,
        "cache": resize(after, (3, 3), (4, 4)),
        "delta-cache": x + resize(after - before, (3, 3), (4, 4)),
    }
    if method in expected:
        torch.testing.assert_close(out[0, others], expected[method][0, others])
    else:
        assert not torch.equal(out[0, others], x[0, others])


def test_lift_against_numpy() -> None:
    x = tokens(rows=1)
    index = torch.tensor([[0, 3, 4, 8, 9, 15]])
    update = tokens(rows=1, n=6, seed=4)
    q = orthonormal_sketch(x, 6)[0].double().numpy()
    kept = q[index[0].numpy()]
    gram = kept.T @ kept
    gram += 0.05 * np.trace(gram) / 6 * np.eye(6)
    expected = q @ np.linalg.solve(gram, kept.T @ update[0].double().numpy())
    np.testing.assert_allclose(lift(x, index, update)[0].numpy(), expected, atol=1e-4)


def test_lift_rebuilds_an_update_that_is_linear_in_x() -> None:
    """Low-rank tokens, update x·M: the kept tokens say what happened to all the others."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(1, 64, 3, generator=generator) @ torch.randn(3, 24, generator=generator)
    update = x @ torch.randn(24, 24, generator=generator)
    kept = select(x, 32, "leverage", generators(0))
    lifted = lift(x, kept.index, take(update, kept.index))
    error = (lifted - update).norm() / update.norm()
    assert error < 0.1  # the ridge shrinks a little
    out = restore(x, kept, take(x + update, kept.index), "lift", (8, 8))
    assert (out - x - update).norm() / update.norm() < 0.1
    nothing = restore(x, kept, take(x + update, kept.index), "none", (8, 8))
    assert (nothing - x - update).norm() / update.norm() > 0.3


def test_half_precision_stays_half() -> None:
    x = tokens().bfloat16()
    for method in SELECTORS:
        kept = select(x, 6, method, generators(0, 1))
        assert isinstance(kept, Kept) and kept.x.dtype == torch.bfloat16
        assert restore(x, kept, kept.x, "lift", (4, 4)).dtype == torch.bfloat16
