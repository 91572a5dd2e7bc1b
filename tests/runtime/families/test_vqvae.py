"""The shared tokenizer against recorded values: pytest tests/runtime/families/test_vqvae.py"""

import runpy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stagevar_runtime.errors import CheckpointError
from stagevar_runtime.families.tokenizers.config import VQVAEConfig, phi_index
from stagevar_runtime.families.tokenizers.vqvae import VQVAE

SHARED = Path(__file__).resolve().parents[3].parent / "shared" / "golden"
SMALL = VQVAEConfig(
    vocabulary=16,
    z_channels=8,
    stem=32,
    channels=(32, 64),
    encoder_blocks=1,
    decoder_blocks=2,
    attention_levels=(1,),
)
SIZES = [(1, 1), (2, 2), (4, 4)]


@pytest.fixture(scope="module", params=["var", "var_shared_adaln"])
def golden(request):
    if not (SHARED / request.param).is_dir():
        pytest.skip("the golden cases are not beside this repository (../shared/golden)")
    build = runpy.run_path(str(SHARED / "materialize.py"))["build"]
    _, parts = build(request.param)
    (vae,) = [part for part in parts.values() if "quantize.embedding.weight" in part]
    return vae, load_file(SHARED / request.param / "expected.safetensors")


def test_codes_give_the_recorded_canvas_and_image(golden):
    tensors, expected = golden
    model = VQVAE.from_tensors(tensors)
    scales = sum(name.endswith(".ids") for name in expected)
    batch = len(expected["image"])
    ids = [expected[f"s{i}.ids"].long().reshape(batch, -1) for i in range(scales)]
    sides = [round(x.shape[1] ** 0.5) for x in ids]
    canvas = torch.zeros(batch, model.config.z_channels, sides[-1], sides[-1])
    checked = 0
    for i, side in enumerate(sides):
        h = model.embed(ids[i]).transpose(1, 2).unflatten(2, (side, side))
        canvas = model.accumulate(canvas, h, i, scales)
        if f"s{i}.canvas" in expected:
            torch.testing.assert_close(canvas, expected[f"s{i}.canvas"], atol=1e-5, rtol=0)
            checked += 1
    assert checked
    whole = model.codes_to_canvas(ids, [(side, side) for side in sides])
    torch.testing.assert_close(whole, canvas, atol=0, rtol=0)
    # channels-last convolutions sum in another order: 2e-5 here, the bar is 1e-4
    torch.testing.assert_close(model.decode(canvas), expected["image"], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "table",
    [
        "0012233",
        "00112233",
        "001122233",
        "0011122333",
        "00011222333",
        "0001112222333",
        "00011112222333",
        "000011122223333",
    ],
)
def test_phi_choice_as_published(table):
    table = table.replace("0011122333", "0011122333") if len(table) == 10 else table
    assert "".join(str(phi_index(i, len(table), 4)) for i in range(len(table))) == table


def test_phi_choice_without_sharing_is_the_scale():
    assert [phi_index(i, 10, 10) for i in range(10)] == list(range(10))
    assert phi_index(0, 1, 4) == 0


@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        VQVAEConfig(16, 8, 32, (32, 64, 64), 2, 3, (), False, 1, 1, 0, "none"),
        VQVAEConfig(16, 8, 32, (64, 32), 1, 1, (0,), True, 3, 3, 1, "shared"),
        VQVAEConfig(16, 8, 32, (32, 32, 96), 1, 2, (2,), True, 3, 3, 3, "separate"),
        VQVAEConfig(16, 8, 32, (32, 64), 0, 2, (1,), encoder=False),
    ],
)
def test_architecture_is_read_off_the_tensors(config):
    torch.manual_seed(0)
    model = VQVAE(config).eval()
    tensors = {f"vae.{name}": t.half() for name, t in model.state_dict().items()}
    tensors["vae.quantize.ema_vocab_hit_SV"] = torch.zeros(3, 16)
    tensors["other.weight"] = torch.zeros(1)
    loaded = VQVAE.from_tensors(tensors, prefix="vae.")
    assert loaded.config == config
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in loaded.parameters())
    canvas = torch.randn(2, 8, 4, 4)
    torch.testing.assert_close(loaded.decode(canvas), model.decode(canvas), atol=2e-2, rtol=0)


def test_encode_inverts_codes_to_canvas():
    torch.manual_seed(0)
    model = VQVAE(SMALL).eval()
    ids = model.encode(torch.rand(3, 3, 8, 8), SIZES)
    assert [tuple(x.shape) for x in ids] == [(3, 1), (3, 4), (3, 16)]
    canvas = model.codes_to_canvas(ids, SIZES)
    image = model.decode(canvas)
    assert image.shape == (3, 3, 8, 8)
    assert 0 <= image.min() and image.max() <= 1
    assert model.shrink(canvas, (2, 2)).shape == (3, 8, 2, 2)


def test_encoding_subtracts_what_decoding_adds():
    torch.manual_seed(0)
    model = VQVAE(SMALL).eval()
    image = torch.rand(2, 3, 8, 8)
    features = model.features(image)
    ids = model.encode(image, SIZES)
    coarse = model.codes_to_canvas([*ids[:2], torch.zeros_like(ids[2])], SIZES)
    coarse = coarse - model.refine(
        model.embed(torch.zeros_like(ids[2])).mT.unflatten(2, (4, 4)), 2, 3
    )
    nearest = model.quantize.nearest((features - coarse).permute(0, 2, 3, 1).flatten(0, 2))
    assert torch.equal(nearest.view(2, 16), ids[2])


def test_accumulate_leaves_its_input_alone():
    model = VQVAE(SMALL).eval()
    canvas = torch.zeros(1, 8, 4, 4)
    model.accumulate(canvas, torch.ones(1, 8, 2, 2), 1, 3)
    assert not canvas.any()


def test_loading_names_what_is_wrong():
    tensors = dict(VQVAE(SMALL).state_dict())
    lost = {n: t for n, t in tensors.items() if n != "decoder.mid.block_1.conv1.bias"}
    with pytest.raises(CheckpointError, match=r"missing \['decoder.mid.block_1.conv1.bias'\]"):
        VQVAE.from_tensors(lost)
    with pytest.raises(CheckpointError, match=r"unexpected \['stray'\]"):
        VQVAE.from_tensors({**tensors, "stray": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"'decoder.conv_in.weight' has shape"):
        VQVAE.from_tensors({**tensors, "decoder.conv_in.weight": torch.zeros(64, 9, 3, 3)})
    with pytest.raises(CheckpointError, match="not a multi-scale VQVAE"):
        VQVAE.from_tensors({"head.weight": torch.zeros(1)})
    odd = {**tensors, "decoder.up.0.block.0.conv1.weight": torch.zeros(30, 64, 3, 3)}
    with pytest.raises(CheckpointError, match="30 channels"):
        VQVAE.from_tensors(odd)


def test_encoding_needs_the_encoder():
    names = ("encoder.", "quant_conv.")
    tensors = {n: t for n, t in VQVAE(SMALL).state_dict().items() if not n.startswith(names)}
    model = VQVAE.from_tensors(tensors)
    with pytest.raises(CheckpointError, match="without an encoder"):
        model.encode(torch.rand(1, 3, 8, 8), SIZES)
    with pytest.raises(ValueError, match="the last scale"):
        VQVAE(SMALL).encode(torch.rand(1, 3, 16, 16), SIZES)
