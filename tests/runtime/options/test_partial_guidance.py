"""Guidance on part of the tokens of late scales.

pytest tests/runtime/options/test_partial_guidance.py
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from conftest import prompts, tiny_infinity, write_tiny
from tiny_families import hart_inputs, switti_inputs, tiny_hart, tiny_switti
from toy_plans import SCALES, compiled, info_of, refused

from stagevar_probe.measure.flops import plan_flops
from stagevar_runtime import load
from stagevar_runtime.loop import engine
from stagevar_runtime.loop.engine import generate
from stagevar_runtime.loop.plan import compile_plan, plan_for
from stagevar_runtime.model.protocol import Conditioning, ScaleModel, ScaleSpec
from stagevar_runtime.options.selectors import SELECTORS
from stagevar_runtime.options.tokens import Selector, resize, squared_norm, take
from stagevar_runtime.profile import PlanStep, TokenOption

HALF = PlanStep(scale=3, null_keep=0.5)
Made = tuple[ScaleModel, Conditioning]


@pytest.fixture
def var(tiny_var) -> Made:
    return tiny_var, tiny_var.condition(labels=[0, 3])


def infinity() -> Made:
    model = tiny_infinity()
    return model, model.condition(**prompts((3, 5)))


def switti(causal: bool) -> Made:
    model = tiny_switti(causal=causal)
    return model, switti_inputs(model, [0, 1])


def hart() -> Made:
    model = tiny_hart()
    return model, hart_inputs(model, [0, 1])


def last_map(model: ScaleModel) -> int:
    """The last scale whose tokens are plain."""
    return max(scale.index for scale in model.scales() if scale.kind == "ar")


MADE: dict[str, Callable[[], Made]] = {
    "hart": hart,
    "infinity": infinity,
    "switti": lambda: switti(causal=False),
    "switti-ar": lambda: switti(causal=True),
}


@pytest.fixture(params=["var", *MADE])
def made(request, var: Made) -> Made:
    return var if request.param == "var" else MADE[request.param]()


@pytest.mark.parametrize("before", ["guided", "skipped", "partly"])
def test_logits_are_guided_where_guidance_moved_most(made: Made, monkeypatch, before: str) -> None:
    """Against both branches run apart: cond on all tokens, null alone on the chosen ones."""
    model, inputs = made
    scales, sampling = model.scales(), model.default_sampling
    last, temperature = last_map(model), 0.7
    source = last - 1 if before == "guided" else last - 2
    if not scales[source].is_map:
        pytest.skip("this tiny model has no map two scales earlier")
    skip = [PlanStep(scale=last - 1, run="skip")] if before == "skipped" else []
    earlier = [PlanStep(scale=last - 1, null_keep=0.6)] if before == "partly" else []

    def replayed(*steps: PlanStep, ids=None) -> engine.Replay:
        plan = compile_plan([*skip, *steps], model.info, scales, sampling)
        return engine.replay(model, inputs, ids, plan)

    at = last - len(skip)  # among the scales that run
    ids = generate(model, inputs, plan_for(model, (), sampling), seed=1).ids
    full = replayed(ids=ids)
    step = PlanStep(scale=last, null_keep=0.4, guidance_scale=3.0, temperature=temperature)
    got = replayed(*earlier, step, ids=ids)
    cond, null = full.logits[source].chunk(2)

    def chosen(scale: ScaleSpec, share: float) -> torch.Tensor:
        moved = squared_norm(resize(cond - null, scales[source].grid, scale.grid))
        return moved.topk(round(share * scale.tokens), dim=1).indices.sort(dim=1).values

    index = chosen(scales[last], 0.4)
    by_grid = {scales[last].grid: index, scales[last - 1].grid: chosen(scales[last - 1], 0.6)}
    monkeypatch.setitem(SELECTORS, "these", Selector(lambda context: by_grid[context.grid]))
    alone = [PlanStep(scale=0, guidance="null")]
    for k, share in ((last - 1, 0.6), (last, 0.4))[not earlier :]:
        some = TokenOption(keep=share, select="these", restore="none", span="all")
        alone.append(PlanStep(scale=k, tokens=some))
    nulls = take(replayed(*alone, ids=ids).logits[at], index)
    conds = full.logits[at].chunk(2)[0]
    torch.testing.assert_close(got.logits[at], conds, atol=1e-5, rtol=0)
    want = conds / temperature
    want = want.scatter(
        1,
        index[..., None].expand_as(nulls),
        (3.0 * take(conds, index) - 2.0 * nulls) / temperature,
    )
    torch.testing.assert_close(got.guided[at], want, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(want, conds / temperature, atol=1e-2)


def test_all_tokens_is_the_exact_path(made: Made) -> None:
    model, inputs = made
    scales, sampling = model.scales(), model.default_sampling
    plan = compile_plan(
        [PlanStep(scale=last_map(model), null_keep=1.0)], model.info, scales, sampling
    )
    whole = generate(model, inputs, plan, seed=[4, 5])
    exact = generate(model, inputs, plan_for(model, (), sampling), seed=[4, 5])
    assert torch.equal(whole.images, exact.images) and not any(step.null_tokens for step in plan)


def test_a_batch_equals_one_at_a_time(made: Made) -> None:
    model, inputs = made
    scales, sampling = model.scales(), model.default_sampling
    last = last_map(model)
    late = (last - 1, last) if scales[last - 2].is_map else (last,)
    steps = [PlanStep(scale=k, null_keep=0.5) for k in late]
    plan = compile_plan(steps, model.info, scales, sampling)
    assert [step.scale.index for step in plan if step.null_tokens] == list(late)
    both = generate(model, inputs, plan, seed=[4, 5])
    for i in range(2):
        one = generate(model, inputs[[i]], plan, seed=[4 + i])
        torch.testing.assert_close(one.images[0], both.images[i], atol=1e-4, rtol=0)


def test_cond_goes_on_alone() -> None:
    plan = compiled(PlanStep(scale=2, null_keep=0.5))
    assert [(len(s.branches), s.null_tokens, s.keep_difference) for s in plan] == [
        *((2, 0, False), (2, 0, True), (2, 4, False), (1, 0, False))
    ]
    assert plan[3].weights is None
    assert "asks for guidance again" in refused(
        PlanStep(scale=2, null_keep=0.5), PlanStep(scale=3, guidance="full")
    )
    borrowed = compiled(PlanStep(scale=2, null_keep=0.5), PlanStep(scale=3, guidance="delta"))
    assert [s.keep_difference for s in borrowed] == [False, True, False, False]
    weak = compiled(HALF.model_copy(update={"guidance_scale": 1.0}))
    assert weak[3].branches == ("cond",) and not weak[3].null_tokens


def test_null_stays_while_scales_are_guided_in_part() -> None:
    late = PlanStep(scale=3, null_keep=0.25)
    plan = compiled(PlanStep(scale=2, null_keep=0.5), late)
    assert [(len(s.branches), s.null_tokens, s.keep_difference) for s in plan] == [
        *((2, 0, False), (2, 0, True), (2, 4, False), (2, 4, False))
    ]
    skipped = compiled(PlanStep(scale=1, null_keep=0.5), PlanStep(scale=2, run="skip"), late)
    assert [s.null_tokens for s in skipped] == [0, 2, 0, 4]
    whole = compiled(PlanStep(scale=2, null_keep=0.5), late.model_copy(update={"null_keep": 1.0}))
    assert whole[3].null_tokens == 16  # its own keys and values: not as if it had seen all
    weak = PlanStep(scale=2, null_keep=0.5, guidance_scale=1.0)
    assert [s.null_tokens for s in compiled(weak, late)] == [0, 0, 4, 4]
    assert [s.null_tokens for s in compiled(weak)] == [0, 0, 0, 0]
    assert "guidance is dropped there" in refused(
        PlanStep(scale=1, null_keep=0.5), PlanStep(scale=2, guidance="cond"), late
    )


def test_what_it_needs() -> None:
    assert "scale 0 asks for guidance on part of its tokens, which needs a guided" in refused(
        PlanStep(scale=0, null_keep=0.4),
        info=info_of(guidance="linear"),
        scales=(ScaleSpec(0, 2, 2, 4), *SCALES[1:]),
    )
    for info in (info_of(rows_independent=False), info_of(guides_logits=False)):
        assert "the toy family cannot do" in refused(HALF, info=info)
    assert "guidance is dropped there" in refused(PlanStep(scale=2, guidance="cond"), HALF)
    tokens = TokenOption(keep=0.5, select="norm", restore="cache")
    assert "runs in full" in refused(HALF.model_copy(update={"tokens": tokens}))
    with pytest.raises(ValueError, match="null_keep at skipped scale 3"):
        PlanStep(scale=3, run="skip", null_keep=0.5)
    with pytest.raises(ValueError, match="less than or equal to 1"):
        PlanStep(scale=3, null_keep=1.5)


def test_costs_between_cond_and_both() -> None:
    work = [
        plan_flops(info_of(), compiled(*steps))
        for steps in ([PlanStep(scale=3, guidance="cond")], [HALF], [])
    ]
    assert work == sorted(set(work))
    unseen = 2 * 4 * 8 * 8 * 64  # in two blocks 8 queries have 8 keys less of their own scale
    assert work[1] - work[0] == (work[2] - work[0]) / 2 - unseen


def test_summary_says_so(tmp_path) -> None:
    pipeline = load(write_tiny(tmp_path), profile=None, device="cpu")
    pipeline.enable([HALF])
    pipeline.generate(labels=[1])
    assert "on 8 tokens" in str(pipeline.summary()) and "null_keep 0.5" in str(pipeline.summary())
