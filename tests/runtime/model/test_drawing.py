"""Top-k and top-p against plain numpy, and coupled noise.

pytest tests/runtime/model/test_drawing.py
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stagevar_runtime.errors import StagevarError
from stagevar_runtime.model.sampling import Noise, ScaleSampling, draw, mask_logits

CPU = torch.device("cpu")


def plain_mask(row: np.ndarray, top_k: int, top_p: float) -> set[int]:
    """Which tokens stay, as VAR's helpers.py says it, one row at a time."""
    stay = set(range(len(row)))
    if 0 < top_k < len(row):
        kth = np.sort(row)[-top_k]
        stay = {i for i in stay if row[i] >= kth}
    if 0 < top_p < 1:
        left = np.array([row[i] if i in stay else -np.inf for i in range(len(row))])
        p = np.exp(left - left.max())
        p /= p.sum()
        order = np.argsort(left, kind="stable")
        mass = np.cumsum(p[order])
        removed = {int(i) for i, m in zip(order[:-1], mass[:-1], strict=True) if m <= 1 - top_p}
        stay -= removed
    return stay


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(-40, 40), min_size=2, max_size=12, unique=True),
    st.integers(0, 13),
    st.sampled_from([0.0, 0.31, 0.5, 0.77, 0.953, 1.0]),
)
def test_mask_against_plain_numpy(values: list[int], top_k: int, top_p: float) -> None:
    row = np.array(values) / 8
    masked = mask_logits(torch.tensor(row)[None, None], top_k, top_p)[0, 0]
    stay = {i for i, x in enumerate(masked.tolist()) if x != -np.inf}
    assert stay == plain_mask(row, top_k, top_p)
    assert all(masked[i] == row[i] for i in stay)


def test_ties_with_the_kth_stay_and_the_likeliest_always_does() -> None:
    tied = mask_logits(torch.tensor([[[1.0, 3.0, 2.0, 2.0]]]), 2, 0.0)
    assert tied.isfinite().tolist() == [[[False, True, True, True]]]
    sharp = mask_logits(torch.tensor([[[0.0, 50.0, 0.0]]]), 0, 1e-6)
    assert sharp.isfinite().tolist() == [[[False, True, False]]]


def test_draws_follow_the_probabilities() -> None:
    logits = torch.tensor([0.1, 0.2, 0.7]).log().expand(1, 6000, 3)
    ids = draw(logits, ScaleSampling(), Noise([5], 1, CPU), 0).ids
    shares = torch.bincount(ids.flatten(), minlength=3) / 6000
    torch.testing.assert_close(shares, torch.tensor([0.1, 0.2, 0.7]), atol=0.03, rtol=0)


def test_noise_of_an_image_is_coupled_to_its_seed_and_scale_alone() -> None:
    logits = torch.zeros(2, 40, 30)
    both = draw(logits, ScaleSampling(), Noise([5, 6], 2, CPU), 3).ids
    late = Noise([6], 1, CPU)
    draw(logits[:1], ScaleSampling(), late, 1)  # what was drawn before does not matter
    assert torch.equal(draw(logits[:1], ScaleSampling(), late, 3).ids[0], both[1])
    assert not torch.equal(both[0], both[1])
    assert not torch.equal(draw(logits[:1], ScaleSampling(), late, 4).ids[0], both[1])


def test_coupled_draws_differ_only_where_the_distribution_does() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 400, 8, generator=generator)
    other = logits + 0.01 * torch.randn(1, 400, 8, generator=generator)
    a, b = (draw(x, ScaleSampling(), Noise([5], 1, CPU), 0).ids for x in (logits, other))
    c = draw(logits, ScaleSampling(), Noise([6], 1, CPU), 0).ids
    assert (a != b).float().mean() < 0.05 < (a != c).float().mean()


def test_one_seed_draws_as_one_generator_for_the_batch() -> None:
    logits = torch.randn(2, 5, 9, generator=torch.Generator().manual_seed(1))
    noise = Noise(7, 2, CPU)
    plain = torch.Generator().manual_seed(7)
    for scale in (0, 1):
        want = torch.multinomial(logits.softmax(-1).view(-1, 9), 1, True, generator=plain)
        assert torch.equal(draw(logits, ScaleSampling(), noise, scale).ids, want.view(2, 5))


def test_a_fork_draws_the_same_from_here() -> None:
    logits = torch.zeros(2, 5, 9)
    for seed in (7, [7, 8]):
        noise = Noise(seed, 2, CPU)
        draw(logits, ScaleSampling(), noise, 0)
        twin = noise.fork()
        first = draw(logits, ScaleSampling(), noise, 1).ids
        assert torch.equal(draw(logits, ScaleSampling(), twin, 1).ids, first)


def test_derived_streams_stay_what_they_were() -> None:
    """Profiles, figures and half-done calibrations were drawn from these: numpy's SeedSequence
    spreads numbers as well, but gives others."""
    noise = Noise([7, 2**63 - 1], 2, CPU)
    got = [g.initial_seed() for key in ((0,), (3, 1)) for g in noise.derived(*key)]
    assert got == [
        *(5992464809206441087, 4594296989017925900),
        *(9028856401796855084, 6333305003485619065),
    ]
    assert np.random.SeedSequence([7, 0]).generate_state(1, np.uint64)[0] >> 1 != got[0]


def test_derived_streams_are_apart() -> None:
    noise = Noise([1, 2], 2, CPU)
    keys = [(0,), (1,), (0, 1), (1, 0), (0, 0)]
    drawn = [torch.rand(4, generator=g) for key in keys for g in noise.derived(*key)]
    assert len({tuple(x.tolist()) for x in drawn}) == len(drawn)
    again = torch.rand(4, generator=noise.derived(0, 1)[1])
    assert torch.equal(again, drawn[5])


def test_wrong_number_of_seeds() -> None:
    with pytest.raises(StagevarError, match="got 1 seeds for 2 images"):
        Noise([1], 2, CPU)
