"""HART against its publisher's outputs, and by itself.

pytest tests/runtime/families/test_hart.py
"""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import SHARED, golden
from published import assert_as_published
from safetensors.torch import load_file
from tiny_families import hart_inputs as conditioning
from tiny_families import tiny_hart as tiny
from tiny_text import hart_states, text_features
from torch.nn import functional as F

from stagevar_runtime import Sampling, load
from stagevar_runtime.errors import (
    CheckpointError,
    ProfileError,
    StagevarError,
    UnsupportedModelError,
)
from stagevar_runtime.families.hart import HART
from stagevar_runtime.families.parts.diffusion import denoising_steps
from stagevar_runtime.loop import engine
from stagevar_runtime.loop.plan import compile_plan, plan_for
from stagevar_runtime.profile import PlanStep, TokenOption

CPU = torch.device("cpu")
SAMPLING = Sampling(guidance=3.0, top_k=20)


def test_golden(tmp_path: Path) -> None:
    said = golden("hart", tmp_path)["arguments"]
    want = load_file(SHARED / "golden/hart/expected.safetensors")
    model = load(tmp_path / "llm", profile=None, device="cpu").model
    inputs = model.condition(context=want["in.ctx"], mask=want["in.mask"] == 1)
    assert torch.equal(inputs.cond["position"], want["in.pos"])
    sampling = Sampling(guidance=said["cfg"], top_k=said["top_k"], top_p=said["top_p"])
    assert_as_published(model, inputs, sampling, want, said["g_seed"], said["diff_seed"])


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"depth": 3, "width": 96, "heads": 3, "sides": (1, 2, 3, 5, 6), "tokens": 7},
        {"modulation": "linear", "level_numbers": False, "context_norm": False},
        {"modulation": "linear", "pooling": "avg", "gated": False},
        {"modulation": "none", "l2_norm": False},
    ],
)
def test_teacher_forcing_equals_a_masked_forward(shape: dict) -> None:
    """The loop against one full forward over text and picture, written plainly."""
    model = tiny(**shape)
    inputs = conditioning(model)
    ids = engine.generate(model, inputs, plan_for(model, (), SAMPLING), seed=5).ids
    assert ids[0].shape == (3, 1)
    got = engine.replay(model, inputs, ids, plan_for(model, (), SAMPLING))
    want = _full_forward(model, inputs.rows(True), ids)
    torch.testing.assert_close(torch.cat(got.logits, 1), want, atol=5e-5, rtol=0)


def _full_forward(model: HART, rows: dict, ids: list[torch.Tensor]) -> torch.Tensor:
    t, vqvae, config = model.transformer, model.tokenizer, model.config
    sides, tokens = config.sides, config.context_tokens
    canvas = torch.zeros(3, 32, sides[-1], sides[-1])
    maps = []
    for k, side in enumerate(sides[:-1]):
        codes = vqvae.embed(ids[k]).transpose(1, 2).reshape(3, 32, side, side)
        canvas = vqvae.accumulate(canvas, codes, k, len(sides))
        maps.append(vqvae.shrink(canvas, (sides[k + 1],) * 2).flatten(2).transpose(1, 2))
    text = rows["context"]
    if config.context_norm:
        text = _rms(text, t.context_norm.weight)
    text = t.context_embed(text)
    x = torch.cat([text, t.word_embed(torch.cat(maps, 1)).repeat(2, 1, 1)], 1)
    counts = [tokens, *(side**2 for side in sides[1:])]
    level = torch.cat([torch.full((n,), k) for k, n in enumerate(counts)])
    if config.level_numbers:
        angle = level[:, None] * 10000.0 ** (-torch.arange(128) / 128)
        x = x + t.lvl_embed.mlp(torch.cat([angle.cos(), angle.sin()], 1))
    else:
        x = x + t.lvl_embed(level)
    width, heads = x.shape[-1], config.heads
    hd = width // heads
    place = rows["position"][..., None].float()
    fine = 10000.0 ** (-torch.arange(0, hd, 2) / hd)
    angles = [(place * fine).repeat(1, 1, 2)]
    coarse = 10000.0 ** (-torch.arange(0, hd, 4) / hd)
    for side in sides[1:]:
        grid = torch.cartesian_prod(torch.arange(side), torch.arange(side)) / side * sides[-1]
        y, z = (grid[None, :, i : i + 1] + place[:, -1:] for i in range(2))
        angles.append(torch.cat([y * coarse, y * coarse, z * coarse, z * coarse], -1))
    turn = torch.cat(angles, 1)[:, None]

    def rotated(z: torch.Tensor) -> torch.Tensor:
        half = torch.cat([-z[..., hd // 2 :], z[..., : hd // 2]], -1)
        return z * turn.cos() + half * turn.sin()

    count = rows["mask"].sum(1, keepdim=True)
    average = (text * rows["mask"][..., None]).sum(1) / count
    pooled = text.max(1).values if config.pooling == "max" else average
    for b in t.blocks:
        if config.modulation == "table":
            six = b.scale_shift_table[None] + average[:, None]
        elif config.modulation == "linear":
            six = b.ada_lin(pooled).view(-1, 6, width)
        else:
            six = torch.tensor([1.0, 1, 0, 0, 0, 0]).view(1, 6, 1).expand(6, 6, width)
        g1, g2, s1, s2, b1, b2 = six.split(1, 1)
        a = b.attn
        bias = torch.cat([a.q_bias, torch.zeros_like(a.q_bias), a.v_bias])
        qkv = F.linear(_rms(x, b.ln_wo_grad.weight) * (1 + s1) + b1, a.qkv_proj.weight, bias)
        q, k, v = qkv.view(6, -1, 3, heads, hd).permute(2, 0, 3, 1, 4)
        scale = 0.25 / math.sqrt(hd)
        if config.l2_norm:
            q = q / q.norm(dim=-1, keepdim=True)
            q = q * a.scale_mul_1H11.clamp_max(4.605170185988092).exp()
            k, scale = k / k.norm(dim=-1, keepdim=True), 1.0
        score = rotated(q) @ rotated(k).transpose(2, 3) * scale
        score = score.masked_fill(level[:, None] < level, -torch.inf)
        x = x + a.proj((score.softmax(-1) @ v).transpose(1, 2).reshape(x.shape)) * g1
        x = x + b.ffn(_rms(x, b.ln_wo_grad.weight) * (1 + s2) + b2) * g2
    s, shift = t.head_nm.ada_lin(text.max(1).values).view(-1, 1, 2, width).unbind(2)
    return t.head(_rms(x, t.head_nm.ln_wo_grad.weight) * (1 + s) + shift)


def _rms(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight


@pytest.mark.parametrize("guided", [True, False])
def test_diffusion_equals_one_written_plainly(guided: bool) -> None:
    """Ancestral sampling from the textbook's formulas, in float64, guided on the noise."""
    model = tiny()
    net, n, strength = model.transformer.diffloss.net, 5, 2.5
    z = torch.randn(2 * n, 64, generator=torch.Generator().manual_seed(1))
    draws = torch.randn(9, n, 32, generator=torch.Generator().manual_seed(2))
    queue = iter(draws)
    steps = denoising_steps(8)
    assert [step.time for step in steps] == [999, 856, 714, 571, 428, 285, 143, 0]
    got = model.transformer.diffloss.draw(
        z if guided else z[:n], strength if guided else None, steps, lambda width: next(queue)
    )
    bar = [math.cos((i / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(1001)]
    alphas = [1.0]
    for i in range(1000):
        alphas.append(alphas[-1] * (1 - min(1 - bar[i + 1] / bar[i], 0.999)))
    times = [0, 143, 285, 428, 571, 714, 856, 999]
    a = [alphas[t + 1] for t in times]
    x, noises = draws[0].double(), iter(draws[1:])
    for i in reversed(range(8)):
        before = a[i - 1] if i else 1.0
        beta = 1 - a[i] / before
        condition = net.cond_embed(z)
        t = torch.full((2 * n,), times[i])
        out = net(x.float().repeat(2, 1), t, condition).double()
        eps, spread = out[:n].chunk(2, 1)
        if guided:
            eps = (1 + strength) * eps - strength * out[n:, :32]
        start = ((x - (1 - a[i]) ** 0.5 * eps) / a[i] ** 0.5).clamp(-1, 1)
        mean = (before**0.5 * beta * start + (1 - beta) ** 0.5 * (1 - before) * x) / (1 - a[i])
        noise = next(noises).double()
        lower = beta * (1 - before) / (1 - a[i])
        share = (spread + 1) / 2
        x = mean
        if i:
            x = mean + (beta**share * lower ** (1 - share)).sqrt() * noise
    torch.testing.assert_close(got.double(), 0.6 * x, atol=1e-4, rtol=0)


@pytest.mark.parametrize("smooth", [None, 0])
def test_batch_of_prompts_equals_one_at_a_time(smooth: int | None) -> None:
    model = tiny()
    sampling = replace(SAMPLING, smooth_from=smooth)
    batch = engine.generate(
        model, conditioning(model), plan_for(model, (), sampling), seed=[7, 8, 9]
    )
    for i in range(3):
        alone = engine.generate(
            model, conditioning(model, [i]), plan_for(model, (), sampling), seed=[7 + i]
        )
        torch.testing.assert_close(alone.images[0], batch.images[i], atol=1e-4, rtol=0)


@pytest.mark.parametrize("branch", ["cond", "null"])
def test_dropped_guidance_equals_one_branch_of_the_full_run(branch: str) -> None:
    model = tiny()
    inputs = conditioning(model)
    ids = engine.generate(model, inputs, plan_for(model, (), SAMPLING), seed=1).ids
    full = engine.replay(model, inputs, ids, plan_for(model, (), SAMPLING))
    plan = compile_plan([PlanStep(scale=2, guidance=branch)], model.info, model.scales(), SAMPLING)
    got = engine.replay(model, inputs, ids, plan)
    rows = slice(0, 3) if branch == "cond" else slice(3, 6)
    for k in (2, 3):
        torch.testing.assert_close(got.logits[k], full.logits[k][rows], atol=1e-5, rtol=0)
    assert torch.isfinite(got.image).all()


def test_the_last_scale_keeps_the_strength_of_the_one_before() -> None:
    model = tiny()
    plan = plan_for(model, (), Sampling(guidance=3.0))
    assert [step.weights[1] for step in plan] == pytest.approx([0.0, -1.0, -2.0, -2.0])


def test_strength_of_exactly_one_switches_the_heads_guidance_off() -> None:
    """Its publisher tests for 1.0: the residual of the cond rows alone, logits still guided."""
    model = tiny()
    seen = []
    draw = model.transformer.diffloss.draw

    def watch(z, strength, steps, normal):
        seen.append((z.shape[0], strength))
        return draw(z, strength, steps, normal)

    model.transformer.diffloss.draw = watch  # type: ignore[method-assign]
    for guidance, rows, strength in ((1.5, 16, None), (3.0, 32, 2.0), (0.0, 16, None)):
        sampling = Sampling(guidance=guidance, top_k=20)
        engine.generate(model, conditioning(model, [0]), plan_for(model, (), sampling), seed=1)
        assert seen.pop() == (rows, strength)


def test_noise_is_seeded_and_leaves_the_global_state() -> None:
    model = tiny()
    inputs = conditioning(model)
    ids = engine.generate(model, inputs, plan_for(model, (), SAMPLING), seed=5).ids
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one, two = (
        engine.replay(model, inputs, ids, plan_for(model, (), SAMPLING), seed=3) for _ in range(2)
    )
    assert torch.equal(before, torch.get_rng_state()) and torch.equal(one.canvas, two.canvas)
    other = engine.replay(model, inputs, ids, plan_for(model, (), SAMPLING), seed=4)
    assert not torch.equal(one.canvas, other.canvas)
    assert torch.equal(one.logits[-1], other.logits[-1])


def test_what_cannot_be_reduced_says_so() -> None:
    model = tiny()
    option = TokenOption(keep=0.5, select="deviation", restore="none")
    cached = TokenOption(keep=0.5, select="deviation", restore="cache")
    for scale, tokens, message in (
        (0, option, "scale 0 is no plain token map"),
        (3, option, "scale 3 is no plain token map"),
        (1, cached, "scale 0 before it is no token map"),
    ):
        with pytest.raises(ProfileError, match=message):
            compile_plan(
                [PlanStep(scale=scale, tokens=tokens)], model.info, model.scales(), SAMPLING
            )
    steps = [PlanStep(scale=2, tokens=cached), PlanStep(scale=3, run="skip")]
    plan = compile_plan(steps, model.info, model.scales(), SAMPLING)
    made = engine.generate(model, conditioning(model), plan, seed=1)
    assert torch.isfinite(made.images).all() and made.images.shape == (3, 3, 8, 8)


def test_wrong_inputs_and_variants_are_named() -> None:
    model = tiny()
    with pytest.raises(StagevarError, match="context has 5 tokens, expected 7, padding included"):
        model.condition(context=torch.zeros(1, 5, 24), mask=torch.ones(1, 5))
    with pytest.raises(StagevarError, match="without any token"):
        model.condition(context=torch.zeros(1, 7, 24), mask=torch.zeros(1, 7))
    state, tokenizer = hart_states()
    for name, message in (
        ("blocks.0.attn.mat_qkv.weight", "type gpt2"),
        ("blocks.0.cross_attn.proj.weight", "has cross-attention"),
    ):
        with pytest.raises(UnsupportedModelError, match=message):
            HART.from_tensors(state | {name: torch.zeros(1)}, tokenizer, CPU, torch.float32)
    del state["diffloss.net.final_layer.linear.bias"]
    with pytest.raises(CheckpointError, match="final_layer"):
        HART.from_tensors(state, tokenizer, CPU, torch.float32)


def test_published_directories_and_defaults(tmp_path: Path) -> None:
    state, tokenizer = hart_states()
    for folder in ("llm", "tokenizer"):
        (tmp_path / folder).mkdir()
    torch.save(state, tmp_path / "llm/ema_model.bin")
    (tmp_path / "llm/config.json").write_text('{"num_sampling_steps": "4", "num_heads": 2}')
    prefixed = {f"vae.{n}": t for n, t in tokenizer.items()} | {"disc.x": torch.zeros(1)}
    torch.save(prefixed, tmp_path / "tokenizer/pytorch_model.bin")
    pipeline = load(tmp_path / "llm", profile=None, device="cpu")
    assert pipeline.model.config.diffusion_steps == 4
    sampling = pipeline.sampling()
    assert (sampling.guidance, sampling.smooth_from, sampling.top_p) == (4.5, 0, 0.0)
    assert [sampling.at(k).top_k for k in range(4)] == [600] * 4
    features = text_features(2, 24, 24)
    made = pipeline.generate(seed=1, context=features["context"], mask=features["mask"])
    assert made.images.shape == (2, 3, 8, 8)
    assert "diffusion stage" in str(pipeline.summary())
    root = load(tmp_path, profile=None, device="cpu")
    inputs = {"context": features["context"], "mask": features["mask"]}
    assert torch.equal(root.generate(seed=1, **inputs).images, made.images)
    plain = root.generate(seed=1, sampling=replace(sampling, smooth_from=None), **inputs)
    assert torch.equal(plain.ids[0], made.ids[0]) and not torch.equal(plain.images, made.images)
