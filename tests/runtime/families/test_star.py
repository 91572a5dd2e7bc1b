"""STAR against its publisher's outputs, and by itself.

pytest tests/runtime/families/test_star.py
"""

from pathlib import Path

import pytest
import torch
from conftest import SHARED, golden
from published import assert_as_published
from safetensors.torch import load_file
from tiny_families import star_inputs as conditioning
from tiny_families import tiny_star as tiny
from tiny_text import star_states, text_features
from torch.nn import functional as F

from stagevar_runtime import Sampling, load
from stagevar_runtime.errors import (
    CheckpointError,
    ProfileError,
    StagevarError,
    UnsupportedModelError,
)
from stagevar_runtime.families.star import SCHEDULES, STAR
from stagevar_runtime.loop import engine
from stagevar_runtime.loop.plan import compile_plan, plan_for
from stagevar_runtime.profile import PlanStep, TokenOption

CPU = torch.device("cpu")
SAMPLING = Sampling(guidance=3.0, top_k=20, top_p=0.9)
SIDES = (1, 2, 3, 4)


def test_golden(tmp_path: Path) -> None:
    said = golden("star", tmp_path)["arguments"]
    want = load_file(SHARED / "golden/star/expected.safetensors")
    model = load(tmp_path / "star_tiny.pth", profile=None, device="cpu").model
    given = {"context": want["in.hidden"], "pooled": want["in.pool"], "mask": want["in.mask"] == 1}
    inputs = {n: t[:1] for n, t in given.items()} | {f"null_{n}": t[1:] for n, t in given.items()}
    sampling = Sampling(guidance=said["cfg"], top_k=said["top_k"], top_p=said["top_p"])
    assert_as_published(model, model.condition(**inputs), sampling, want, said["g_seed"])


@pytest.mark.parametrize(
    "shape", [{}, {"depth": 3, "width": 96, "heads": 3, "sides": (1, 2, 3, 5, 6)}]
)
def test_teacher_forcing_equals_a_masked_forward(shape: dict) -> None:
    """One prompt at a time through a full forward that adds ``cross(x)[0]``, as published."""
    model = tiny(**shape)
    ids = engine.generate(model, conditioning(model), plan_for(model, (), SAMPLING), seed=5).ids
    got = engine.replay(model, conditioning(model), ids, plan_for(model, (), SAMPLING))
    logits = torch.cat(got.logits, 1)
    for i in range(3):
        want = _full_forward(model, conditioning(model, [i]).rows(True), [x[[i]] for x in ids])
        torch.testing.assert_close(logits[[i, 3 + i]], want, atol=1e-4, rtol=0)


def _full_forward(model: STAR, rows: dict, ids: list[torch.Tensor]) -> torch.Tensor:
    t, vqvae, sides = model.transformer, model.tokenizer, model.config.sides
    canvas = torch.zeros(1, 32, sides[-1], sides[-1])
    maps = []
    for k, side in enumerate(sides[:-1]):
        codes = vqvae.embed(ids[k]).transpose(1, 2).reshape(1, 32, side, side)
        canvas = vqvae.accumulate(canvas, codes, k, len(sides))
        maps.append(vqvae.shrink(canvas, (sides[k + 1],) * 2).flatten(2).transpose(1, 2))
    start = t.encoder_proj(rows["pooled"])[:, None] + t.pos_start
    x = torch.cat([start, t.word_embed(torch.cat(maps, 1)).repeat(2, 1, 1)], 1)
    level = torch.cat([torch.full((side**2,), k) for k, side in enumerate(sides)])
    x = x + t.lvl_embed(level)
    n, heads = x.shape[1], model.config.heads
    hd = x.shape[-1] // heads
    frequencies = 10000.0 ** (-torch.arange(0, hd, 4) / hd)
    turns = []
    for side in sides:
        place = torch.cartesian_prod(torch.arange(side), torch.arange(side)) / max(1, side - 1) * 64
        angle = torch.cat([place[:, 1:] * frequencies, place[:, :1] * frequencies], 1)
        turns.append(torch.polar(torch.ones_like(angle), angle))

    def split(z: torch.Tensor) -> torch.Tensor:
        return z.view(2, -1, heads, hd).transpose(1, 2)

    def rotated(z: torch.Tensor) -> torch.Tensor:
        pairs = torch.view_as_complex(z.reshape(*z.shape[:-1], -1, 2).contiguous())
        return torch.view_as_real(pairs * torch.cat(turns)).flatten(3)

    def attention(a, q, k, v, visible):
        q = q / q.norm(dim=-1, keepdim=True) * a.scale_mul_1H11.clamp_max(4.605170185988092).exp()
        k = k / k.norm(dim=-1, keepdim=True)
        score = (q @ k.transpose(2, 3)).masked_fill(~visible, -torch.inf)
        return a.proj((score.softmax(-1) @ v).transpose(1, 2).reshape(2, n, -1))

    def norm(z: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(z, z.shape[-1:], eps=1e-6)

    for b in t.blocks:
        a = b.attn
        q, k, v = (norm(x) @ a.mat_qkv.weight.T).chunk(3, -1)
        q, k = rotated(split(q + a.q_bias)), rotated(split(k))
        x = x + attention(a, q, k, split(v + a.v_bias), level[:, None] >= level)
        a = b.cross_attn
        k, v = (rows["context"] @ a.mat_kv.weight.T).chunk(2, -1)
        q = split(norm(x) @ a.mat_q.weight.T + a.q_bias)
        visible = rows["mask"][:, None, None]
        x = attention(a, q, split(k), split(v + a.v_bias), visible)[0] + x
        x = x + b.ffn(norm(x))
    return t.head_logits(norm(x))


@pytest.mark.parametrize(
    "steps",
    [
        (),
        (PlanStep(scale=2, guidance="cond", temperature=0.7),),
        (PlanStep(scale=3, tokens=TokenOption(keep=0.5, select="leverage", restore="lift")),),
        (PlanStep(scale=3, tokens=TokenOption(keep=0.5, select="projection", restore="cache")),),
    ],
)
def test_batch_equals_one_prompt_at_a_time(steps: tuple[PlanStep, ...]) -> None:
    model = tiny()
    plan = compile_plan(steps, model.info, model.scales(), SAMPLING)
    batch = engine.generate(model, conditioning(model), plan, seed=[7, 8, 9])
    for i in range(3):
        alone = engine.generate(model, conditioning(model, [i]), plan, seed=[7 + i])
        torch.testing.assert_close(alone.images[0], batch.images[i], atol=1e-4, rtol=0)


def test_the_null_prompts_text_reaches_nothing_but_its_pooled_part_does() -> None:
    model = tiny()
    features = text_features(2, 24, 24)
    ids = engine.generate(
        model, model.condition(**features), plan_for(model, (), SAMPLING), seed=1
    ).ids
    base = engine.replay(model, model.condition(**features), ids, plan_for(model, (), SAMPLING))
    other = features | {"null_context": torch.randn(1, 7, 24)}
    same = engine.replay(model, model.condition(**other), ids, plan_for(model, (), SAMPLING))
    assert torch.equal(same.logits[-1], base.logits[-1])
    other = features | {"null_pooled": torch.randn(1, 24)}
    changed = engine.replay(model, model.condition(**other), ids, plan_for(model, (), SAMPLING))
    assert torch.equal(changed.logits[-1][:2], base.logits[-1][:2])
    assert not torch.allclose(changed.logits[-1][2:], base.logits[-1][2:], atol=1e-3)


def test_dropped_guidance_keeps_the_cond_rows_and_null_alone_is_refused() -> None:
    model = tiny()
    inputs = conditioning(model)
    ids = engine.generate(model, inputs, plan_for(model, (), SAMPLING), seed=1).ids
    full = engine.replay(model, inputs, ids, plan_for(model, (), SAMPLING))
    plan = compile_plan([PlanStep(scale=2, guidance="cond")], model.info, model.scales(), SAMPLING)
    got = engine.replay(model, inputs, ids, plan)
    for k in (2, 3):
        torch.testing.assert_close(got.logits[k], full.logits[k][:3], atol=5e-5, rtol=0)
    with pytest.raises(ProfileError, match=r"'null' branch alone.*star"):
        compile_plan([PlanStep(scale=2, guidance="null")], model.info, model.scales(), SAMPLING)


def test_both_rows_of_an_image_keep_the_same_tokens() -> None:
    model = tiny()
    option = TokenOption(keep=0.5, select="deviation", restore="none")
    plan = compile_plan([PlanStep(scale=3, tokens=option)], model.info, model.scales(), SAMPLING)
    seen = []
    run = model.run

    def watch(state, scale, x, blocks, positions=None):
        seen.append(positions)
        return run(state, scale, x, blocks, positions)

    model.run = watch  # type: ignore[method-assign]
    engine.generate(model, conditioning(model), plan, seed=1)
    kept = [p for p in seen if p is not None]
    assert kept and all(torch.equal(p[:3], p[3:]) for p in kept)
    assert not torch.equal(kept[0][0], kept[0][1])


def test_variants_are_refused_by_name() -> None:
    state, tokenizer = star_states()
    for name, message in (
        ("feat_extract_blocks.0.ffn.fc1.weight", "sampler variant.*Use star-1024"),
        ("pos_1LC", "has pos_1LC"),
        ("blocks.0.ada_gss", "has blocks.0.ada_gss"),
    ):
        other = state | {name: torch.zeros(1)}
        assert STAR.recognise(other)
        with pytest.raises(UnsupportedModelError, match=message):
            STAR.from_tensors(other, tokenizer, CPU, torch.float32)
    bare = {n: t for n, t in state.items() if ".cross_attn." not in n}
    with pytest.raises(UnsupportedModelError, match="no cross-attention"):
        STAR.from_tensors(bare, tokenizer, CPU, torch.float32)
    with pytest.raises(UnsupportedModelError, match="4 scales: no published schedule"):
        STAR.from_tensors(state, tokenizer, CPU, torch.float32)
    options = {"patch_nums": SIDES}
    del state["blocks.1.ffn.fc1.bias"]
    with pytest.raises(CheckpointError, match=r"missing \['blocks.1.ffn.fc1.bias'\]"):
        STAR.from_tensors(state, tokenizer, CPU, torch.float32, options)


def test_the_schedule_comes_from_the_number_of_scales_or_an_option(tmp_path: Path) -> None:
    ten, tokenizer = star_states(depth=1, sides=SCHEDULES[256])
    model = STAR.from_tensors(ten, tokenizer, CPU, torch.float32)
    assert model.config.sides == SCHEDULES[256]
    assert any("resolution" in note for note in model.info.notes)
    large = STAR.from_tensors(ten, tokenizer, CPU, torch.float32, {"resolution": 512})
    assert large.config.sides == SCHEDULES[512] and len(large.info.notes) == 1
    fourteen, _ = star_states(depth=1, sides=SCHEDULES[1024])
    model = STAR.from_tensors(fourteen, tokenizer, CPU, torch.float32)
    assert model.config.sides == SCHEDULES[1024]
    with pytest.raises(StagevarError, match="expected a side for each of the 14"):
        STAR.from_tensors(fourteen, tokenizer, CPU, torch.float32, {"resolution": 512})
    with pytest.raises(StagevarError, match="expected 256, 512 or 1024"):
        STAR.from_tensors(ten, tokenizer, CPU, torch.float32, {"resolution": 300})


def test_summary_says_why_prompts_are_kept_apart(tmp_path: Path) -> None:
    state, tokenizer = star_states()
    torch.save({"trainer": {"var_wo_ddp": state}}, tmp_path / "star_tiny.pth")
    torch.save(tokenizer, tmp_path / "vae_tiny.pth")
    options = {"patch_nums": "1_2_3_4"}
    pipeline = load(tmp_path / "star_tiny.pth", profile=None, device="cpu", options=options)
    made = pipeline.generate(seed=1, **text_features(2, 24, 24))
    assert made.images.shape == (2, 3, 8, 8)
    assert "null branch cannot run alone" in str(pipeline.summary())
