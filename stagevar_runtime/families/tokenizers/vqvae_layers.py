"""Convolutional encoder and decoder of the multi-scale VQVAE, under the published names.

Source: VAR (arXiv 2404.02905), ``models/basic_vae.py``; the design is that of VQGAN.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...checkpoint.weights import converted
from ...errors import CheckpointError
from ...kernels.groups import group_norm
from ...kernels.linear import linear
from ...kernels.slots import NONE, Kernels

if TYPE_CHECKING:
    from .config import VQVAEConfig

NORM_GROUPS = 32  # not visible in tensor shapes; the same in every published file
NORM_EPS = 1e-6


def _norm(channels: int) -> nn.GroupNorm:
    if channels % NORM_GROUPS:
        raise CheckpointError(
            f"VQVAE level has {channels} channels, expected a multiple of {NORM_GROUPS} "
            "(the published group norm)"
        )
    return nn.GroupNorm(NORM_GROUPS, channels, eps=NORM_EPS)


class ResidualBlock(nn.Module):
    """norm-SiLU-conv twice plus a shortcut."""

    kernels: Kernels = NONE

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1 = _norm(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = _norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.nin_shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(group_norm(x, self.norm1, self.kernels))
        h = self.conv2(group_norm(h, self.norm2, self.kernels))
        return h.add_(self.nin_shortcut(x))


class SpatialAttention(nn.Module):
    """Single-head attention over all positions, width C, scale C**-0.5."""

    kernels: Kernels = NONE

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        normed = group_norm(x, self.norm, self.kernels, silu=False)
        tokens = normed.flatten(2).transpose(1, 2)  # a view in channels-last layout
        qkv = linear(tokens, self.qkv.weight.flatten(1), self.qkv.bias)
        q, k, v = qkv.unsqueeze(1).chunk(3, dim=-1)
        h = F.scaled_dot_product_attention(q, k, v).squeeze(1)
        h = linear(h, self.proj_out.weight.flatten(1), self.proj_out.bias)
        return x + h.transpose(1, 2).unflatten(2, x.shape[2:])


class _Middle(nn.Module):
    def __init__(self, channels: int, attention: bool) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(channels, channels)
        self.attn_1 = SpatialAttention(channels) if attention else nn.Identity()
        self.block_2 = ResidualBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class _Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # right and bottom only, as published


class _Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class _Level(nn.Module):
    """Residual blocks, each followed by an attention where the level has them, then a resize."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        blocks: int,
        attention: bool,
        downsample: bool = False,
        upsample: bool = False,
    ) -> None:
        super().__init__()
        self.block = nn.ModuleList(
            ResidualBlock(inputs if i == 0 else outputs, outputs) for i in range(blocks)
        )
        self.attn = nn.ModuleList(SpatialAttention(outputs) for _ in range(blocks * attention))
        self.downsample = _Downsample(outputs) if downsample else nn.Identity()
        self.upsample = _Upsample(outputs) if upsample else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[i](x)
        return self.upsample(self.downsample(x))


class Encoder(nn.Module):
    """Image (B, 3, H, W) in [-1, 1] to features (B, C, H/f, W/f)."""

    kernels: Kernels = NONE

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__()
        channels, last = config.channels, len(config.channels) - 1
        self.conv_in = nn.Conv2d(config.image_channels, config.stem, 3, padding=1)
        self.down = nn.ModuleList(
            _Level(
                channels[i - 1] if i else config.stem,
                channels[i],
                config.encoder_blocks,
                i in config.attention_levels,
                downsample=i < last,
            )
            for i in range(len(channels))
        )
        self.mid = _Middle(channels[-1], config.middle_attention)
        self.norm_out = _norm(channels[-1])
        self.conv_out = nn.Conv2d(channels[-1], config.z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(group_norm(self.mid(x), self.norm_out, self.kernels))


class Decoder(nn.Module):
    """Features (B, C, h, w) to an image (B, 3, h*f, w*f), about [-1, 1]."""

    kernels: Kernels = NONE

    def __init__(self, config: VQVAEConfig) -> None:
        super().__init__()
        channels, last = config.channels, len(config.channels) - 1
        self.conv_in = nn.Conv2d(config.z_channels, channels[-1], 3, padding=1)
        self.mid = _Middle(channels[-1], config.middle_attention)
        self.up = nn.ModuleList(
            _Level(
                channels[min(i + 1, last)],
                channels[i],
                config.decoder_blocks,
                i in config.attention_levels,
                upsample=i > 0,
            )
            for i in range(len(channels))
        )
        self.norm_out = _norm(channels[0])
        self.conv_out = nn.Conv2d(channels[0], config.image_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(group_norm(x, self.norm_out, self.kernels))


def channels_last(decoder: nn.Module) -> None:
    """Lay out the weights of convolutions as their fast kernels read them, in place.

    On a CPU the published decoder of 256 pixels runs 1.2x faster; matrix units of GPUs ask for the
    same. The module's values do not change.
    """
    to_layout: Any = decoder.to
    to_layout(memory_format=torch.channels_last)


def fill(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put ``tensors``, as float32, into an image tokenizer made on the meta device.

    Raises:
        CheckpointError: a tensor is missing, unexpected or of another shape.
    """
    expected = {name: blank.shape for name, blank in model.state_dict().items()}
    missing = sorted(expected.keys() - tensors.keys())
    extra = sorted(tensors.keys() - expected.keys())
    if missing or extra:
        raise CheckpointError(
            f"tokenizer tensors do not match the architecture they imply: "
            f"missing {missing[:4] or 'none'} ({len(missing)} in all), "
            f"unexpected {extra[:4] or 'none'} ({len(extra)} in all)"
        )
    for name, shape in expected.items():
        if tensors[name].shape != shape:
            raise CheckpointError(
                f"tokenizer tensor {name!r} has shape {tuple(tensors[name].shape)}, "
                f"expected {tuple(shape)}"
            )
    ready = {name: converted(name, t, torch.float32) for name, t in tensors.items()}
    model.load_state_dict(ready, assign=True)
    channels_last(model.decoder)  # type: ignore[arg-type]
