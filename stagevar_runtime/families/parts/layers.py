"""Layers that several families share, under the parameter names of VAR, which they descend from.

Shapes: rows = B or 2B, n tokens of a scale, T text tokens, C width, H heads, c head dim.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...kernels.attention import attend
from ...kernels.heads import Heads, Rotation, split_heads
from ...kernels.linear import WHOLE, Linear, LowRankLayers, gelu_linear, linear
from ...kernels.norms import PLAIN, Norm, Residual
from ...kernels.slots import NONE, Kernels
from ...model.kvcache import KVCache

MAX_LOG_SCALE = math.log(100)


def ada_linear(width: int, count: int) -> nn.Sequential:
    """The condition ``(rows, C)`` to ``count`` modulations ``(rows, count · C)``."""
    return nn.Sequential(nn.SiLU(), Linear(width, count * width))


class RMSNorm(nn.Module):
    """Root-mean-square norm in float32, then a learned weight."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        return self.spec(x)

    @property
    def spec(self) -> Norm:
        """What it computes, for kernels that compute more along with it."""
        return Norm("rms", self.weight, eps=self.eps, stepwise=True)


def cached_heads(
    product: Tensor,
    how: Heads,
    kernels: Kernels,
    scale: Tensor | None,
    rotation: Rotation | None,
    cache: KVCache | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries ``(rows, H, n, c)`` of a product ``(rows, n, 3C)``, and all keys and values by then.

    This scale's keys and values are written to their place in ``cache`` (None: there is none).
    """
    if cache is None:
        q, k, v = split_heads(product, how, kernels, scale, rotation)
        return q, k, v
    rows, n, width = product.shape
    slots = cache.claim(product, rows, how.count, n, width // 3 // how.count)
    q, *_ = split_heads(product, how, kernels, scale, rotation, slots)
    return q, *cache.filled()


class CosineNorm(nn.Module):
    """Unit queries times a learned scale for each head, unit keys; or neither, where untrained."""

    query_scale: Tensor
    scale_mul_1H11: nn.Parameter | None
    kernels: Kernels = NONE

    def __init__(self, width: int, heads: int, l2_norm: bool) -> None:
        super().__init__()
        self.heads = heads
        self.scale = 1.0 if l2_norm else 0.25 / math.sqrt(width // heads)
        self.scale_mul_1H11 = nn.Parameter(torch.zeros(1, heads, 1, 1)) if l2_norm else None
        self.q_bias, self.v_bias = (
            nn.Parameter(torch.zeros(width)),
            nn.Parameter(torch.zeros(width)),
        )
        self.register_buffer("zero_k_bias", torch.zeros(width))
        self.register_buffer("query_scale", torch.empty(0), persistent=False)
        self.proj = Linear(width, width)

    def prepare(self) -> None:
        """Compute what depends on weights alone."""
        if self.scale_mul_1H11 is not None:
            self.query_scale = self.scale_mul_1H11.float().clamp_max(MAX_LOG_SCALE).exp()

    @property
    def unit_scale(self) -> Tensor | None:
        """What unit queries are multiplied with, ``(1, H, 1, 1)``; None where untrained."""
        return None if self.scale_mul_1H11 is None else self.query_scale

    @property
    def norm(self) -> Literal["unit", "none"]:
        """How heads are normed."""
        return "none" if self.scale_mul_1H11 is None else "unit"

    def keys(self, k: Tensor) -> Tensor:
        """``(rows, H, n, c)``, normalised."""
        return k if self.scale_mul_1H11 is None else F.normalize(k.float(), dim=-1).to(k.dtype)


class Attention(CosineNorm):
    """Self-attention over all cached tokens; keys have no bias.

    ``projection`` is what the checkpoint calls the weight of queries, keys and values. ``rotate``
    says which channels of normalised queries and keys turn together (:class:`Heads`).
    """

    qkv_bias: Tensor

    def __init__(
        self,
        width: int,
        heads: int,
        l2_norm: bool = True,
        projection: str = "mat_qkv",
        rotate: Literal["pairs", "halves", "none"] = "none",
    ) -> None:
        super().__init__(width, heads, l2_norm)
        self.projection = projection
        self.how = Heads(heads, self.norm, rotate)
        self.add_module(projection, Linear(width, 3 * width, bias=False))
        self.register_buffer("qkv_bias", torch.empty(0), persistent=False)

    def prepare(self) -> None:
        """Compute what depends on weights alone."""
        super().prepare()
        self.qkv_bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])

    def forward(
        self,
        x: Tensor,
        cache: KVCache,
        rotation: Rotation | None = None,
        narrow: LowRankLayers = WHOLE,
    ) -> Tensor:
        weight = getattr(self, self.projection).weight
        qkv = linear(x, weight, self.qkv_bias, narrow=narrow.get("qkv"))
        q, k, v = cached_heads(qkv, self.how, self.kernels, self.unit_scale, rotation, cache)
        return self.proj(attend(q, k, v, self.scale), narrow.get("proj"))


class TextAttention(CosineNorm):
    """Cross-attention to text features of width ``context``; keys have no bias."""

    def __init__(self, width: int, heads: int, context: int, l2_norm: bool = True) -> None:
        super().__init__(width, heads, l2_norm)
        self.mat_q = Linear(width, width, bias=False)
        self.mat_kv = Linear(context, 2 * width, bias=False)

    def keys_values(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values ``(rows, H, T, c)`` of ``text`` ``(rows, T, context)``, once for all."""
        bias = torch.cat([torch.zeros_like(self.v_bias), self.v_bias])
        kv = linear(text, self.mat_kv.weight, bias)
        k, v = kv.unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        return self.keys(k), v

    def forward(self, x: Tensor, text: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        how = Heads(self.heads, self.norm, parts=1)
        product = linear(x, self.mat_q.weight, self.q_bias)
        (q,) = split_heads(product, how, self.kernels, self.unit_scale)
        return self.proj(attend(q, *text, self.scale, mask))


class FeedForward(nn.Module):
    """Two linear layers around a tanh-approximated GELU."""

    kernels: Kernels = NONE

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = Linear(width, hidden), Linear(hidden, width)

    def forward(self, x: Tensor, narrow: LowRankLayers = WHOLE) -> Tensor:
        fc1 = self.fc1
        run = self.kernels.gelu or gelu_linear
        hidden = run(x, fc1.weight, fc1.bias, narrow.get("fc1"))
        return self.fc2(hidden, narrow.get("fc2"))


class GatedFeedForward(nn.Module):
    """SwiGLU: ``down(silu(gate(x)) · up(x))``, without biases."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up_proj = Linear(width, hidden, bias=False)
        self.down_proj = Linear(hidden, width, bias=False)
        self.gate_proj = Linear(width, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Head(nn.Module):
    """AdaLN before the classifier, which is the model's."""

    kernels: Kernels = NONE

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ada_lin = ada_linear(width, 2)

    def normed(self, x: Tensor, modulation: Tensor, norm: Norm = PLAIN) -> Tensor:
        """``x`` ``(rows, n, C)`` normed and modulated by ``(rows, 1, 2, C)``."""
        factor, shift = modulation.unbind(2)
        return Residual(x, self.kernels).normed(norm, factor + 1, shift)


class Fourier(nn.Module):
    """Sines and cosines of a number at learned frequencies."""

    def __init__(self, frequencies: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(frequencies))

    def forward(self, x: Tensor) -> Tensor:
        angles = x.float()[:, None] * self.weight.float() * (2 * math.pi)
        return torch.cat([angles.sin(), angles.cos()], -1).to(self.weight.dtype)
