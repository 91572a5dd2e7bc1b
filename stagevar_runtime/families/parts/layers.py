"""Layers that several families share, under the parameter names of VAR, which they descend from.

Shapes: rows = B or 2B, n tokens of a scale, T text tokens, C width, H heads, c head dim.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...kernels.attention import attend
from ...kernels.linear import WHOLE, Linear, LowRankLayers, linear
from ...model.kvcache import KVCache
from .rope import Rotation

MAX_LOG_SCALE = math.log(100)
Rotate = Callable[[Tensor, Rotation], Tensor]


def modulated(x: Tensor, factor: Tensor, shift: Tensor) -> Tensor:
    """Layer norm without weights, then ``· factor + shift``."""
    return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=1e-6), factor)


def ada_linear(width: int, count: int) -> nn.Sequential:
    """The condition ``(rows, C)`` to ``count`` modulations ``(rows, count · C)``."""
    return nn.Sequential(nn.SiLU(), Linear(width, count * width))


class RMSNorm(nn.Module):
    """Root-mean-square norm in float32, then a learned weight."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), x.shape[-1:], eps=self.eps).to(x.dtype) * self.weight


class CosineNorm(nn.Module):
    """Unit queries times a learned scale for each head, unit keys; or neither, where untrained."""

    query_scale: Tensor
    scale_mul_1H11: nn.Parameter | None

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

    def queries(self, q: Tensor) -> Tensor:
        """``(rows, H, n, c)``, normalised."""
        if self.scale_mul_1H11 is None:
            return q
        return (F.normalize(q.float(), dim=-1) * self.query_scale).to(q.dtype)

    def keys(self, k: Tensor) -> Tensor:
        """``(rows, H, n, c)``, normalised."""
        return k if self.scale_mul_1H11 is None else F.normalize(k.float(), dim=-1).to(k.dtype)


class Attention(CosineNorm):
    """Self-attention over all cached tokens; keys have no bias.

    ``projection`` is what the checkpoint calls the weight of queries, keys and values. ``rotate``
    applies a rotary embedding to normalised queries and keys.
    """

    qkv_bias: Tensor

    def __init__(
        self,
        width: int,
        heads: int,
        l2_norm: bool = True,
        projection: str = "mat_qkv",
        rotate: Rotate | None = None,
    ) -> None:
        super().__init__(width, heads, l2_norm)
        self.projection, self.rotate = projection, rotate
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
        q, k, v = qkv.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        q, k = self.queries(q), self.keys(k)
        if self.rotate is not None and rotation is not None:
            q, k = self.rotate(q, rotation), self.rotate(k, rotation)
        k, v = cache.append(k, v)
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
        q = linear(x, self.mat_q.weight, self.q_bias)
        q = self.queries(q.unflatten(2, (self.heads, -1)).transpose(1, 2))
        return self.proj(attend(q, *text, self.scale, mask))


class FeedForward(nn.Module):
    """Two linear layers around a tanh-approximated GELU."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = Linear(width, hidden), Linear(hidden, width)

    def forward(self, x: Tensor, narrow: LowRankLayers = WHOLE) -> Tensor:
        fc1 = self.fc1
        return self.fc2(linear(x, fc1.weight, fc1.bias, gelu=True, narrow=narrow.get("fc1")))


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
    """AdaLN before the classifier: the modulation only, the classifier is the model's."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ada_lin = ada_linear(width, 2)


class Fourier(nn.Module):
    """Sines and cosines of a number at learned frequencies."""

    def __init__(self, frequencies: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(frequencies))

    def forward(self, x: Tensor) -> Tensor:
        angles = x.float()[:, None] * self.weight.float() * (2 * math.pi)
        return torch.cat([angles.sin(), angles.cos()], -1).to(self.weight.dtype)
