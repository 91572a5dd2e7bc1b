"""Switti against its publisher's outputs, and by itself.

pytest tests/runtime/families/test_switti.py
"""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import SHARED, golden
from published import assert_as_published
from safetensors.torch import load_file, save_file
from tiny_families import switti_inputs as conditioning
from tiny_families import tiny_switti as tiny
from tiny_text import switti_states, take, text_features
from torch.nn import functional as F

from stagevar_runtime import Sampling, load
from stagevar_runtime.errors import CheckpointError, ProfileError, StagevarError
from stagevar_runtime.families.switti import Switti
from stagevar_runtime.loop import engine
from stagevar_runtime.loop.plan import compile_plan, plan_for
from stagevar_runtime.profile import PlanStep, TokenOption

CPU = torch.device("cpu")
SAMPLING = Sampling(guidance=3.0, top_k=20, top_p=0.95)


@pytest.mark.parametrize("case", ["switti", "switti_ar_cfg_off_7"])
def test_golden(case: str, tmp_path: Path) -> None:
    said = golden(case, tmp_path)["arguments"]
    want = load_file(SHARED / "golden" / case / "expected.safetensors")
    model = load(tmp_path / "switti", profile=None, device="cpu").model
    assert model.info.causal == (case != "switti")
    names = ("context", "pooled", "mask")
    given = [want["in.context0"], want["in.context1"], want["in.context2"] == 0]
    inputs = {n: t[:2] for n, t in zip(names, given, strict=True)}
    inputs |= {f"null_{n}": t[2:] for n, t in zip(names, given, strict=True)}
    off = said["turn_off_cfg_start_si"]
    sampling = Sampling(
        guidance=said["cfg"],
        top_k=said["top_k"],
        top_p=said["top_p"],
        guidance_off_from=off if off < 10 else None,
    )
    assert_as_published(model, model.condition(**inputs), sampling, want, said["seed"])


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"causal": True, "depth": 3, "width": 128},
        {"crop": False, "gated": False},
        {"rope": False, "causal": True},
    ],
)
def test_teacher_forcing_equals_a_masked_forward(shape: dict) -> None:
    """The loop against one full forward with the training mask, written plainly."""
    model = tiny(**shape)
    inputs = conditioning(model)
    ids = engine.generate(model, inputs, plan_for(model, (), SAMPLING), seed=5).ids
    got = engine.replay(model, inputs, ids, plan_for(model, (), SAMPLING))
    want = _full_forward(model, inputs.rows(True), ids)
    torch.testing.assert_close(torch.cat(got.logits, 1), want, atol=5e-5, rtol=0)


def _full_forward(model: Switti, rows: dict, ids: list[torch.Tensor]) -> torch.Tensor:
    t, vqvae, sides, config = (
        model.transformer,
        model.tokenizer,
        model.config.sides,
        model.config,
    )
    canvas = torch.zeros(3, 32, sides[-1], sides[-1])
    maps = []
    for k, side in enumerate(sides[:-1]):
        codes = vqvae.embed(ids[k]).transpose(1, 2).reshape(3, 32, side, side)
        canvas = vqvae.accumulate(canvas, codes, k, len(sides))
        maps.append(vqvae.shrink(canvas, (sides[k + 1],) * 2).flatten(2).transpose(1, 2))
    condition = t.text_pooler(rows["pooled"])
    start = condition[:, None] + t.pos_start
    x = torch.cat([start, t.word_embed(torch.cat(maps, 1)).repeat(2, 1, 1)], 1)
    level = torch.cat([torch.full((side**2,), k) for k, side in enumerate(sides)])
    x = x + t.lvl_embed(level)
    if not config.rope:
        x = x + t.pos_1LC
    seen = level[:, None] >= level if config.causal else level[:, None] == level
    hd = x.shape[-1] // config.heads
    frequencies = 10000.0 ** (-torch.arange(0, hd, 4) / hd)
    turns = []
    for side in sides:
        place = (
            torch.cartesian_prod(torch.arange(side), torch.arange(side)) * 128 / max(1, side - 1)
        )
        angle = torch.cat([place[:, 1:] * frequencies, place[:, :1] * frequencies], 1)
        turns.append(torch.polar(torch.ones_like(angle), angle))
    turn = torch.cat(turns)

    def heads(z: torch.Tensor) -> torch.Tensor:
        return z.view(*z.shape[:2], config.heads, hd).transpose(1, 2)

    def rotated(z: torch.Tensor) -> torch.Tensor:
        if not config.rope:
            return z
        pairs = torch.view_as_complex(z.reshape(*z.shape[:-1], -1, 2).contiguous())
        return torch.view_as_real(pairs * turn).flatten(3)

    def attention(q, k, v, visible, proj):
        score = (q @ k.transpose(2, 3) / math.sqrt(hd)).masked_fill(~visible, -torch.inf)
        return proj((score.softmax(-1) @ v).transpose(1, 2).reshape(x.shape))

    def norm(z: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(z, z.shape[-1:], eps=1e-6)

    for b in t.blocks:
        c = condition
        if config.crop:
            size = torch.tensor([512.0, 512, 0, 0])[:, None] * t.crop_embed.weight * 2 * math.pi
            fourier = torch.cat([size.sin(), size.cos()], 1).reshape(1, -1)
            c = condition + b.crop_cond_scales * t.crop_proj(fourier)
        g1, g2, s1, s2, b1, b2 = b.ada_lin(c).view(-1, 1, 6, x.shape[-1]).unbind(2)
        q, k, v = b.attn.to_qkv(b.self_attention_norm1(x) * (1 + s1) + b1).chunk(3, -1)
        q, k = rotated(heads(norm(q))), rotated(heads(norm(k)))
        x = x + b.self_attention_norm2(attention(q, k, heads(v), seen, b.attn.proj)) * g1
        a = b.cross_attn
        k, v = a.to_kv(b.attention_y_norm(rows["context"])).chunk(2, -1)
        q = heads(norm(a.to_q(b.cross_attention_norm1(x))))
        visible = rows["mask"][:, None, None]
        x = x + b.cross_attention_norm2(attention(q, heads(norm(k)), heads(v), visible, a.proj))
        x = x + b.ffn_norm2(b.ffn(b.ffn_norm1(x) * (1 + s2) + b2)) * g2
    s, shift = t.head_nm.ada_lin(condition).view(-1, 1, 2, x.shape[-1]).unbind(2)
    return t.head(norm(x) * (1 + s) + shift)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("smooth", [None, 2])
def test_batch_of_two_prompts_equals_one_at_a_time(causal: bool, smooth: int | None) -> None:
    model = tiny(causal=causal)
    sampling = replace(SAMPLING, smooth_from=smooth)
    batch = engine.generate(
        model, conditioning(model, [0, 1]), plan_for(model, (), sampling), seed=[7, 8]
    )
    for i in range(2):
        alone = engine.generate(
            model, conditioning(model, [i]), plan_for(model, (), sampling), seed=[7 + i]
        )
        torch.testing.assert_close(alone.images[0], batch.images[i], atol=1e-4, rtol=0)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("branch", ["cond", "null"])
def test_dropped_guidance_equals_one_branch_of_the_full_run(causal: bool, branch: str) -> None:
    model = tiny(causal=causal)
    inputs = conditioning(model)
    ids = engine.generate(model, inputs, plan_for(model, (), SAMPLING), seed=1).ids
    full = engine.replay(model, inputs, ids, plan_for(model, (), SAMPLING))
    steps = [PlanStep(scale=2, guidance=branch)]
    plan = compile_plan(steps, model.info, model.scales(), SAMPLING)
    got = engine.replay(model, inputs, ids, plan)
    rows = slice(0, 3) if branch == "cond" else slice(3, 6)
    for k in (2, 3):
        torch.testing.assert_close(got.logits[k], full.logits[k][rows], atol=1e-5, rtol=0)


def test_guidance_returns_without_a_cache_only() -> None:
    steps = [
        PlanStep(scale=0, guidance="cond"),
        PlanStep(scale=1, guidance="null"),
        PlanStep(scale=2, guidance="full"),
        PlanStep(scale=3, guidance="cond"),
    ]
    model = tiny()
    inputs = conditioning(model)
    ids = engine.generate(model, inputs, plan_for(model, (), SAMPLING), seed=1).ids
    full = engine.replay(model, inputs, ids, plan_for(model, (), SAMPLING))
    plan = compile_plan(steps, model.info, model.scales(), SAMPLING)
    got = engine.replay(model, inputs, ids, plan)
    rows = [slice(0, 3), slice(3, 6), slice(0, 6), slice(0, 3)]
    for k in range(4):
        torch.testing.assert_close(got.logits[k], full.logits[k][rows[k]], atol=1e-5, rtol=0)
    tokens = TokenOption(keep=0.5, select="leverage", restore="cache")
    returning = [
        PlanStep(scale=1, guidance="cond"),
        PlanStep(scale=2, guidance="full", tokens=tokens),
    ]
    with pytest.raises(ProfileError, match="was not run before"):
        compile_plan(returning, model.info, model.scales(), SAMPLING)
    causal = tiny(causal=True)
    with pytest.raises(ProfileError, match="guidance again"):
        compile_plan(steps[1:3], causal.info, causal.scales(), SAMPLING)


@pytest.mark.parametrize("select", ["projection", "norm", "deviation", "leverage"])
def test_tokens_keep_their_positions(select: str) -> None:
    model = tiny(causal=True)
    inputs = conditioning(model)
    everything = TokenOption(keep=1.0, select=select, restore="cache")
    some = TokenOption(keep=0.5, select=select, restore="cache")
    for option, same in ((everything, True), (some, False)):
        steps = [PlanStep(scale=3, tokens=option)]
        plan = compile_plan(steps, model.info, model.scales(), SAMPLING)
        got = engine.generate(model, inputs, plan, seed=1)
        exact = engine.generate(model, inputs, plan_for(model, (), SAMPLING), seed=1)
        assert torch.equal(got.canvas, exact.canvas) == same
    x, scale = torch.randn(6, 9, 64), model.scales()[2]
    plan = plan_for(model, (), SAMPLING)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0)).expand(6, -1)
    straight = model.run(engine.start(model, inputs, plan, 0), scale, x, range(2))
    shuffled = model.run(
        engine.start(model, inputs, plan, 0), scale, x[:, order[0]], range(2), order
    )
    torch.testing.assert_close(shuffled, straight[:, order[0]], atol=1e-5, rtol=0)


def test_published_defaults_drop_guidance_and_smooth() -> None:
    """Switti-1024: Gumbel-softmax from scale 2, off from 11 with temperature 0.1."""
    model = tiny(sides=(1, 2, 3, 4, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5), depth=1)
    sampling = model.default_sampling
    plan = plan_for(model, (), sampling)
    assert [len(step.branches) for step in plan] == [2] * 11 + [1] * 3
    assert [step.temperature for step in plan] == [1.0] * 11 + [0.1] * 3
    assert [s.sampling.smooth for s in plan] == [False] * 2 + [True] * 9 + [False] * 3
    assert (sampling.smooth_from, sampling.top_k, sampling.top_p) == (2, 400, 0.95)
    one = engine.generate(model, conditioning(model, [0]), plan_for(model, (), sampling), seed=3)
    other = engine.generate(
        model,
        conditioning(model, [0]),
        plan_for(model, (), replace(sampling, smooth_from=None)),
        seed=3,
    )
    assert torch.equal(one.ids[1], other.ids[1])
    assert not torch.equal(one.images, other.images)


def test_smoothing_mixes_codes_as_published() -> None:
    """One scale by hand: logits · (1 + r), Gumbel noise of the one generator, softmax, codes."""
    model = tiny()
    inputs = conditioning(model, [0])
    sampling = replace(SAMPLING, smooth_from=0)
    made = engine.generate(model, inputs, plan_for(model, (), sampling), seed=9)
    guided = []

    class Watch(engine.Observer):
        def logits(self, state, step, logits, together):
            guided.append(together.clone())

    again = engine.generate(model, inputs, plan_for(model, (), sampling), seed=9, observer=Watch())
    assert torch.equal(made.images, again.images)
    rng = torch.Generator().manual_seed(9)
    canvas = torch.zeros(1, 32, 4, 4)
    for k, side in enumerate(model.config.sides):
        ratio = k / 3
        noise = -torch.empty_like(guided[k]).exponential_(generator=rng).log()
        tau = max(0.27 * (1 - ratio * 0.95), 0.005)
        soft = ((guided[k] * (1 + ratio) + noise) / tau).softmax(-1)
        codes = (soft @ model.tokenizer.quantize.embedding.weight).transpose(1, 2)
        canvas = model.tokenizer.accumulate(canvas, codes.reshape(1, 32, side, side), k, 4)
    torch.testing.assert_close(made.canvas, canvas, atol=1e-5, rtol=0)


def test_wrong_inputs_are_named() -> None:
    model = tiny()
    features = text_features(2, 40, 24)
    for name, bad, message in (
        (
            "context",
            torch.zeros(2, 7, 39),
            r"context has shape \(2, 7, 39\), expected \(2, T, 40\)",
        ),
        ("pooled", torch.zeros(3, 24), r"pooled has shape \(3, 24\), expected \(2, 24\)"),
        ("mask", torch.ones(2, 6), r"mask has shape \(2, 6\), expected \(2, 7\)"),
        ("mask", torch.zeros(2, 7), "without any token"),
        ("null_mask", torch.full((1, 7), -torch.inf), "other numbers than 0 and 1"),
        ("null_pooled", None, "expected the features of the empty prompt"),
    ):
        with pytest.raises(StagevarError, match=message):
            model.condition(**(features | {name: bad}))


def test_padding_changes_nothing() -> None:
    model = tiny()
    features = text_features(2, 40, 24)
    short = features | {n: features[n][:, :3] for n in ("null_context", "null_mask")}
    short["context"] = features["context"].clone()
    features["context"][0, 5:] = torch.nan
    a = engine.generate(model, model.condition(**features), plan_for(model, (), SAMPLING), seed=1)
    b = engine.generate(model, model.condition(**short), plan_for(model, (), SAMPLING), seed=1)
    torch.testing.assert_close(a.images, b.images, atol=1e-5, rtol=0)


def test_a_published_directory_finds_its_tokenizer(tmp_path: Path) -> None:
    state, tokenizer = switti_states(causal=True)
    for folder, tensors in (("Switti-AR", state), ("VQVAE-Switti", tokenizer)):
        (tmp_path / folder).mkdir()
        save_file(tensors, tmp_path / folder / "model.safetensors")
        (tmp_path / folder / "config.json").write_text('{"rope_size": 64}')
    pipeline = load(tmp_path / "Switti-AR", profile=None, device="cpu")
    assert pipeline.model.info.causal and pipeline.model.config.rope_size == 64
    made = pipeline.generate(seed=[1], **take(text_features(2, 40, 24), [1]))
    assert made.images.shape == (1, 3, 8, 8) and "switti" in str(pipeline.summary())
    del state["attn_bias_for_masking"]
    with pytest.raises(CheckpointError, match="use_ar"):
        Switti.from_tensors(state, tokenizer, CPU, torch.float32)
