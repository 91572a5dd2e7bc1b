"""VAR against its publisher's outputs, and by itself.

pytest tests/runtime/families/test_var.py
"""

from pathlib import Path

import pytest
import torch
from conftest import SHARED, golden, var_states
from published import assert_as_published
from safetensors.torch import load_file

from stagevar_runtime import Sampling, load
from stagevar_runtime.errors import CheckpointError, StagevarError
from stagevar_runtime.families.var import VAR, VARConfig
from stagevar_runtime.loop import engine


@pytest.mark.parametrize("case", ["var", "var_shared_adaln"])
def test_golden(case: str, tmp_path: Path) -> None:
    manifest = golden(case, tmp_path)
    want = load_file(SHARED / "golden" / case / "expected.safetensors")
    said = manifest["arguments"]
    model = load(tmp_path / manifest["files"][0]["path"], profile=None, device="cpu").model
    conditioning = model.condition(labels=want["in.labels"])
    sampling = Sampling(guidance=said["cfg"], top_k=said["top_k"], top_p=said["top_p"])
    assert_as_published(model, conditioning, sampling, want, said["g_seed"])


@pytest.mark.parametrize(
    "shape",
    [
        {"depth": 3, "width": 96, "heads": 3},
        {"shared_adaln": True},
        {"l2_norm": False, "width": 128, "heads": 2},
        {"sides": (1, 2, 3, 4, 5, 6, 7, 8, 9), "classes": 3},
    ],
)
def test_configuration_is_read_off_tensors(shape: dict) -> None:
    transformer, tokenizer = var_states(**shape)
    config = VARConfig.from_tensors(transformer)
    for name, value in shape.items():
        assert getattr(config, name) == value
    model = VAR.from_tensors(transformer, tokenizer, torch.device("cpu"), torch.float32)
    made = engine.generate(model, model.condition(labels=[0, 1]), seed=3)
    assert made.images.shape == (2, 3, 2 * config.sides[-1], 2 * config.sides[-1])
    assert made.images.min() >= 0 and made.images.max() <= 1


def test_teacher_forcing_equals_a_masked_forward(tiny_var: VAR) -> None:
    """The cached loop against one full forward with the block-causal mask, written plainly."""
    conditioning = tiny_var.condition(labels=[1, 4])
    made = engine.generate(tiny_var, conditioning, seed=5)
    got = engine.replay(tiny_var, conditioning, made.ids)
    want = _full_forward(tiny_var, torch.tensor([1, 4, 5, 5]), made.ids)
    torch.testing.assert_close(torch.cat(got.logits, 1), want, atol=2e-5, rtol=0)


def _full_forward(model: VAR, labels: torch.Tensor, ids: list[torch.Tensor]) -> torch.Tensor:
    t, vqvae, sides = model.transformer, model.tokenizer, model.config.sides
    canvas = torch.zeros(2, 32, sides[-1], sides[-1])
    maps = []
    for k, side in enumerate(sides[:-1]):
        codes = vqvae.embed(ids[k]).transpose(1, 2).reshape(2, 32, side, side)
        canvas = vqvae.accumulate(canvas, codes, k, len(sides))
        maps.append(vqvae.shrink(canvas, (sides[k + 1],) * 2).flatten(2).transpose(1, 2))
    condition = t.class_emb(labels)
    start = condition[:, None] + t.pos_start
    x = torch.cat([start, t.word_embed(torch.cat(maps, 1)).repeat(2, 1, 1)], 1)
    level = torch.cat([torch.full((side**2,), k) for k, side in enumerate(sides)])
    x = x + t.lvl_embed(level) + t.pos_1LC
    mask = level[:, None] >= level[None]
    norm = torch.nn.LayerNorm(x.shape[-1], eps=1e-6, elementwise_affine=False)
    for block in t.blocks:
        six = block.ada_lin(condition).view(-1, 1, 6, x.shape[-1])
        g1, g2, s1, s2, b1, b2 = six.unbind(2)
        a = block.attn
        bias = torch.cat([a.q_bias, torch.zeros_like(a.q_bias), a.v_bias])
        qkv = torch.nn.functional.linear(norm(x) * (1 + s1) + b1, a.mat_qkv.weight, bias)
        q, k, v = qkv.view(*x.shape[:2], 3, a.heads, -1).permute(2, 0, 3, 1, 4)
        q = q / q.norm(dim=-1, keepdim=True) * a.scale_mul_1H11.clamp_max(4.605170185988092).exp()
        k = k / k.norm(dim=-1, keepdim=True)
        weights = (q @ k.transpose(2, 3)).masked_fill(~mask, -torch.inf).softmax(-1)
        x = x + a.proj((weights @ v).transpose(1, 2).reshape(x.shape)) * g1
        x = x + block.ffn(norm(x) * (1 + s2) + b2) * g2
    s, b = t.head_nm.ada_lin(condition).view(-1, 1, 2, x.shape[-1]).unbind(2)
    return t.head(norm(x) * (1 + s) + b)


def test_wrong_tokenizer_and_incomplete_files_are_named() -> None:
    transformer, tokenizer = var_states()
    _, other = var_states(vocabulary=64)
    device = torch.device("cpu")
    with pytest.raises(CheckpointError, match=r"64 codes.*expects 48"):
        VAR.from_tensors(transformer, other, device, torch.float32)
    broken = {n: t for n, t in transformer.items() if n != "blocks.1.ffn.fc2.bias"}
    with pytest.raises(CheckpointError, match=r"missing \['blocks.1.ffn.fc2.bias'\]"):
        VAR.from_tensors(broken, tokenizer, device, torch.float32)
    del transformer["lvl_1L"]
    with pytest.raises(CheckpointError, match="lvl_1L"):
        VAR.from_tensors(transformer, tokenizer, device, torch.float32)


@pytest.mark.parametrize("labels", [[5], [-1], []])
def test_labels_out_of_range(tiny_var: VAR, labels: list[int]) -> None:
    with pytest.raises(StagevarError, match="labels from 0 to 4"):
        tiny_var.condition(labels=torch.tensor(labels, dtype=torch.long))
