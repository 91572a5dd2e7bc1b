"""A plain sampling loop, to look at a model while it trains.

Figures that ship are measured through the runtime (see evaluate_fashion), not through this loop.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stagevar_runtime.families.tokenizers.vqvae import VQVAE

from .tokens import Sizes
from .transformer import Cache, Transformer, scale_slices


def ramp(strength: float, count: int) -> list[float]:
    """The published guidance: t = strength * k / (count - 1), as linear weights 1 + t."""
    return [1 + strength * k / (count - 1) for k in range(count)]


def mask_logits(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Rule out what top-k, then top-p leave out; logits (..., V). 0 switches either off."""
    if 0 < top_k < logits.shape[-1]:
        least = logits.topk(top_k, -1).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if 0 < top_p < 1:
        ordered, order = logits.sort(-1)
        out = ordered.softmax(-1).cumsum(-1) <= 1 - top_p
        out[..., -1] = False
        logits = logits.masked_fill(out.scatter(-1, order, out), -torch.inf)
    return logits


@torch.inference_mode()
def sample(
    model: Transformer,
    tokenizer: VQVAE,
    labels: Tensor,
    sizes: Sizes,
    weights: Sequence[float],
    top_k: int = 0,
    top_p: float = 0.0,
    seed: int = 0,
) -> Tensor:
    """Images (B, 3, H, W) in [0, 1].

    Args:
        model: the transformer.
        tokenizer: decodes, and turns tokens into the next scale's input.
        labels: asked classes (B,).
        sizes: (h, w) of every scale.
        weights: linear guidance of every scale, uncond + w (cond - uncond). All 1: no guidance.
        top_k: keep the likeliest tokens only.
        top_p: keep the likeliest tokens that hold this share only.
        seed: of the draw.
    """
    generator = torch.Generator(labels.device).manual_seed(seed)
    batch, guided = len(labels), any(w != 1 for w in weights)
    rows = torch.cat((labels, torch.full_like(labels, model.config.classes))) if guided else labels
    condition, x = model.start(rows)
    positions, slices = model.positions(), scale_slices(model.config.sides)
    canvas = torch.zeros(batch, tokenizer.config.z_channels, *sizes[-1], device=labels.device)
    cache: Cache = [None] * len(model.blocks)
    for index, (h, w) in enumerate(sizes):
        if index > 0:
            x = model.word_embed(tokenizer.shrink(canvas, (h, w)).flatten(2).mT)
            x = x.repeat(2, 1, 1) if guided else x
        logits = model.run(x + positions[:, slices[index]], condition, cache=cache)
        if guided:
            logits = torch.lerp(logits[batch:], logits[:batch], weights[index])
        share = mask_logits(logits, top_k, top_p).softmax(-1)
        ids = torch.multinomial(share.flatten(0, 1), 1, generator=generator).view(batch, -1)
        embedded = tokenizer.embed(ids).mT.unflatten(2, (h, w))
        canvas = tokenizer.accumulate(canvas, embedded, index, len(sizes))
    return tokenizer.decode(canvas)
