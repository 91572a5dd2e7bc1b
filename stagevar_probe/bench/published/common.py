"""What the published loops share: their result, plain layers, their sampler, an eager decoder.

A published loop is written again as its publishers run it and compared with by `bench`: see
``published_var.py`` and ``published_infinity.py``.

Source of the facts: FoundationVision/VAR 78b9539, ``models/{helpers,basic_vae}.py``.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from stagevar_runtime.accelerate.half_decoder import HalfDecoder
from stagevar_runtime.model.sampling import Sampling


@dataclass
class Published:
    """What one call made and how long it took, as in ``engine.Generation``."""

    images: Tensor
    ids: list[Tensor]
    scale_ms: list[float] = field(default_factory=list)
    loop_ms: float = 0.0
    decode_ms: float = 0.0


def plain_copy(tokenizer: Any) -> Any:
    """A copy of an image tokenizer in float32 and PyTorch's default memory layout."""
    copied = copy.deepcopy(tokenizer)
    if isinstance(copied.decoder, HalfDecoder):
        copied.decoder = copied.decoder.full
    copied.to(memory_format=torch.contiguous_format)
    return copied


def strength_at(sampling: Sampling, k: int) -> float:
    """The guidance scale of scale ``k``."""
    return sampling.guidance[k] if isinstance(sampling.guidance, tuple) else sampling.guidance


def plain(module: Any, x: Tensor) -> Tensor:
    """A linear layer as eager PyTorch runs it, whatever our modules do instead."""
    return F.linear(x, module.weight, module.bias)


def norm(x: Tensor) -> Tensor:
    """Layer norm without weights."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def draw(logits: Tensor, top_k: int, top_p: float, rng: torch.Generator) -> Tensor:
    """Ids ``(B, n)`` from ``(B, n, V)``, which are changed: the whole vocabulary is sorted."""
    batch, n, size = logits.shape
    if top_k > 0:
        least = logits.topk(min(top_k, size), largest=True, sorted=False, dim=-1)[0]
        logits.masked_fill_(logits < least.amin(dim=-1, keepdim=True), -torch.inf)
    if top_p > 0:
        ascending, order = logits.sort(dim=-1, descending=False)
        drop = ascending.softmax(dim=-1).cumsum_(dim=-1) <= 1 - top_p
        drop[..., -1:] = False
        logits.masked_fill_(drop.scatter(-1, order, drop), -torch.inf)
    flat = logits.softmax(dim=-1).view(-1, size)
    return torch.multinomial(flat, 1, replacement=True, generator=rng).view(batch, n)


def decode(decoder: Any, z: Tensor) -> Tensor:
    """``(B, 3, H, W)`` in [0, 1] by a decoder of ours, run layer by layer."""
    h = decoder.conv_in(z)
    h = _residual(decoder.mid.block_1, h)
    if hasattr(decoder.mid.attn_1, "qkv"):
        h = _attention(decoder.mid.attn_1, h)
    h = _residual(decoder.mid.block_2, h)
    for level in reversed(decoder.up):
        for i, block in enumerate(level.block):
            h = _residual(block, h)
            if len(level.attn):
                h = _attention(level.attn[i], h)
        if hasattr(level.upsample, "conv"):
            h = level.upsample.conv(F.interpolate(h, scale_factor=2, mode="nearest"))
    image = decoder.conv_out(F.silu(decoder.norm_out(h), inplace=True))
    return image.clamp_(-1, 1).add_(1).mul_(0.5)


def _residual(block: Any, x: Tensor) -> Tensor:
    h = block.conv1(F.silu(block.norm1(x), inplace=True))
    h = block.conv2(F.silu(block.norm2(h), inplace=True))
    return block.nin_shortcut(x) + h


def _attention(attn: Any, x: Tensor) -> Tensor:
    batch, c, height, width = x.shape
    q, k, v = (
        F.conv2d(attn.norm(x), attn.qkv.weight, attn.qkv.bias)
        .reshape(batch, 3, c, height * width)
        .unbind(1)
    )
    weights = torch.bmm(q.permute(0, 2, 1).contiguous(), k.contiguous()).mul_(c**-0.5)
    weights = F.softmax(weights, dim=2).permute(0, 2, 1).contiguous()
    h = torch.bmm(v.contiguous(), weights)
    h = h.view(batch, c, height, width).contiguous()
    return x + F.conv2d(h, attn.proj_out.weight, attn.proj_out.bias)
