"""Infinity's tokenizer: names, codes, canvas, errors.

pytest tests/runtime/families/test_bsq_vae.py
"""

import pytest
import torch
from conftest import infinity_states, var_states, wrapped
from torch.nn import functional as F

from stagevar_runtime.errors import CheckpointError
from stagevar_runtime.families.tokenizers.bsq_vae import BSQVAE, read_config, unwrapped


@pytest.fixture
def states() -> dict[str, torch.Tensor]:
    return infinity_states()[1]


def test_configuration_is_read_off_tensors(states) -> None:
    config = read_config({unwrapped(name): t for name, t in states.items()})
    assert (config.z_channels, config.channels, config.stem) == (4, (32, 64), 32)
    assert (config.encoder_blocks, config.decoder_blocks, config.downsample) == (1, 2, 2)


def test_wrapped_and_plain_names_load_alike(states) -> None:
    plain = {unwrapped(n): t for n, t in states.items() if "lfq" not in n}
    assert {wrapped(n) for n in plain} == {n for n in states if "lfq" not in n}
    assert plain.keys() == {unwrapped(n) for n in plain}, "unwrapping twice changes nothing"
    canvas = torch.randn(1, 4, 3, 5, generator=torch.Generator().manual_seed(0))
    image = BSQVAE.from_tensors(plain).decode(canvas)
    assert torch.equal(image, BSQVAE.from_tensors(states).decode(canvas))
    assert image.shape == (1, 3, 6, 10) and image.min() >= 0 and image.max() <= 1


def test_a_file_without_encoder_decodes_only(states) -> None:
    decoder = {n: t for n, t in states.items() if not n.startswith("encoder.")}
    vae = BSQVAE.from_tensors(decoder)
    assert vae.decode(torch.zeros(1, 4, 2, 2)).shape == (1, 3, 4, 4)
    with pytest.raises(CheckpointError, match="without an encoder"):
        vae.encode(torch.zeros(1, 3, 4, 4), [(2, 2)])


def test_codes_lie_on_the_unit_sphere(states) -> None:
    vae = BSQVAE.from_tensors(states)
    codes = vae.codes(torch.tensor([[0, 1, 1, 0]]))
    torch.testing.assert_close(codes, torch.tensor([[-0.5, 0.5, 0.5, -0.5]]))


def test_encoding_sums_to_what_decoding_reads(states) -> None:
    """Each scale codes what the scales before left over, as published for training."""
    vae = BSQVAE.from_tensors(states)
    image = torch.rand(2, 3, 8, 16, generator=torch.Generator().manual_seed(1))
    sizes = [(1, 1), (2, 3), (4, 8)]
    bits = vae.encode(image, sizes)
    assert [tuple(b.shape) for b in bits] == [(2, 1, 4), (2, 6, 4), (2, 32, 4)]
    rest, canvas = vae.encoder(image * 2 - 1), torch.zeros(2, 4, 4, 8)
    for b, size in zip(bits, sizes, strict=True):
        z = F.adaptive_avg_pool2d(rest, size)
        assert torch.equal(b, (z > 0).long().flatten(2).transpose(1, 2))
        codes = vae.codes(b).transpose(1, 2).unflatten(2, size)
        before, canvas = canvas, vae.accumulate(canvas, codes)
        rest = rest - (canvas - before)
    with pytest.raises(ValueError, match=r"last scale is \(2, 2\).*\(4, 8\)"):
        vae.encode(image, [(1, 1), (2, 2)])


def test_shrinking_interpolates_instead_of_averaging(states) -> None:
    """Inference resizes linearly both ways (one frame of a trilinear resize)."""
    canvas = torch.randn(1, 4, 6, 10, generator=torch.Generator().manual_seed(2))
    got = BSQVAE.from_tensors(states).resize(canvas, (3, 4))
    want = F.interpolate(canvas[:, :, None], (1, 3, 4), mode="trilinear")[:, :, 0]
    torch.testing.assert_close(got, want, atol=1e-6, rtol=0)
    assert not torch.allclose(got, F.adaptive_avg_pool2d(canvas, (3, 4)), atol=1e-3)


def test_other_files_are_named(states) -> None:
    with pytest.raises(CheckpointError, match="a VQVAE with a codebook"):
        BSQVAE.from_tensors(var_states()[1])
    with pytest.raises(CheckpointError, match=r"decoder.conv_in.weight.*infinity_vae"):
        BSQVAE.from_tensors({n: t for n, t in states.items() if "conv_in" not in n})
    with pytest.raises(CheckpointError, match=r"missing \['decoder.mid.block_1.conv1.bias'\]"):
        BSQVAE.from_tensors(
            {n: t for n, t in states.items() if n != "decoder.mid.block_1.conv1.conv.bias"}
        )
    with pytest.raises(CheckpointError, match=r"unexpected \['decoder.mid.attn_1.q.weight'\]"):
        BSQVAE.from_tensors(states | {"decoder.mid.attn_1.q.conv.weight": torch.zeros(4, 4, 1, 1)})
    with pytest.raises(CheckpointError, match=r"shape \(7,\), expected \(64,\)"):
        BSQVAE.from_tensors(states | {"decoder.conv_in.conv.bias": torch.zeros(7)})
