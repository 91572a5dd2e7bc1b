"""Settings that differ by scale, and smoothed sampling.

pytest tests/runtime/model/test_sampling.py
"""

from dataclasses import replace

import pytest
import torch

from stagevar_runtime import Sampling
from stagevar_runtime.errors import ProfileError, StagevarError
from stagevar_runtime.families.var import VAR
from stagevar_runtime.loop import engine
from stagevar_runtime.loop.plan import compile_plan, plan_for
from stagevar_runtime.model.sampling import Noise, mask_logits
from stagevar_runtime.profile import PlanStep

SAMPLING = Sampling(guidance=2.0, top_k=20, top_p=0.95)


def test_var_smooths_as_published(tiny_var: VAR) -> None:
    """Ids first, from the same generator, then the mixture among what top-k and top-p left."""
    guided = []

    class Watch(engine.Observer):
        def logits(self, state, step, logits, together):
            guided.append(together.clone())

    sampling = replace(SAMPLING, smooth_from=0)
    inputs = tiny_var.condition(labels=[1])
    made = engine.generate(
        tiny_var, inputs, plan_for(tiny_var, (), sampling), seed=9, observer=Watch()
    )
    rng = torch.Generator().manual_seed(9)
    canvas = torch.zeros(1, 32, 4, 4)
    for k, side in enumerate(tiny_var.config.sides):
        masked = mask_logits(guided[k], 20, 0.95)
        ids = torch.multinomial(masked.softmax(-1)[0], 1, True, generator=rng)
        assert torch.equal(made.ids[k], ids.view(1, -1))
        noise = -torch.empty_like(masked).exponential_(generator=rng).log()
        tau = max(0.27 * (1 - k / 3 * 0.95), 0.005)
        soft = ((masked * (1 + k / 3) + noise) / tau).softmax(-1)
        codes = (soft @ tiny_var.tokenizer.quantize.embedding.weight).transpose(1, 2)
        canvas = tiny_var.tokenizer.accumulate(canvas, codes.reshape(1, 32, side, side), k, 4)
    torch.testing.assert_close(made.canvas, canvas, atol=1e-5, rtol=0)


def test_dropped_guidance_is_not_smoothed(tiny_var: VAR) -> None:
    """As Switti publishes it; the exact drop of a branch with no weight is no dropped guidance."""
    smooth = replace(SAMPLING, smooth_from=0)
    steps = [PlanStep(scale=2, guidance="cond")]
    plan = compile_plan(steps, tiny_var.info, tiny_var.scales(), smooth)
    assert [step.sampling.smooth for step in plan] == [True, True, False, False]
    off = plan_for(tiny_var, (), replace(smooth, guidance=0.0))
    assert all(step.branches == ("cond",) and step.sampling.smooth for step in off)


def test_top_k_of_each_scale(tiny_var: VAR) -> None:
    inputs = tiny_var.condition(labels=[1, 2])
    greedy = engine.generate(
        tiny_var, inputs, plan_for(tiny_var, (), replace(SAMPLING, top_k=1)), seed=1
    )
    mixed = replace(SAMPLING, top_k=(1, 1, 1, 20))
    made = engine.generate(tiny_var, inputs, plan_for(tiny_var, (), mixed), seed=1)
    assert all(torch.equal(made.ids[k], greedy.ids[k]) for k in range(3))
    assert not torch.equal(made.ids[3], greedy.ids[3])
    with pytest.raises(StagevarError, match="got 2 values of top_k, none for scale 2"):
        engine.generate(
            tiny_var, inputs, plan_for(tiny_var, (), replace(SAMPLING, top_k=(1, 1))), seed=1
        )


@pytest.mark.parametrize(
    "bad", [{"top_k": -1}, {"top_k": (5, -1)}, {"temperature_off": 0.0}, {"top_p": 2.0}]
)
def test_settings_out_of_range(bad: dict) -> None:
    with pytest.raises(StagevarError, match="expected"):
        Sampling(**bad)


def test_own_noise_of_an_image_does_not_depend_on_the_batch() -> None:
    like = torch.zeros(3, 4, 5)
    together = Noise([7, 8, 9], 3, torch.device("cpu"))
    alone = Noise([8], 1, torch.device("cpu"))
    assert torch.equal(together.exponential(like, 2)[1:2], alone.exponential(like[:1], 2))
    assert not torch.equal(together.exponential(like, 2), together.exponential(like, 3))
    normal, other = together.normal(2, 4), alone.normal(2, 4)
    for _ in range(2):
        assert torch.equal(normal(6).view(3, 4, 6)[1], other(6))


@pytest.mark.parametrize("off", [0, 3])
def test_a_published_drop_can_be_moved_by_a_plan(tiny_var: VAR, off: int) -> None:
    sampling = replace(SAMPLING, guidance_off_from=off, temperature_off=0.5)
    exact = plan_for(tiny_var, (), sampling)
    assert [len(step.branches) for step in exact] == [2] * off + [1] * (4 - off)
    assert [step.temperature for step in exact] == [1.0] * off + [0.5] * (4 - off)
    full = [PlanStep(scale=k, guidance="full") for k in range(4)]
    plan = compile_plan(full, tiny_var.info, tiny_var.scales(), sampling)
    assert [replace(step, asked=None) for step in plan] == list(exact)
    steps = [PlanStep(scale=2, guidance="cond", temperature=0.7)]
    plan = compile_plan(steps, tiny_var.info, tiny_var.scales(), sampling)
    assert [len(step.branches) for step in plan] == ([2, 2, 1, 1] if off else [1] * 4)
    assert plan[2].temperature == 0.7 and plan[3].temperature == 0.5
    made = engine.generate(tiny_var, tiny_var.condition(labels=[0]), exact, seed=1)
    assert torch.isfinite(made.images).all()


def test_a_strength_brings_published_off_guidance_back(tiny_var: VAR) -> None:
    sampling = replace(SAMPLING, guidance_off_from=2, temperature_off=0.5)
    steps = [PlanStep(scale=k, guidance_scale=2.0) for k in range(4)]
    plan = compile_plan(steps, tiny_var.info, tiny_var.scales(), sampling)
    assert [len(step.branches) for step in plan] == [2] * 4
    assert [step.temperature for step in plan] == [1.0] * 4
    with pytest.raises(ProfileError, match="guidance again after it was dropped"):
        compile_plan(steps[3:], tiny_var.info, tiny_var.scales(), sampling)
    steps = [PlanStep(scale=3, guidance="null")]
    with pytest.raises(ProfileError, match="'null' branch, but only 'cond' is left"):
        compile_plan(steps, tiny_var.info, tiny_var.scales(), sampling)
