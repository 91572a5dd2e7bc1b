"""Infinity against recorded outputs and a plain forward.

pytest tests/runtime/families/test_infinity.py
"""

from pathlib import Path

import pytest
import torch
from conftest import SHARED, golden, infinity_states, prompts, tiny_infinity
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from stagevar_runtime import Sampling, load
from stagevar_runtime.errors import UnsupportedModelError
from stagevar_runtime.families.infinity.model import Infinity
from stagevar_runtime.families.infinity.schedules import SCHEDULES
from stagevar_runtime.loop import engine
from stagevar_runtime.loop.engine import advance, start
from stagevar_runtime.loop.plan import compile_plan, plan_for
from stagevar_runtime.model.protocol import ScaleSpec
from stagevar_runtime.profile import PlanStep, TokenOption

SAMPLING = Sampling(guidance=3.0, temperature=0.5, top_p=0.97)


@pytest.fixture(scope="module")
def model() -> Infinity:
    """2 chunks of 2 blocks, 4 bits, 521 tokens."""
    return tiny_infinity()


@pytest.mark.parametrize("case", ["infinity", "infinity_patchify"])
def test_golden(case: str, tmp_path: Path) -> None:
    manifest = golden(case, tmp_path)
    want = load_file(SHARED / "golden" / case / "expected.safetensors")
    said = manifest["arguments"]
    model = load(tmp_path / manifest["files"][0]["path"], profile=None, device="cpu").model
    assert isinstance(model, Infinity) and len(model.info.groups) == 2
    text = torch.nn.utils.rnn.pad_sequence(
        list(want["in.text_features"].split(said["lens"])), batch_first=True
    )
    mask = torch.arange(text.shape[1]) < torch.tensor(said["lens"])[:, None]
    conditioning = model.condition(text=text, mask=mask)
    scales = model.scales(aspect_ratio=1.0, size="0.06M")
    recorded = [_in_tokens(model, want[f"s{k}.ids"]) for k in range(7)]
    sampling = Sampling(said["cfg"], said["tau"], said["top_k"], said["top_p"])
    got = engine.replay(model, conditioning, recorded, plan_for(model, (), sampling, scales))
    for k in range(7):
        torch.testing.assert_close(got.logits[k], want[f"s{k}.logits"], atol=1e-4, rtol=0)
    torch.testing.assert_close(got.canvas, want["canvas"], atol=1e-4, rtol=0)
    torch.testing.assert_close(got.image, want["image"] / 2 + 0.5, atol=1e-4, rtol=0)
    free = engine.generate(
        model, conditioning, plan_for(model, (), sampling, scales), seed=said["g_seed"]
    )
    for k in range(7):
        assert torch.equal(free.ids[k], recorded[k]), f"scale {k}"


def _in_tokens(model: Infinity, bits: Tensor) -> Tensor:
    """Recorded bits ``(B, 1, H, W, d)`` of the tokenizer's grid, in the model's own tokens."""
    grid = bits[:, 0].permute(0, 3, 1, 2).long()
    grid = F.pixel_unshuffle(grid, 2) if model.patchify else grid
    return grid.flatten(2).transpose(1, 2)


@pytest.mark.parametrize(
    ("shape", "options", "size"),
    [
        ({}, {}, {"aspect_ratio": 1.0}),
        ({"depth": 3, "chunks": 1, "heads": 4, "width": 48}, {}, {"aspect_ratio": 0.571}),
        ({"depth": 6, "chunks": 3, "shared_adaln": False}, {}, {"aspect_ratio": 3.0}),
        ({"patchify": True}, {}, {"aspect_ratio": 1.333, "size": "0.25M"}),
        ({}, {"level": "chunk", "rope": 0}, {"aspect_ratio": 0.8}),
        ({"chunks": 4}, {"level": "chunk", "rope": 1}, {"aspect_ratio": 2.0}),
        ({}, {"guidance_layer": -2}, {"aspect_ratio": 1.25}),
        ({}, {"guidance_layer": [-3, -1, 0]}, {}),
    ],
)
def test_teacher_forcing_equals_a_masked_forward(shape: dict, options: dict, size: dict) -> None:
    """The cached loop against one full forward, row by row without padding, written plainly."""
    model = tiny_infinity(options, **shape)
    given = prompts((3, 7))
    scales = model.scales(**size)
    conditioning = model.condition(**given)
    made = engine.generate(model, conditioning, plan_for(model, (), SAMPLING, scales), seed=5)
    got = engine.replay(model, conditioning, made.ids, plan_for(model, (), SAMPLING, scales))
    texts = [given["text"][0, :3], given["text"][1, :7]]
    nulls = [model.transformer.cfg_uncond[:3], model.transformer.cfg_uncond[:7]]
    want = _full_forward(model, [*texts, *nulls], made.ids, scales)
    logits = torch.cat(got.logits, 1)
    if model.settings.guidance_layer == (-2,):  # guided inside: both rows hold the cond rows
        want = want[:2].repeat(2, 1, 1)
    torch.testing.assert_close(logits, want, atol=1e-4, rtol=0)
    assert got.image.min() >= 0 and got.image.max() <= 1


def _full_forward(
    model: Infinity,
    texts: list[Tensor],
    ids: list[Tensor],
    scales: tuple[ScaleSpec, ...],
    last_kept: Tensor | None = None,
    strength: float = 3.0,
) -> Tensor:
    t, settings, c = model.transformer, model.settings, model.config
    fold, d, batch = (2 if model.patchify else 1), model.tokenizer.bits, len(texts) // 2
    canvas = torch.zeros(batch, d, scales[-1].height * fold, scales[-1].width * fold)
    maps = []
    for k, scale in enumerate(scales[:-1]):
        grid = ids[k].transpose(1, 2).reshape(batch, -1, scale.height, scale.width)
        grid = F.pixel_shuffle(grid, 2) if model.patchify else grid
        codes = (2.0 * grid[:, :, None] - 1) / d**0.5
        canvas = canvas + F.interpolate(codes, (1, *canvas.shape[2:]), mode="trilinear")[:, :, 0]
        following = (1, scales[k + 1].height * fold, scales[k + 1].width * fold)
        shrunk = F.interpolate(canvas[:, :, None], following, mode="trilinear")[:, :, 0]
        shrunk = F.pixel_unshuffle(shrunk, 2) if model.patchify else shrunk
        maps.append(shrunk.flatten(2).transpose(1, 2))
    level = torch.cat([torch.full((s.tokens,), s.index) for s in scales])
    angle = torch.cat([_plain_angles(model, s, scales) for s in scales])
    used = torch.arange(len(level))
    if last_kept is not None:
        used = torch.cat([used[: -scales[-1].tokens], used[-scales[-1].tokens :][last_kept]])
    mask = level[used][:, None] >= level[used][None]
    conditions, xs, keys = [], [], []
    for row, text in enumerate(texts):
        text = text * (text.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * t.text_norm.weight
        ca = t.text_proj_for_sos.ca
        conditions.append(_plain_attention(ca, ca.mat_q.reshape(1, -1), text, ca.heads)[0])
        keys.append(t.text_proj_for_ca(text))
        words = t.word_embed(torch.cat([m[row % batch] for m in maps]))
        x = torch.cat([conditions[-1][None] + t.pos_start[0], words])
        xs.append((x if settings.level == "chunk" else x + t.lvl_embed(level))[used])
    starts = {r.start for r in c.chunk_ranges()}
    for i, block in enumerate(t.in_order()):
        for row in range(len(texts)):
            x, a = xs[row], block.sa
            if settings.level == "chunk" and i in starts:
                x = x + t.lvl_embed(level[used])
            if c.shared_adaln:
                six = (block.ada_gss + t.shared_ada_lin(conditions[row]).view(1, 1, 6, -1))[0, 0]
            else:
                six = block.ada_lin(conditions[row]).view(6, -1)
            g1, g2, s1, s2, b1, b2 = six
            bias = torch.cat([a.q_bias, torch.zeros_like(a.q_bias), a.v_bias])
            qkv = F.linear(_norm(x) * (1 + s1) + b1, a.mat_qkv.weight, bias)
            q, k, v = qkv.view(len(x), 3, a.heads, -1).permute(1, 2, 0, 3)
            q = _turn(q / q.norm(dim=-1, keepdim=True), angle[used])
            k = _turn(k / k.norm(dim=-1, keepdim=True), angle[used])
            q = q * a.scale_mul_1H11.view(-1, 1, 1).clamp_max(4.605170185988092).exp()
            weights = (q @ k.transpose(1, 2)).masked_fill(~mask, -torch.inf).softmax(-1)
            x = x + a.proj((weights @ v).transpose(0, 1).flatten(1)) * g1
            y = F.layer_norm(x, x.shape[-1:], block.ca_norm.weight, block.ca_norm.bias, 1e-6)
            x = x + _plain_attention(block.ca, block.ca.mat_q(y), keys[row], a.heads)
            xs[row] = x + block.ffn(_norm(x) * (1 + s2) + b2) * g2
        if i - c.depth in settings.guidance_layer:
            mixed = [strength * xs[j] + (1 - strength) * xs[batch + j] for j in range(batch)]
            xs = mixed + mixed
    out = []
    for x, condition in zip(xs, conditions, strict=True):
        s, b = t.head_nm.ada_lin(condition).view(2, -1)
        out.append(t.head(_norm(x) * (1 + s) + b))
    return torch.stack(out)


def _norm(x: Tensor) -> Tensor:
    x = x - x.mean(-1, keepdim=True)
    return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()


def _plain_attention(ca: torch.nn.Module, q: Tensor, text: Tensor, heads: int) -> Tensor:
    kv = text @ ca.mat_kv.weight.T + torch.cat([torch.zeros_like(ca.v_bias), ca.v_bias])
    k, v = (part.view(len(text), heads, -1).transpose(0, 1) for part in kv.chunk(2, -1))
    q = q.view(len(q), heads, -1).transpose(0, 1)
    weights = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1)
    return ca.proj((weights @ v).transpose(0, 1).flatten(1))


def _plain_angles(model: Infinity, scale: ScaleSpec, scales: tuple[ScaleSpec, ...]) -> Tensor:
    """Complex factors ``(n, c/2)`` of one scale, token by token."""
    sizes = tuple((s.height, s.width) for s in scales)
    full = next(s for s in SCHEDULES.values() if s[: len(sizes)] == sizes)[-1]
    pairs = model.config.width // model.config.heads // 4
    frequency = 10000.0 ** -(torch.arange(pairs) / pairs)
    if model.settings.rope == 1:
        edge = [int(128 / max(full) * side) if side < max(full) else 128 for side in full]
        grid = torch.stack([f * torch.arange(128.0) for f in frequency], -1)
        rows = torch.polar(
            torch.ones(edge[0], edge[1], pairs), grid[: edge[0], None].expand(-1, edge[1], -1)
        )
        columns = torch.polar(
            torch.ones_like(rows.real), grid[None, : edge[1]].expand(edge[0], -1, -1)
        )
        both = torch.view_as_real(torch.cat([rows, columns], -1)).flatten(2).permute(2, 0, 1)
        size = (scale.height, scale.width)
        shrunk = F.interpolate(both[None], size, mode="bilinear", align_corners=True)[0]
        pairs_last = shrunk.permute(1, 2, 0).unflatten(2, (-1, 2)).flatten(0, 1)
        return torch.view_as_complex(pairs_last.contiguous())
    factors = []
    for n in range(scale.tokens):
        place: list[float] = list(divmod(n, scale.width))
        if model.settings.rope == 2:
            place[0] = round(place[0] * full[0] / scale.height)
            place[1] = round(place[1] * full[1] / scale.width)
        factors.append(torch.cat([place[0] * frequency, place[1] * frequency]))
    angles = torch.stack(factors)
    return torch.polar(torch.ones_like(angles), angles)


def _turn(x: Tensor, factors: Tensor) -> Tensor:
    turned = torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous()) * factors
    return torch.view_as_real(turned).flatten(-2)


def test_batch_of_different_lengths_equals_one_at_a_time(model: Infinity) -> None:
    given = prompts((2, 9, 5))
    batch = engine.generate(
        model, model.condition(**given), plan_for(model, (), SAMPLING), seed=[7, 8, 9]
    )
    for i in range(3):
        one = {name: tensor[i : i + 1] for name, tensor in given.items()}
        alone = engine.generate(
            model, model.condition(**one), plan_for(model, (), SAMPLING), seed=[7 + i]
        )
        torch.testing.assert_close(alone.images[0], batch.images[i], atol=1e-4, rtol=0)
    picked = model.condition(**given)[[2, 0]]
    again = engine.generate(model, picked, plan_for(model, (), SAMPLING), seed=[9, 7])
    torch.testing.assert_close(again.images, batch.images[[2, 0]], atol=1e-4, rtol=0)


def test_tokens_may_stand_anywhere_in_the_row(model: Infinity) -> None:
    given = prompts((4,))
    moved = {name: tensor.roll(1, 1) for name, tensor in given.items()}
    a, b = model.condition(**given), model.condition(**moved)
    assert torch.equal(a.cond["text"], b.cond["text"]) and a.cond["mask"].shape == (1, 4)


@pytest.mark.parametrize("branch", ["cond", "null"])
@pytest.mark.parametrize("negative", [False, True])
def test_dropped_guidance_equals_one_branch_of_the_full_run(
    model: Infinity, branch: str, negative: bool
) -> None:
    given = prompts((3, 6))
    if negative:
        other = prompts((8,), seed=4)
        given |= {"null_text": other["text"], "null_mask": other["mask"]}
    conditioning = model.condition(**given)
    ids = engine.generate(model, conditioning, plan_for(model, (), SAMPLING), seed=1).ids
    full = engine.replay(model, conditioning, ids, plan_for(model, (), SAMPLING))
    plan = compile_plan((PlanStep(scale=4, guidance=branch),), model.info, model.scales(), SAMPLING)
    got = engine.replay(model, conditioning, ids, plan)
    rows = slice(0, 2) if branch == "cond" else slice(2, 4)
    for k in range(7):
        want = full.logits[k] if k < 4 else full.logits[k][rows]
        torch.testing.assert_close(got.logits[k], want, atol=1e-5, rtol=0)


def test_negative_prompt_takes_the_place_of_the_null_rows(model: Infinity) -> None:
    given, other = prompts((3, 6)), prompts((8, 2), seed=4)
    conditioning = model.condition(**given, null_text=other["text"], null_mask=other["mask"])
    ids = engine.generate(model, conditioning, plan_for(model, (), SAMPLING), seed=1).ids
    got = engine.replay(model, conditioning, ids, plan_for(model, (), SAMPLING))
    texts = [given["text"][0, :3], given["text"][1, :6], other["text"][0, :8], other["text"][1, :2]]
    want = _full_forward(model, texts, ids, model.scales())
    torch.testing.assert_close(torch.cat(got.logits, 1), want, atol=1e-4, rtol=0)


def test_guidance_scale_by_scale(model: Infinity) -> None:
    conditioning = model.condition(**prompts((3,)))
    strengths = (1.0, 2.0, 3.0, 4.0, 4.0, 1.0, 1.0)
    sampling = Sampling(guidance=strengths, temperature=0.5, top_p=0.97)
    plan = plan_for(model, (), sampling)
    assert [len(step.branches) for step in plan] == [2, 2, 2, 2, 2, 1, 1]  # 1 is no guidance
    ids = engine.generate(model, conditioning, plan, seed=1).ids
    got = engine.replay(model, conditioning, ids, plan)
    cond, null = got.logits[3].chunk(2)
    torch.testing.assert_close(got.guided[3], (4 * cond - 3 * null) / 0.5, atol=1e-4, rtol=1e-5)


def test_defaults_are_the_published_ones(model: Infinity) -> None:
    assert model.default_sampling == SAMPLING
    assert tiny_infinity(patchify=True).default_sampling.temperature == 1.0


@pytest.mark.parametrize("ratio", [1.0, 0.571])
def test_permuted_tokens_with_their_positions_equal_the_full_run(
    model: Infinity, ratio: float
) -> None:
    scales = model.scales(aspect_ratio=ratio)
    full, scale, x = _before_last(model, scales)
    twin = full.fork()
    generator = torch.Generator().manual_seed(0)
    order = torch.stack([torch.randperm(scale.tokens, generator=generator) for _ in range(4)])
    index = order[..., None].expand(-1, -1, x.shape[-1])
    blocks = range(model.info.depth)
    with torch.inference_mode():
        want = model.run(full, scale, x, blocks).gather(1, index)
        got = model.run(twin, scale, x.gather(1, index), blocks, order)
        wrong = model.run(_before_last(model, scales)[0], scale, x.gather(1, index), blocks)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=0)
    assert (wrong - want).abs().max() > 0.01


def test_selected_tokens_of_a_wide_image_keep_their_positions(model: Infinity) -> None:
    scales = model.scales(aspect_ratio=0.5)
    state, scale, x = _before_last(model, scales)
    kept = torch.randperm(scale.tokens, generator=torch.Generator().manual_seed(1))[:40].sort()[0]
    with torch.inference_mode():
        y = model.run(state, scale, x[:, kept], range(4), kept.expand(4, -1))
        got = model.logits(state, scale, y)
    given = prompts((3, 7))
    null = model.transformer.cfg_uncond
    texts = [given["text"][0, :3], given["text"][1, :7], null[:3], null[:7]]
    want = _full_forward(model, texts, _ids(model, scales), scales, kept)[:, -40:]
    torch.testing.assert_close(got, want, atol=1e-4, rtol=0)


def _ids(model: Infinity, scales: tuple[ScaleSpec, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    shape = (2, model.info.bits)
    return [torch.randint(2, (shape[0], s.tokens, shape[1]), generator=generator) for s in scales]


def _before_last(
    model: Infinity, scales: tuple[ScaleSpec, ...]
) -> tuple[engine.State, ScaleSpec, Tensor]:
    """The state before the last scale after given ids, and that scale's input."""
    plan = plan_for(model, (), SAMPLING, scales)
    with torch.inference_mode():
        state = start(model, model.condition(**prompts((3, 7))), plan, 0)
        for step, ids in zip(plan[:-1], _ids(model, scales), strict=False):
            advance(model, state, step, ids=ids)
        return state, scales[-1], model.embed(state, scales[-1])


@pytest.mark.parametrize("span", ["group", "all"])
@pytest.mark.parametrize(
    ("select", "restore"), [("projection", "cache"), ("leverage", "lift"), ("norm", "delta-cache")]
)
def test_every_option_at_once_in_a_batch(model: Infinity, select, restore, span) -> None:
    scales = model.scales(aspect_ratio=0.75)
    steps = (
        PlanStep(scale=4, guidance="null", temperature=0.4),
        PlanStep(scale=5, tokens=TokenOption(keep=0.5, select=select, restore=restore, span=span)),
        PlanStep(scale=6, run="skip"),
    )
    plan = compile_plan(steps, model.info, scales, SAMPLING)
    given = prompts((2, 9))
    batch = engine.generate(model, model.condition(**given), plan, seed=[7, 8])
    assert len(batch.ids) == 6
    assert batch.images.shape == (2, 3, 2 * scales[-1].height, 2 * scales[-1].width)
    one = {name: tensor[1:] for name, tensor in given.items()}
    alone = engine.generate(model, model.condition(**one), plan, seed=[8])
    torch.testing.assert_close(alone.images[0], batch.images[1], atol=1e-4, rtol=0)


def test_guidance_inside_refuses_tokens_of_each_branch_its_own() -> None:
    model = tiny_infinity({"guidance_layer": -1})
    step = PlanStep(scale=6, tokens=TokenOption(keep=0.5, select="norm", restore="none"))
    plan = compile_plan((step,), model.info, model.scales(), SAMPLING)
    with pytest.raises(UnsupportedModelError, match="guidance_layer=0"):
        engine.generate(model, model.condition(**prompts((3,))), plan, seed=0)


def test_bfloat16_stays_close(model: Infinity) -> None:
    transformer, tokenizer = infinity_states()
    half = Infinity.from_tensors(
        transformer, tokenizer, torch.device("cpu"), torch.bfloat16, {"size": "0.06M"}
    )
    given = prompts((3, 7))
    ids = _ids(model, model.scales())[:3]
    scales = model.scales()[:3]
    want = engine.replay(model, model.condition(**given), ids, plan_for(model, scales=scales))
    got = engine.replay(half, half.condition(**given), ids, plan_for(half, scales=scales))
    assert half.blocks[0].ffn.fc1.weight.dtype == torch.bfloat16
    assert half.transformer.head.weight.dtype == torch.float32
    torch.testing.assert_close(got.logits[2], want.logits[2], atol=0.25, rtol=0)
