"""The trained architecture equals the published one: pytest tests/training"""

import runpy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stagevar_runtime.families.tokenizers.vqvae import VQVAE
from training.tokens import teacher_inputs
from training.transformer import Transformer, TransformerConfig, scale_slices

GOLDEN = Path(__file__).resolve().parents[2].parent / "shared" / "golden"


def test_teacher_forced_logits_as_recorded():
    if not (GOLDEN / "var").is_dir():
        pytest.skip("the golden cases are not beside this repository (../shared/golden)")
    _, parts = runpy.run_path(str(GOLDEN / "materialize.py"))["build"]("var")
    weights = next(p for p in parts.values() if "class_emb.weight" in p)
    tokenizer = VQVAE.from_tensors(next(p for p in parts.values() if "post_quant_conv.bias" in p))
    expected = load_file(GOLDEN / "var" / "expected.safetensors")
    batch, count = len(expected["image"]), sum(n.endswith(".ids") for n in expected)
    ids = [expected[f"s{i}.ids"].long().reshape(batch, -1) for i in range(count)]
    sides = tuple(round(x.shape[1] ** 0.5) for x in ids)
    config = TransformerConfig(
        sides,
        weights["head.weight"].shape[0],
        weights["word_embed.weight"].shape[1],
        classes=weights["class_emb.weight"].shape[0] - 1,
        width=weights["word_embed.weight"].shape[0],
        depth=sum(n.endswith("mat_qkv.weight") for n in weights),
        heads=weights["blocks.0.attn.scale_mul_1H11"].shape[1],
    )
    model = Transformer(config).eval()
    model.load_state_dict(weights, strict=True)
    inputs = teacher_inputs(tokenizer, torch.cat(ids, 1), [(s, s) for s in sides])
    labels = torch.cat(
        (expected["in.labels"], expected["in.labels"].new_full((batch,), config.classes))
    )
    with torch.no_grad():
        logits = model(labels, torch.cat((inputs, inputs)))
    for i, part in enumerate(scale_slices(sides)):
        torch.testing.assert_close(logits[:, part], expected[f"s{i}.logits"], atol=2e-4, rtol=1e-4)
