"""The binary spherical tokenizer that Infinity decodes with: no codebook, one bit a channel.

The convolutions are those of the VQVAE without attention. Published files wrap every convolution
and norm in a module of its own (``conv1.conv.weight``); names without the wrapper are taken too.

Source: Infinity (arXiv 2412.04431), ``models/bsq_vae/flux_vqgan.py``, ``multiscale_bsq.py``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import CheckpointError
from ...model.surroundings import undisturbed
from .config import VQVAEConfig
from .vqvae_layers import Decoder, Encoder, fill

IGNORED = ("quantizer.lfq.mask", "quantize.lfq.mask")  # powers of two, for integer labels
_WRAPPED = re.compile(r"(?<!sample)\.(?:conv|norm)(?=\.(?:weight|bias)$)|(?<=sample\.conv)\.conv")


def unwrapped(name: str) -> str:
    """``norm1.norm.weight`` → ``norm1.weight``, ``upsample.conv.conv.bias`` → ``…conv.bias``."""
    return _WRAPPED.sub("", name)


def read_config(tensors: Mapping[str, Tensor]) -> VQVAEConfig:
    """The architecture off a state dict with unwrapped names; ``z_channels`` is bits a cell.

    Raises:
        CheckpointError: a tensor that decides the architecture is missing.
    """

    def shape(name: str) -> torch.Size:
        if name not in tensors:
            kind = " (a VQVAE with a codebook)" if "quantize.embedding.weight" in tensors else ""
            raise CheckpointError(
                f"not a binary spherical tokenizer: tensor {name!r} is missing, got "
                f"{len(tensors)} tensors{kind}. Pass an infinity_vae_*.pth file"
            )
        return tensors[name].shape

    def count(pattern: str) -> int:
        found = (re.match(pattern, name) for name in tensors)
        return 1 + max((int(match[1]) for match in found if match), default=-1)

    if "quantize.embedding.weight" in tensors:
        shape("quantizer.lfq.mask")
    levels = max(1, count(r"decoder\.up\.(\d+)\.block\."))
    encoder = any(name.startswith("encoder.") for name in tensors)
    channels = tuple(shape(f"decoder.up.{i}.block.0.conv1.weight")[0] for i in range(levels))
    return VQVAEConfig(
        vocabulary=0,
        z_channels=shape("decoder.conv_in.weight")[1],
        stem=shape("encoder.conv_in.weight")[0] if encoder else channels[0],
        channels=channels,
        encoder_blocks=count(r"encoder\.down\.0\.block\.(\d+)\."),
        decoder_blocks=count(r"decoder\.up\.0\.block\.(\d+)\."),
        attention_levels=(),
        middle_attention=False,
        image_channels=shape("decoder.conv_out.weight")[0],
        phis=0,
        sharing="none",
        encoder=encoder,
    )


class BSQVAE(nn.Module):
    """Tokenizer of Infinity: a canvas of ±1/√d codes summed over scales.

    Shapes: bits (B, n, d) of 0 and 1; codes (B, d, h, w); canvas (B, d, H, W);
    image (B, 3, H*f, W*f).
    """

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__()
        self.config = config
        self.bits = config.z_channels
        if config.encoder:
            self.encoder = Encoder(config)
        self.decoder: nn.Module = Decoder(config)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> BSQVAE:
        """Build from a state dict in the published naming, as float32, ready for inference.

        Raises:
            CheckpointError: a tensor is missing, unexpected or of another shape.
        """
        own = {unwrapped(n): t for n, t in tensors.items() if n not in IGNORED}
        config = read_config(own)
        with torch.device("meta"):
            model = cls(config)
        fill(model, own)
        return model.eval().requires_grad_(False)

    def codes(self, bits: Tensor) -> Tensor:
        """Codes of length 1, ±1/√d each, of ``bits`` (..., d) of 0 and 1."""
        scale = self.bits**-0.5
        return F.normalize(bits.float() * scale * 2 - scale, dim=-1)

    def accumulate(self, canvas: Tensor, codes: Tensor) -> Tensor:
        """A new canvas (B, d, H, W) with the codes (B, d, h, w) of one scale added."""
        return canvas + self.resize(codes, (canvas.shape[-2], canvas.shape[-1]))

    def resize(self, grid: Tensor, size: tuple[int, int]) -> Tensor:
        """Linear interpolation to (B, d, h, w), also downwards, as published for inference.

        Source: ``models/infinity.py`` (trilinear over one frame); training shrinks by area.
        """
        if tuple(grid.shape[-2:]) == size:
            return grid
        return F.interpolate(grid, size=size, mode="bilinear")

    @undisturbed()
    def decode(self, canvas: Tensor) -> Tensor:
        """Image (B, 3, H*f, W*f) in [0, 1] of a canvas (B, d, H, W)."""
        z = canvas.contiguous(memory_format=torch.channels_last)
        return self.decoder(z).clamp(-1, 1).mul(0.5).add(0.5).contiguous()

    def encode(self, image: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Bits, one (B, h*w, d) tensor a scale, of an image (B, 3, H*f, W*f) in [0, 1].

        Args:
            sizes: (h, w) of every scale, coarse to fine; the last must be (H, W).

        Raises:
            CheckpointError: the file this was loaded from has no encoder.
        """
        if not self.config.encoder:
            raise CheckpointError(
                "this tokenizer was loaded from a file without an encoder, so it can decode only. "
                "Load the full tokenizer file to encode images"
            )
        rest = self.encoder(image * 2 - 1)
        size = (rest.shape[-2], rest.shape[-1])
        if tuple(sizes[-1]) != size:
            raise ValueError(f"the last scale is {tuple(sizes[-1])}, the image's features {size}")
        out = []
        for h, w in sizes:
            z = rest if (h, w) == size else F.interpolate(rest, size=(h, w), mode="area")
            bits = (z > 0).long().flatten(2).transpose(1, 2)
            out.append(bits)
            codes = self.codes(bits).transpose(1, 2).unflatten(2, (h, w))
            rest = rest - self.resize(codes, size)
        return out
