"""Run with: pytest tests/probe/observe/test_sensitivity.py"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import rel_entr

from stagevar_probe.observe import sensitivity as module
from stagevar_probe.observe.sensitivity import (
    changed_ids,
    coupled_draw,
    gumbel_from,
    js_divergence,
    observed_sensitivity,
)
from stagevar_runtime.errors import CalibrationError


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def uniform(*shape, seed=0, dtype=torch.float64):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 30), st.floats(0.1, 20))
def test_equals_scipy_and_is_symmetric_and_bounded(seed, size, spread):
    p, q = normal(3, size, seed=seed) * spread, normal(3, size, seed=seed + 1) * spread
    ours = js_divergence(p, q)
    a, b = p.double().softmax(-1).numpy(), q.double().softmax(-1).numpy()
    expected = (rel_entr(a, (a + b) / 2) + rel_entr(b, (a + b) / 2)).sum(-1) / 2
    assert torch.allclose(ours, torch.as_tensor(expected), atol=1e-10)
    assert torch.allclose(ours, js_divergence(q, p), atol=1e-15)
    assert (ours >= 0).all() and (ours <= math.log(2)).all()


def test_masked_logits():
    inf = math.inf
    p = torch.tensor([[0.0, -inf, -inf], [0.0, 0.0, -inf], [1.0, 2.0, -inf]])
    q = torch.tensor([[-inf, 0.0, -inf], [0.0, -inf, 0.0], [1.0, 2.0, -inf]])
    assert js_divergence(p, q).tolist() == pytest.approx([math.log(2), math.log(2) / 2, 0])
    with pytest.raises(CalibrationError, match="no distribution"):
        js_divergence(torch.full((1, 3), -inf), torch.zeros(1, 3))


def test_small_differences_are_not_lost_and_chunks_do_not_matter(monkeypatch):
    p = normal(2, 5, 16).double()
    q = p + 1e-5 * normal(2, 5, 16, seed=1).double()
    whole = js_divergence(p, q)
    assert (whole > 1e-13).all() and (whole < 1e-9).all()
    monkeypatch.setattr(module, "CHUNK", 40)
    assert torch.equal(js_divergence(p, q), whole)


@pytest.mark.parametrize("kind", ["gumbel", "exponential", "uniform"])
def test_draws_follow_the_distribution(kind):
    logits = torch.tensor([0.0, 1.0, -1.0, -math.inf]).double().expand(40000, 4)
    u = uniform(40000, 4)
    noise = {"uniform": u, "exponential": -u.log(), "gumbel": -(-u.log()).log()}[kind]
    share = torch.bincount(coupled_draw(logits, noise, kind), minlength=4) / 40000
    assert torch.allclose(share.double(), logits[0].softmax(-1), atol=0.01)
    assert torch.equal(coupled_draw(logits, noise, kind), coupled_draw(logits, u, "uniform"))


def test_exponential_noise_is_what_multinomial_uses():
    probabilities = normal(50, 7).softmax(-1)
    drawn = torch.multinomial(probabilities, 1, generator=torch.Generator().manual_seed(4))[:, 0]
    noise = torch.empty(50, 7).exponential_(generator=torch.Generator().manual_seed(4))
    assert torch.equal(coupled_draw(probabilities.log(), noise, "exponential"), drawn)


def test_extreme_noise_stays_finite():
    edge = torch.tensor([0.0, 1.0])
    assert gumbel_from(edge, "uniform").isfinite().all()
    assert gumbel_from(edge, "exponential").isfinite().all()


def test_changed_share_is_bounded_by_the_distributions():
    p, q, u = normal(1, 20000, 5), normal(1, 20000, 5, seed=1), uniform(1, 20000, 5)
    total_variation = (p.softmax(-1) - q.softmax(-1)).abs().sum(-1).mean() / 2
    share = changed_ids(p, q, u, "uniform").item()
    assert total_variation - 0.01 <= share <= 2 * total_variation + 0.01
    assert changed_ids(p, p + 3, u, "uniform").item() == 0


def test_per_image_and_by_branch():
    cond, null = normal(2, 6, 9), normal(2, 6, 9, seed=1)
    null[1] = cond[1]  # the second image does not listen to its prompt
    out = observed_sensitivity(torch.cat([cond, null]), (3.0, -2.0), noise=normal(2, 6, 9, seed=2))
    assert set(out) == {"cond", "null", "changed_cond", "changed_null"}
    assert all(v.shape == (2,) for v in out.values())
    assert out["cond"][0] > 0.01 and out["null"][0] > out["cond"][0]
    assert out["changed_null"][0] > 0
    assert all(v[1].item() == pytest.approx(0, abs=1e-6) for v in out.values())
    expected = js_divergence((3 * cond - 2 * null)[0], cond[0]).mean()
    assert out["cond"][0].item() == pytest.approx(expected.item(), rel=1e-4)


def test_no_guidance_has_no_sensitivity_to_the_cond_branch():
    out = observed_sensitivity(normal(4, 5, 8), (1.0, 0.0))
    assert (out["cond"] < 1e-15).all() and (out["null"] > 0).all()
    out = observed_sensitivity(normal(4, 5, 8), (0.0, 1.0))
    assert (out["null"] < 1e-15).all() and (out["cond"] > 0).all()


def test_delta_of_the_same_scale_is_exact_guidance():
    logits = normal(4, 5, 8)
    cond, null = logits.chunk(2)
    out = observed_sensitivity(logits, (2.5, -1.5), delta=cond - null, noise=uniform(2, 5, 8))
    assert out["delta"].abs().max() < 1e-10 and (out["changed_delta"] == 0).all()


def test_temperature_and_top_k_reach_the_distributions():
    logits = normal(2, 50, 8)
    hot = observed_sensitivity(logits, (3.0, -2.0), temperature=100.0)
    assert hot["cond"] < 0.01 * observed_sensitivity(logits, (3.0, -2.0))["cond"]
    greedy = observed_sensitivity(logits, (3.0, -2.0), top_k=1)["cond"].item()
    cond, null = logits.chunk(2)
    flips = ((3 * cond - 2 * null).argmax(-1) != cond.argmax(-1)).double().mean().item()
    assert greedy == pytest.approx(math.log(2) * flips)


def test_bits_are_pairs_of_logits():
    logits, noise = normal(2, 4, 6), uniform(1, 4, 6)
    out = observed_sensitivity(logits, (3.0, -2.0), pairs=True, noise=noise, kind="uniform")
    cond, null = logits.chunk(2)
    guided = 3 * cond - 2 * null
    bit = [js_divergence(guided[..., i : i + 2], cond[..., i : i + 2]) for i in (0, 2, 4)]
    assert out["cond"].item() == pytest.approx(torch.stack(bit).mean().item(), rel=1e-4)
    assert out["changed_cond"].item() * 12 == pytest.approx(round(out["changed_cond"].item() * 12))


def test_refuses():
    with pytest.raises(CalibrationError, match="rows"):
        observed_sensitivity(normal(3, 2, 4), (1.0, 0.0))
    with pytest.raises(CalibrationError, match="temperature"):
        observed_sensitivity(normal(2, 2, 4), (1.0, 0.0), temperature=0)
    with pytest.raises(CalibrationError, match="pairs"):
        observed_sensitivity(normal(2, 2, 5), (1.0, 0.0), pairs=True)
    with pytest.raises(CalibrationError, match="noise"):
        coupled_draw(normal(2, 4), normal(2, 5))
    with pytest.raises(CalibrationError, match="expected gumbel"):
        coupled_draw(normal(2, 4), normal(2, 4), "laplace")
