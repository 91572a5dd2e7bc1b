"""The loop, its options and what they must not change.

pytest tests/runtime/loop/test_engine.py
"""

import pytest
import torch

from stagevar_runtime import Sampling
from stagevar_runtime.families.var import VAR
from stagevar_runtime.loop import engine
from stagevar_runtime.loop.engine import Observer, advance, generate, start
from stagevar_runtime.loop.plan import compile_plan, plan_for
from stagevar_runtime.options.restorers import RESTORERS
from stagevar_runtime.options.selectors import SELECTORS
from stagevar_runtime.profile import PlanStep, TokenOption

SAMPLING = Sampling(guidance=2.0, top_k=20, top_p=0.95)


def plan_of(model: VAR, *steps: PlanStep, sampling: Sampling = SAMPLING):
    return compile_plan(steps, model.info, model.scales(), sampling)


def make(model: VAR, *steps: PlanStep, labels=(0, 1, 2), seed=(7, 8, 9)):
    conditioning = model.condition(labels=list(labels))
    seed = seed if isinstance(seed, int) else list(seed)
    return generate(model, conditioning, plan_of(model, *steps), seed=seed)


def test_all_full_steps_are_bit_identical_to_no_profile(tiny_var: VAR) -> None:
    full = make(tiny_var, *(PlanStep(scale=k, run="full", guidance="full") for k in range(4)))
    none = generate(
        tiny_var,
        tiny_var.condition(labels=[0, 1, 2]),
        plan_for(tiny_var, (), SAMPLING),
        seed=[7, 8, 9],
    )
    assert torch.equal(full.images, none.images)
    assert torch.equal(full.canvas, none.canvas)


@pytest.mark.parametrize("seed", [7, (7, 8, 9)])
def test_same_seed_is_bit_identical_and_leaves_the_global_state(tiny_var: VAR, seed) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, second = make(tiny_var, seed=seed), make(tiny_var, seed=seed)
    assert torch.equal(first.images, second.images)
    assert torch.equal(before, torch.get_rng_state())
    other = make(tiny_var, seed=11 if isinstance(seed, int) else (11, 12, 13))
    assert not torch.equal(first.ids[-1], other.ids[-1])


@pytest.mark.parametrize(
    "steps",
    [
        (),
        (PlanStep(scale=2, guidance="cond", temperature=0.7),),
        (PlanStep(scale=3, tokens=TokenOption(keep=0.5, select="norm", restore="cache")),),
        (PlanStep(scale=3, tokens=TokenOption(keep=0.5, select="projection", restore="cache")),),
    ],
)
def test_image_of_a_batch_equals_the_image_alone(tiny_var: VAR, steps) -> None:
    batch = make(tiny_var, *steps)
    for i in range(3):
        alone = make(tiny_var, *steps, labels=(i,), seed=(7 + i,))
        torch.testing.assert_close(alone.images[0], batch.images[i], atol=1e-4, rtol=0)


def test_keep_ratio_one_equals_full(tiny_var: VAR) -> None:
    option = TokenOption(keep=1.0, select="leverage", restore="lift")
    reduced = make(tiny_var, PlanStep(scale=3, tokens=option))
    torch.testing.assert_close(reduced.canvas, make(tiny_var).canvas, atol=1e-5, rtol=0)


@pytest.mark.parametrize("branch", ["cond", "null"])
def test_dropped_guidance_equals_one_branch_of_the_full_run(tiny_var: VAR, branch) -> None:
    """Slicing rows and keys must give the very logits the full run has in those rows."""
    conditioning = tiny_var.condition(labels=[0, 3])
    ids = generate(tiny_var, conditioning, plan_for(tiny_var, (), SAMPLING), seed=1).ids
    full = engine.replay(tiny_var, conditioning, ids, plan_for(tiny_var, (), SAMPLING))
    plan = plan_of(tiny_var, PlanStep(scale=2, guidance=branch))
    got = engine.replay(tiny_var, conditioning, ids, plan)
    rows = slice(0, 2) if branch == "cond" else slice(2, 4)
    for k in range(4):
        want = full.logits[k] if k < 2 else full.logits[k][rows]
        torch.testing.assert_close(got.logits[k], want, atol=1e-5, rtol=0)
    torch.testing.assert_close(got.guided[3], full.logits[3][rows], atol=1e-5, rtol=0)


def test_dropping_guidance_halves_the_cache(tiny_var: VAR) -> None:
    def held(*steps: PlanStep) -> int:
        plan = plan_of(tiny_var, *steps)
        state = start(tiny_var, tiny_var.condition(labels=[0]), plan, 0)
        with torch.inference_mode():
            for step in plan:
                advance(tiny_var, state, step)
        return sum(cache.bytes for cache in state.kv)

    assert held(PlanStep(scale=2, guidance="cond")) * 2 == held()


def test_no_guidance_runs_one_branch_and_equals_the_cond_rows(tiny_var: VAR) -> None:
    off = Sampling(guidance=0.0, top_k=20, top_p=0.95)
    plan = plan_for(tiny_var, (), off)
    assert all(step.branches == ("cond",) for step in plan)
    conditioning = tiny_var.condition(labels=[2])
    ids = generate(tiny_var, conditioning, plan, seed=3).ids
    one = engine.replay(tiny_var, conditioning, ids, plan)
    both = engine.replay(tiny_var, conditioning, ids, plan_for(tiny_var, (), SAMPLING))
    for a, b in zip(one.logits, both.logits, strict=True):
        torch.testing.assert_close(a, b[:1], atol=1e-5, rtol=0)


def test_guidance_scale_and_temperature_of_a_step(tiny_var: VAR) -> None:
    conditioning = tiny_var.condition(labels=[0, 3])
    ids = generate(tiny_var, conditioning, plan_for(tiny_var, (), SAMPLING), seed=1).ids
    plan = plan_of(tiny_var, PlanStep(scale=1, guidance_scale=3.0, temperature=0.5))
    got = engine.replay(tiny_var, conditioning, ids, plan)
    cond, null = got.logits[1].chunk(2)
    torch.testing.assert_close(got.guided[1], (3 * cond - 2 * null) / 0.5, atol=1e-5, rtol=1e-5)
    t = 2.0 * 2 / 3  # the published ramp at scale 2 of 4
    cond, null = got.logits[2].chunk(2)
    torch.testing.assert_close(got.guided[2], (1 + t) * cond - t * null, atol=1e-5, rtol=1e-5)


def test_skipped_scales_add_nothing(tiny_var: VAR) -> None:
    exact = make(tiny_var)
    skipped = make(tiny_var, PlanStep(scale=3, run="skip"))
    assert len(skipped.ids) == 3 and skipped.images.shape == exact.images.shape
    seen = {}

    class Watch(Observer):
        def advanced(self, state, step, ids):
            seen[step.scale.index] = state.canvas.clone()

    generate(
        tiny_var,
        tiny_var.condition(labels=[0, 1, 2]),
        plan_for(tiny_var, (), SAMPLING),
        seed=[7, 8, 9],
        observer=Watch(),
    )
    assert torch.equal(skipped.canvas, seen[2])


@pytest.mark.parametrize("select", SELECTORS)
@pytest.mark.parametrize("restore", RESTORERS)
@pytest.mark.parametrize("span", ["group", "all"])
def test_every_selector_with_every_restorer(tiny_var: VAR, select, restore, span) -> None:
    steps = [
        PlanStep(scale=2, guidance="cond"),
        PlanStep(scale=3, tokens=TokenOption(keep=0.5, select=select, restore=restore, span=span)),
    ]
    plan = plan_of(tiny_var, *steps)
    state = start(tiny_var, tiny_var.condition(labels=[0, 1]), plan, [1, 2])
    with torch.inference_mode():
        for step in plan:
            advance(tiny_var, state, step)
    assert state.kv[0].length == 1 + 4 + 9 + 8
    made = make(tiny_var, *steps)
    assert torch.isfinite(made.images).all()
    assert not torch.equal(made.ids[-1], make(tiny_var, steps[0]).ids[-1])


def test_a_fork_goes_its_own_way(tiny_var: VAR) -> None:
    """A snapshot before a scale, run twice with different options, must not see the other run."""
    conditioning = tiny_var.condition(labels=[0, 1])
    exact = plan_of(tiny_var)
    dropped = plan_of(tiny_var, PlanStep(scale=2, guidance="cond"))
    state = start(tiny_var, conditioning, exact, [4, 5])
    with torch.inference_mode():
        for step in exact[:2]:
            advance(tiny_var, state, step)
        twin = state.fork()
        for step in dropped[2:]:
            advance(tiny_var, twin, step)
        for step in exact[2:]:
            advance(tiny_var, state, step)
    want = generate(tiny_var, conditioning, exact, seed=[4, 5])
    other = generate(tiny_var, conditioning, dropped, seed=[4, 5])
    torch.testing.assert_close(state.canvas, want.canvas, atol=1e-5, rtol=0)
    torch.testing.assert_close(twin.canvas, other.canvas, atol=1e-5, rtol=0)


def test_replay_names_a_wrong_shape(tiny_var: VAR) -> None:
    conditioning = tiny_var.condition(labels=[0])
    ids = [torch.zeros(1, n, dtype=torch.long) for n in (1, 4, 9, 15)]
    with pytest.raises(
        engine.StagevarError, match=r"scale 3 have shape \(1, 15\), expected \(1, 16"
    ):
        engine.replay(tiny_var, conditioning, ids)
