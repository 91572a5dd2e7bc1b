"""What a plan may ask, and what it compiles to.

pytest tests/runtime/loop/test_plan.py
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from stagevar_runtime.errors import ProfileError
from stagevar_runtime.families.var import VAR
from stagevar_runtime.loop.engine import advance, generate, start
from stagevar_runtime.loop.plan import Plan, compile_plan, plan_for
from stagevar_runtime.model.kvcache import KVCache
from stagevar_runtime.model.protocol import ModelInfo, ScaleSpec, split_depth
from stagevar_runtime.model.sampling import Sampling
from stagevar_runtime.options.groups import GroupStep, TokenStep
from stagevar_runtime.profile import PlanStep, TokenOption
from stagevar_runtime.profile.presets import PRESETS, preset

SAMPLING = Sampling(guidance=2.0, top_k=20, top_p=0.95)
SIDES = (1, 2, 3, 4)
SCALES = tuple(ScaleSpec(k, s, s, s * s) for k, s in enumerate(SIDES))
CACHE = TokenOption(keep=0.5, select="norm", restore="cache")
GROUPS = (range(0, 1), range(1, 2))


def info_of(**changes: Any) -> ModelInfo:
    base: dict[str, Any] = {"depth": 2, "groups": GROUPS, "guidance": "ramp"}
    return ModelInfo(family="toy", width=64, heads=2, **(base | changes))


def compiled(*steps: PlanStep, info: ModelInfo | None = None) -> Plan:
    return compile_plan(steps, info or info_of(), SCALES, SAMPLING)


def refused(*steps: PlanStep, info: ModelInfo | None = None, scales=SCALES) -> str:
    with pytest.raises(ProfileError) as caught:
        compile_plan(steps, info or info_of(), scales, SAMPLING)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_scale_the_model_lacks() -> None:
    assert "names scale 4, the model has 4 (0 to 3)" in refused(PlanStep(scale=4, run="skip"))


def test_scale_named_twice() -> None:
    assert "twice" in refused(
        PlanStep(scale=1, temperature=0.5), PlanStep(scale=1, guidance="cond")
    )


def test_guidance_cannot_return_where_keys_are_gone() -> None:
    steps = PlanStep(scale=1, guidance="cond"), PlanStep(scale=2, guidance="full")
    assert "scale 2 asks for guidance again after it was dropped" in refused(*steps)
    again = compiled(*steps, info=info_of(causal=False))
    assert [len(step.branches) for step in again] == [2, 1, 2, 2]


def test_one_branch_cannot_become_the_other() -> None:
    steps = PlanStep(scale=1, guidance="cond"), PlanStep(scale=2, guidance="null")
    assert "asks for the 'null' branch, but only 'cond' is left" in refused(*steps)


def test_branches_a_family_cannot_run_alone() -> None:
    null = PlanStep(scale=2, guidance="null")
    assert "cannot run without the other. Use 'cond'" in refused(
        null, info=info_of(rows_independent=False)
    )
    assert "'null' branch alone" in refused(null, info=info_of(branches=("cond",)))


def test_strength_without_guidance() -> None:
    steps = PlanStep(scale=1, guidance="cond"), PlanStep(scale=2, guidance_scale=2.0)
    assert "scale 2 sets guidance_scale 2.0 where guidance is dropped" in refused(*steps)


def test_ratios_must_fit_the_groups() -> None:
    option = CACHE.model_copy(update={"keep": (0.5, 0.5, 0.5)})
    assert "gives 3 keep ratios, the model has 2 groups" in refused(
        PlanStep(scale=3, tokens=option)
    )


@pytest.mark.parametrize(
    "odd", [ScaleSpec(3, 4, 4, 16, "final"), ScaleSpec(3, 4, 4, 17)], ids=["final", "text"]
)
def test_scales_that_are_no_token_maps(odd: ScaleSpec) -> None:
    scales = (*SCALES[:3], odd)
    assert "no plain token map" in refused(PlanStep(scale=3, tokens=CACHE), scales=scales)


@pytest.mark.parametrize("restore", ["cache", "delta-cache"])
def test_nothing_to_restore_from(restore: str) -> None:
    option = CACHE.model_copy(update={"restore": restore})
    skips = [PlanStep(scale=k, run="skip") for k in range(3)]
    assert "no scale runs before it" in refused(*skips, PlanStep(scale=3, tokens=option))


def test_inner_groups_of_a_scale_that_ran_all_at_once() -> None:
    """Its groups' outputs were never there for all tokens."""
    whole = CACHE.model_copy(update={"span": "all"})
    said = refused(PlanStep(scale=2, tokens=whole), PlanStep(scale=3, tokens=CACHE))
    assert "give both the same span" in said
    plan = compiled(PlanStep(scale=2, tokens=CACHE), PlanStep(scale=3, tokens=whole))
    assert plan[2].store == (2,) and plan[1].store == (1, 2)


def test_skipping_everything() -> None:
    said = refused(*(PlanStep(scale=k, run="skip") for k in range(4)))
    assert "nothing would be drawn" in said


def test_keep_of_everything_is_full() -> None:
    for span in ("group", "all"):
        option = TokenOption(keep=1.0, select="norm", restore="cache", span=span)
        step = compiled(PlanStep(scale=3, tokens=option))[3]
        assert step.groups == tuple(GroupStep(g) for g in GROUPS) and not step.reduced
    assert compiled(PlanStep(scale=3, tokens=option))[2].store == ()


def test_kept_tokens_are_rounded_up_to_tiles() -> None:
    option = TokenOption(keep=(0.3, 0.9), select="norm", restore="none")
    groups = compiled(PlanStep(scale=3, tokens=option), info=info_of(tile=8))[3].groups
    assert groups[0].tokens == TokenStep(8, "norm", "none")
    assert groups[1].tokens is None  # 14 of 16 rounds up to all


def test_ramp_weights_and_overrides() -> None:
    plan = compiled(
        PlanStep(scale=0, guidance_scale=3.0),
        PlanStep(scale=1, temperature=0.5),
        PlanStep(scale=3, guidance="cond", temperature=0.7),
    )
    assert plan[0].weights == (3.0, -2.0)
    assert plan[1].temperature == 0.5 and plan[1].weights == (1 + 2 / 3, -2 / 3)
    assert plan[2].temperature == 1.0 and plan[2].weights == (1 + 4 / 3, -4 / 3)
    assert (plan[3].weights, plan[3].branches, plan[3].temperature) == (None, ("cond",), 0.7)
    assert [step.asked is not None for step in plan] == [True, True, False, True]


def test_null_without_weight_is_not_run() -> None:
    plan = compiled(PlanStep(scale=2, guidance_scale=1.0), PlanStep(scale=3, guidance_scale=1.0))
    assert [len(step.branches) for step in plan] == [2, 2, 1, 1]
    only = compiled(*(PlanStep(scale=k, guidance_scale=1.0) for k in (1, 2, 3)))
    assert all(step.branches == ("cond",) for step in only)  # the ramp starts at none


OPTIONS = st.builds(
    TokenOption,
    keep=st.sampled_from([0.2, 0.5, 0.9, 1.0]),
    select=st.sampled_from(["projection", "norm", "deviation", "leverage"]),
    restore=st.sampled_from(["cache", "delta-cache", "lift", "none"]),
    span=st.sampled_from(["group", "all"]),
)


@st.composite
def any_steps(draw: Any) -> list[PlanStep]:
    """Steps a profile may hold: schedule, then a drop, then skips, tokens where there are some."""
    drop, skip = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    branch = draw(st.sampled_from(["cond", "null"]))
    steps = []
    for k in range(4):
        if k >= skip:
            steps.append(PlanStep(scale=k, run="skip"))
        elif draw(st.booleans()) or k == drop:
            steps.append(
                PlanStep(
                    scale=k,
                    guidance=branch if k >= drop else None,
                    guidance_scale=draw(st.none() | st.floats(1, 4)) if k < drop else None,
                    temperature=draw(st.none() | st.floats(0.2, 2)),
                    tokens=draw(st.none() | OPTIONS) if k > 0 else None,
                )
            )
    return steps


@settings(max_examples=60, deadline=None)
@given(any_steps())
def test_any_valid_plan_compiles_runs_and_keeps_its_promises(
    tiny_var: VAR, steps: list[PlanStep]
) -> None:
    try:
        plan = compile_plan(steps, tiny_var.info, tiny_var.scales(), SAMPLING)
    except ProfileError as error:
        assert "same span" in str(error)
        assume(False)
    assert [step.scale.index for step in plan] == [0, 1, 2, 3]
    rows = [len(step.branches) for step in plan if step.run != "skip"]
    assert rows == sorted(rows, reverse=True)  # dropped rows never return
    for step in plan:
        assert (step.weights is None) == (len(step.branches) == 1)
        assert [b for g in step.groups for b in g.blocks] == [0, 1]
    grown: list[int] = []
    grow = KVCache._grow

    def count(cache: KVCache, *args: Any) -> None:
        grown.append(id(cache))
        grow(cache, *args)

    state = start(tiny_var, tiny_var.condition(labels=[0, 1]), plan, [1, 2])
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr(KVCache, "_grow", count)
        for step in plan:
            advance(tiny_var, state, step)
            assert all(cache.length <= step.capacity for cache in state.kv) or step.run == "skip"
    assert all(grown.count(cache) <= len(set(rows)) for cache in grown)  # once for each row count
    assert torch.isfinite(state.canvas).all()
    want = sum(s.scale.tokens for s in plan if s.run != "skip" and not s.reduced)
    want += sum(
        (s.groups[0].tokens.keep if s.groups[0].tokens else s.scale.tokens)
        for s in plan
        if s.run != "skip" and s.reduced
    )
    assert state.kv[0].length == want


def test_exact_plan_of_the_model(tiny_var: VAR) -> None:
    plan = plan_for(tiny_var, (), SAMPLING)
    assert all(len(step.branches) == 2 and not step.store and not step.reduced for step in plan)
    assert {step.capacity for step in plan} == {30}


# -- presets --------------------------------------------------------------------------------------


def scales_of(count: int) -> tuple[ScaleSpec, ...]:
    return tuple(ScaleSpec(k, k + 1, k + 1, (k + 1) ** 2) for k in range(count))


@pytest.mark.parametrize("count", [4, 7, 10, 13, 14])
@pytest.mark.parametrize("name", PRESETS)
def test_presets_compile(name: str, count: int) -> None:
    hart = (ScaleSpec(0, 1, 1, 300), *scales_of(count)[1:-1])
    hart = (*hart, replace(scales_of(count)[-1], kind="final"))
    layers = {"fc1": 256}
    star = info_of(branches=("cond",), rows_independent=False, layers=layers)
    for info, scales in (
        (info_of(layers=layers), scales_of(count)),
        (info_of(depth=32, groups=split_depth(32, 8), layers=layers), scales_of(count)),
        (star, scales_of(count)),
        (info_of(guidance="ramp", guidance_held=True, layers=layers), hart),
    ):
        plan = compile_plan(preset(name, info, scales), info, scales, SAMPLING)
        assert plan != compile_plan((), info, scales, SAMPLING)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_run(name: str, tiny_var: VAR) -> None:
    steps = preset(name, tiny_var.info, tiny_var.scales())
    plan = compile_plan(steps, tiny_var.info, tiny_var.scales(), SAMPLING)
    conditioning = tiny_var.condition(labels=[0, 1])
    made = generate(tiny_var, conditioning, plan, seed=[1, 2])
    exact = generate(tiny_var, conditioning, plan_for(tiny_var, (), SAMPLING), seed=[1, 2])
    assert torch.isfinite(made.images).all() and not torch.equal(made.images, exact.images)


def test_preset_fastvar_is_its_code() -> None:
    """13 scales and 32 blocks, as published: 32 and 40 at a side, blocks 3 to 27."""
    info = info_of(depth=32, groups=split_depth(32, 8))
    steps = preset("fastvar", info, scales_of(13))
    assert [(s.scale, s.run) for s in steps] == [
        *((9, "full"), (10, "full"), (11, "skip"), (12, "skip"))
    ]
    for step, keep in zip(steps[:2], (0.6, 0.5), strict=True):
        assert step.tokens is not None and isinstance(step.tokens.keep, tuple)
        assert [i for i, ratio in enumerate(step.tokens.keep) if ratio < 1] == [*range(3, 28)]
        assert set(step.tokens.keep) == {1.0, keep}
    both = preset("fastvar+cfg-off", info, scales_of(13))
    assert [s.guidance for s in both] == [None, "cond", None, None]
    assert [s.tokens for s in both] == [s.tokens for s in steps]


def test_preset_stagevar_released_skips_where_its_demo_does() -> None:
    paper, demo = (preset(n, info_of(), scales_of(13)) for n in ("stagevar", "stagevar-released"))
    assert demo == [paper[0], PlanStep(scale=11, run="skip"), PlanStep(scale=12, run="skip")]
    for count in (10, 14):
        scales = scales_of(count)
        assert preset("stagevar-released", info_of(), scales) == preset(
            "stagevar", info_of(), scales
        )


def test_preset_stagevar_is_the_papers() -> None:
    ranks = {8: (0.3, 0.4), 9: (0.5, 0.25)}
    steps = preset("stagevar", info_of(), scales_of(10), ranks)
    assert [(s.scale, s.guidance) for s in steps] == [(8, "null"), (9, "null")]
    assert steps[0].tokens is None  # fourteen or ten scales: the last alone is reduced
    assert steps[1].tokens == TokenOption(keep=(0.5, 0.25), select="projection", restore="cache")
    thirteen = preset("stagevar", info_of(), scales_of(13), {11: (0.3, 0.4)})
    assert [s.scale for s in thirteen] == [10, 11, 12]
    keeps = [s.tokens.keep for s in thirteen if s.tokens]
    assert keeps == [(0.15, 0.15), (0.3, 0.4), (0.15, 0.15)]


def test_other_presets() -> None:
    assert preset("skip-2", info_of(), scales_of(10)) == [
        PlanStep(scale=8, run="skip"),
        PlanStep(scale=9, run="skip"),
    ]
    assert preset("skip-1", info_of(), scales_of(10)) == [PlanStep(scale=9, run="skip")]
    assert preset("switti", info_of(), scales_of(14)) == [
        PlanStep(scale=k, guidance="cond", temperature=0.1) for k in (11, 12, 13)
    ]
    assert preset("cfg-off", info_of(), scales_of(10)) == [PlanStep(scale=7, guidance="cond")]


def test_preset_errors() -> None:
    with pytest.raises(ProfileError, match="unknown preset 'x', expected one of stagevar, "):
        preset("x", info_of(), SCALES)
    with pytest.raises(ProfileError, match="needs 4 scales, the model has 3"):
        preset("skip-2", info_of(), SCALES[:3])
