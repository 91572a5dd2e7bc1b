"""What a multi-scale VQVAE looks like, read off its tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ...errors import CheckpointError

MOST = 16  # levels, blocks of a level, phis
PHI_RATIO = 0.5  # phi(h) = (1 - ratio) h + ratio conv(h)


Sharing = Literal["none", "shared", "partial", "separate"]


@dataclass(frozen=True)
class VQVAEConfig:
    """Architecture of a multi-scale VQVAE.

    Attributes:
        vocabulary: codebook entries V.
        z_channels: width C of a codebook entry and of the canvas.
        stem: channels after the encoder's first convolution.
        channels: channels of each level, finest first.
        encoder_blocks, decoder_blocks: residual blocks of a level (published: 2 and 3).
        attention_levels: levels with an attention after every residual block (published: deepest).
        middle_attention: whether the middle has an attention.
        image_channels: channels of the image.
        quant_kernel: kernel of ``quant_conv`` and ``post_quant_conv``.
        phis: number of phi convolutions, 0 without.
        sharing: how scales share them, which is also how they are named in the file.
        encoder: whether the file carries the encoder.
    """

    vocabulary: int = 4096
    z_channels: int = 32
    stem: int = 160
    channels: tuple[int, ...] = (160, 160, 320, 320, 640)
    encoder_blocks: int = 2
    decoder_blocks: int = 3
    attention_levels: tuple[int, ...] = (4,)
    middle_attention: bool = True
    image_channels: int = 3
    quant_kernel: int = 3
    phis: int = 4
    sharing: Sharing = "partial"
    encoder: bool = True

    @property
    def downsample(self) -> int:
        """Image pixels per canvas cell, along one side."""
        return 2 ** (len(self.channels) - 1)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> VQVAEConfig:
        """Read the architecture off a state dict in the published naming.

        Raises:
            CheckpointError: a tensor that decides the architecture is missing.
        """

        def shape(name: str) -> torch.Size:
            if name not in tensors:
                raise CheckpointError(
                    f"not a multi-scale VQVAE: tensor {name!r} is missing "
                    f"(got {len(tensors)} tensors). Pass the tokenizer's own file"
                )
            return tensors[name].shape

        def indices(pattern: str) -> list[int]:
            found = (re.match(pattern, name) for name in tensors)
            return _small(sorted({match[1] for match in found if match}))

        vocabulary, z_channels = shape("quantize.embedding.weight")
        levels = indices(r"decoder\.up\.(\d+)\.block\.")
        channels = tuple(shape(f"decoder.up.{i}.block.0.conv1.weight")[0] for i in levels)
        if not channels:
            raise CheckpointError("not a multi-scale VQVAE: no tensor named decoder.up.*.block.*")
        encoder = any(name.startswith("encoder.") for name in tensors)
        phis, sharing = _read_phis(tensors)
        return cls(
            vocabulary=vocabulary,
            z_channels=z_channels,
            stem=shape("encoder.conv_in.weight")[0] if encoder else channels[0],
            channels=channels,
            encoder_blocks=len(indices(r"encoder\.down\.0\.block\.(\d+)\.")),
            decoder_blocks=len(indices(r"decoder\.up\.0\.block\.(\d+)\.")),
            attention_levels=tuple(indices(r"decoder\.up\.(\d+)\.attn\.")),
            middle_attention="decoder.mid.attn_1.qkv.weight" in tensors,
            image_channels=shape("decoder.conv_out.weight")[0],
            quant_kernel=shape("post_quant_conv.weight")[-1],
            phis=phis,
            sharing=sharing,
            encoder=encoder,
        )


def _small(found: list[str]) -> list[int]:
    """Numbers of modules. Raises CheckpointError past :data:`MOST`, before any is made."""
    if len(found) > MOST or any(len(n) > 3 or int(n) >= MOST for n in found):
        raise CheckpointError(
            f"the tokenizer's modules are numbered up to {max(found, key=len)[:12]}, expected "
            f"less than {MOST}"
        )
    return sorted(map(int, found))


def _read_phis(tensors: Mapping[str, Tensor]) -> tuple[int, Sharing]:
    pattern = re.compile(r"quantize\.quant_resi\.(qresi_ls\.\d+|qresi|\d+)\.weight$")
    found = {match[1] for match in map(pattern.match, tensors) if match}
    if not found:
        return 0, "none"
    if found == {"qresi"}:
        return 1, "shared"
    if len(found) > MOST:
        raise CheckpointError(f"the tokenizer has {len(found)} phis, expected at most {MOST}")
    return len(found), "partial" if any(n.startswith("qresi_ls") for n in found) else "separate"


def phi_index(index: int, count: int, phis: int) -> int:
    """Which phi the scale ``index`` of ``count`` uses.

    The nearest of ``phis`` ticks wins. Some scales (2 and 7 of 10) lie halfway between two ticks,
    so that rounding in float64 decides: the ticks must come from numpy's ``linspace``.
    Source: VAR ``models/quant.py``, ``PhiPartiallyShared``.
    """
    margin = 1 / (3 if phis == 4 else 2) / phis
    ticks = np.linspace(margin, 1 - margin, phis)
    position = index / (count - 1) if count > 1 else 0.0
    return int(np.argmin(np.abs(ticks - position)))
