"""Images to tokens, once, and tokens to the transformer's teacher-forced inputs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from stagevar_runtime.families.tokenizers.vqvae import VQVAE

from .data.fashion import Images
from .state import load_torch, save_torch

Sizes = Sequence[tuple[int, int]]


@torch.inference_mode()
def encode_tokens(
    model: VQVAE, data: Images, sizes: Sizes, path: Path, device: str, batch: int = 250
) -> Tensor:
    """Tokens (N, L) int16 of a whole split; computed once and kept in ``path``."""
    if (saved := load_torch(path)) is not None:
        return saved
    rows = []
    for start in range(0, len(data), batch):
        image = data.batch(slice(start, start + batch), device)
        ids = model.encode(image.contiguous(memory_format=torch.channels_last), sizes)
        rows.append(torch.cat(ids, 1).to(torch.int16).cpu())
    tokens = torch.cat(rows)
    save_torch(path, tokens)
    return tokens


@torch.inference_mode()
def decode_tokens(
    model: VQVAE, tokens: Tensor, sizes: Sizes, device: str, batch: int = 250
) -> Tensor:
    """Grey pixels (N, 1, H, W) uint8 of tokens (N, L)."""
    pixels = []
    for chunk in tokens.split(batch):
        ids = chunk.to(device).long().split([h * w for h, w in sizes], 1)
        canvas = model.codes_to_canvas(ids, sizes).contiguous(memory_format=torch.channels_last)
        grey = model.decode(canvas).mean(1, keepdim=True)
        pixels.append(grey.mul(255).round().to(torch.uint8).contiguous().cpu())
    return torch.cat(pixels)


@torch.no_grad()
def teacher_inputs(model: VQVAE, ids: Tensor, sizes: Sizes) -> Tensor:
    """What the transformer reads before every scale but the first.

    Args:
        model: the tokenizer.
        ids: tokens of all scales (B, L).
        sizes: (h, w) of every scale.

    Returns:
        the shrunk canvas before each scale, (B, L - l0, C).
    """
    canvas = torch.zeros(len(ids), model.config.z_channels, *sizes[-1], device=ids.device)
    inputs = []
    parts = ids.split([h * w for h, w in sizes], 1)
    for index in range(len(sizes) - 1):
        embedded = model.embed(parts[index]).mT.unflatten(2, tuple(sizes[index]))
        canvas = model.accumulate(canvas, embedded, index, len(sizes))
        inputs.append(model.shrink(canvas, tuple(sizes[index + 1])).flatten(2).mT)
    return torch.cat(inputs, 1)
