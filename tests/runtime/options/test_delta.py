"""Guidance by an earlier scale's difference of branches.

pytest tests/runtime/options/test_delta.py
"""

from __future__ import annotations

import pytest
import torch
from conftest import prompts, tiny_infinity, write_tiny
from torch import Tensor
from toy_plans import SCALES, compiled, info_of, refused

from stagevar_runtime import Sampling
from stagevar_runtime.families.var import VAR
from stagevar_runtime.loop import engine
from stagevar_runtime.loop.engine import advance, generate, start
from stagevar_runtime.loop.plan import compile_plan, plan_for
from stagevar_runtime.model.protocol import ScaleSpec
from stagevar_runtime.options.guidance import combine
from stagevar_runtime.options.tokens import resize
from stagevar_runtime.pipeline import Pipeline
from stagevar_runtime.profile import PlanStep

SAMPLING = Sampling(guidance=2.0, top_k=20, top_p=0.95)
DELTA = PlanStep(scale=2, guidance="delta")


def test_same_difference_is_full_guidance() -> None:
    cond, null = torch.randn(2, 3, 5, 7).unbind()
    both = torch.cat([cond, null])
    for weights in ((1.0, 0.0), (3.0, -2.0), (1.7, -0.7)):
        got = combine(cond, weights, cond - null)
        torch.testing.assert_close(got, combine(both, weights), atol=1e-5, rtol=1e-5)


@pytest.fixture
def constant_gap(tiny_var: VAR, monkeypatch: pytest.MonkeyPatch) -> VAR:
    """The tiny model with null = cond - a fixed vector at every scale."""
    gap = torch.randn(tiny_var.config.vocabulary, generator=torch.Generator().manual_seed(0))
    logits = VAR.logits

    def shifted(model: VAR, state, scale, x: Tensor) -> Tensor:
        out = logits(model, state, scale, x)
        cond = out[: state.batch]
        return torch.cat([cond, cond - gap]) if state.guided else cond

    monkeypatch.setattr(VAR, "logits", shifted)
    return tiny_var


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("first", [1, 2, 3])
def test_equals_full_guidance_where_the_difference_stays(
    constant_gap: VAR, first: int, temperature: float
) -> None:
    model = constant_gap
    warm = [PlanStep(scale=k, temperature=temperature) for k in range(4)]
    delta = [
        *warm[:first],
        PlanStep(scale=first, guidance="delta", temperature=temperature),
        *warm[first + 1 :],
    ]
    conditioning = model.condition(labels=[0, 3])
    seen = [
        generate(
            model,
            conditioning,
            compile_plan(steps, model.info, model.scales(), SAMPLING),
            seed=[5, 6],
        )
        for steps in (warm, delta)
    ]
    for a, b in zip(seen[0].ids, seen[1].ids, strict=True):
        assert torch.equal(a, b)
    torch.testing.assert_close(seen[0].images, seen[1].images, atol=1e-4, rtol=0)


def test_logits_are_cond_plus_the_resized_difference(tiny_var: VAR) -> None:
    conditioning = tiny_var.condition(labels=[0, 3])
    ids = generate(tiny_var, conditioning, plan_for(tiny_var, (), SAMPLING), seed=1).ids
    full = engine.replay(tiny_var, conditioning, ids, plan_for(tiny_var, (), SAMPLING))
    steps = PlanStep(scale=2, guidance="delta", guidance_scale=3.0), PlanStep(scale=3)
    plan = compile_plan(steps, tiny_var.info, tiny_var.scales(), SAMPLING)
    got = engine.replay(tiny_var, conditioning, ids, plan)
    assert [len(logits) for logits in got.logits] == [4, 4, 2, 2]
    cond, null = full.logits[1].chunk(2)
    gap = cond - null  # 2x2
    for k, side, strength in ((2, 3, 2.0), (3, 4, 2.0)):  # w - 1 = 2; the ramp ends at t = 2
        want = full.logits[k][:2] + strength * resize(gap, (2, 2), (side, side))
        torch.testing.assert_close(got.guided[k], want, atol=1e-4, rtol=1e-4)


def test_bits_have_a_difference_each() -> None:
    model = tiny_infinity()
    scales, sampling = model.scales(), model.default_sampling
    conditioning = model.condition(**prompts((3, 5)))
    ids = generate(model, conditioning, plan_for(model, (), sampling), seed=1).ids
    full = engine.replay(model, conditioning, ids)
    last = len(scales) - 1
    step = PlanStep(scale=last, guidance="delta", temperature=2.0)
    plan = compile_plan([step], model.info, scales, sampling)
    got = engine.replay(model, conditioning, ids, plan)
    cond, null = full.logits[-2].chunk(2)
    gap = resize(cond - null, scales[-2].grid, scales[-1].grid)
    want = (full.logits[-1][:2] + (sampling.guidance - 1) * gap) / 2.0  # type: ignore[operator]
    torch.testing.assert_close(got.guided[-1], want, atol=1e-4, rtol=1e-4)


def test_halves_the_rows_and_survives_a_fork(tiny_var: VAR) -> None:
    plan = compile_plan([DELTA], tiny_var.info, tiny_var.scales(), SAMPLING)
    assert [(s.branches, s.delta, s.keep_difference) for s in plan] == [
        (("cond", "null"), False, False),
        (("cond", "null"), False, True),
        (("cond",), True, False),
        (("cond",), True, False),
    ]
    conditioning = tiny_var.condition(labels=[0, 1])
    state = start(tiny_var, conditioning, plan, [4, 5])
    with torch.inference_mode():
        for step in plan[:2]:
            advance(tiny_var, state, step)
        twin = state.fork()
        for step in compile_plan((), tiny_var.info, tiny_var.scales(), SAMPLING)[2:]:
            advance(tiny_var, twin, step)
        for step in plan[2:]:
            advance(tiny_var, state, step)
    want = generate(tiny_var, conditioning, plan, seed=[4, 5])
    exact = generate(tiny_var, conditioning, plan_for(tiny_var, (), SAMPLING), seed=[4, 5])
    torch.testing.assert_close(state.canvas, want.canvas, atol=1e-5, rtol=0)
    torch.testing.assert_close(twin.canvas, exact.canvas, atol=1e-5, rtol=0)
    assert state.kv[0].k is not None and state.kv[0].k.shape[0] == 2


def test_null_runs_on_where_its_difference_is_kept() -> None:
    """A strength of 1 at scale 1 needs no null branch, the difference that scale 2 borrows does."""
    weak = [PlanStep(scale=k, guidance_scale=1.0) for k in (0, 1)]
    assert [len(step.branches) for step in compiled(*weak, DELTA)] == [2, 2, 1, 1]
    off = compiled(DELTA.model_copy(update={"guidance_scale": 1.0}), PlanStep(scale=3))
    assert [(s.delta, s.weights) for s in off[2:]] == [(False, None), (True, (3.0, -2.0))]


def test_between_delta_and_cond() -> None:
    plan = compiled(DELTA, PlanStep(scale=3, guidance="cond"))
    assert [s.delta for s in plan] == [False, False, True, False] and plan[3].weights is None
    late = compiled(PlanStep(scale=2, guidance="cond"), PlanStep(scale=3, guidance="delta"))
    assert late[1].keep_difference and late[3].delta and late[2].weights is None


def test_what_delta_needs() -> None:
    assert "scale 0 asks for 'delta' guidance, which needs a guided scale before it" in refused(
        PlanStep(scale=0, guidance="delta"), info=info_of(guidance="linear")
    )
    text_first = (ScaleSpec(0, 1, 1, 300), *SCALES[1:])
    assert "there is no token map" in refused(
        PlanStep(scale=1, guidance="delta"), scales=text_first
    )
    assert "guides hidden states" in refused(DELTA, info=info_of(guides_logits=False))
    assert "only 'null' is left" in refused(
        PlanStep(scale=1, guidance="null"), PlanStep(scale=2, guidance="delta")
    )
    assert "asks for guidance again" in refused(DELTA, PlanStep(scale=3, guidance="full"))
    assert compiled(DELTA, info=info_of(rows_independent=False))[2].delta


def test_off_as_published_stays_off() -> None:
    sampling = Sampling(guidance=2.0, guidance_off_from=3, temperature_off=0.1)
    plan = compile_plan([DELTA], info_of(), SCALES, sampling)
    assert [s.delta for s in plan] == [False, False, True, False]
    assert plan[3].branches == ("cond",) and plan[3].temperature == 0.1


def test_infinity_that_guides_inside_has_no_difference() -> None:
    inside = tiny_infinity({"guidance_layer": [-2]})
    assert not inside.info.guides_logits and tiny_infinity().info.guides_logits


def test_summary_says_so(tmp_path) -> None:
    from stagevar_runtime import load

    pipeline: Pipeline = load(write_tiny(tmp_path), profile=None, device="cpu")
    pipeline.enable([DELTA])
    pipeline.generate(labels=[1])
    assert "cond + cached difference" in str(pipeline.summary())
