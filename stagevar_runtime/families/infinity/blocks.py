"""The modules of an Infinity checkpoint, under their published names.

Shapes: rows = B or 2B, n tokens of a scale, T text tokens, C width, H heads, c head dim.
Source: Infinity (arXiv 2412.04431), ``models/basic.py``, ``models/infinity.py``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from ...checkpoint.weights import block_count, complete
from ...errors import CheckpointError
from ...kernels.attention import attend
from ...kernels.heads import Heads, Rotation
from ...kernels.linear import WHOLE, Linear, LowRankLayers, linear
from ...kernels.norms import PLAIN, Norm, Residual
from ...kernels.slots import NONE, Kernels
from ...model.kvcache import KVCache
from ...options.low_rank import Layer
from ..parts.layers import MAX_LOG_SCALE, FeedForward, Head, ada_linear, cached_heads

EPS = 1e-6
Modulation = tuple[Tensor, ...]  # six of (rows, 1, C): gamma1, gamma2, 1 + scale1, 1 + scale2, ...
_CHUNK = re.compile(r"block_chunks\.(\d+)\.module\.(\d+)\.")
_BLOCK = re.compile(r"blocks\.(\d+)\.")


@dataclass(frozen=True)
class InfinityConfig:
    """Everything the tensors of a checkpoint tell.

    ``chunks``: blocks in each chunk of the file, empty where it numbers blocks alone. ``bits`` a
    token; ``text_length`` tokens at most; ``levels``: scales with a level embedding.
    """

    depth: int
    chunks: tuple[int, ...]
    width: int
    heads: int
    hidden: int
    bits: int
    text_width: int
    text_length: int
    pool_heads: int
    levels: int
    shared_adaln: bool
    cross_gamma: bool

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> InfinityConfig:
        """Read the configuration off the tensors' shapes.

        Raises:
            CheckpointError: a tensor that every Infinity has is missing, or the head does not
                predict one bit of every channel.
        """
        if any(name.startswith("block_chunks.") for name in tensors):
            for chunk in range(block_count(tensors, "block_chunks.")):
                block_count(tensors, f"block_chunks.{chunk}.module.")
        else:
            block_count(tensors, "blocks.")
        chunked = {(int(m[1]), int(m[2])) for m in map(_CHUNK.match, tensors) if m}
        plain = {int(m[1]) for m in map(_BLOCK.match, tensors) if m}
        count = 1 + max((i for i, _ in chunked), default=-1)
        chunks = tuple(1 + max((j for i, j in chunked if i == k), default=-1) for k in range(count))
        first = "block_chunks.0.module.0." if chunked else "blocks.0."
        with complete("Infinity"):
            width, bits = tensors["word_embed.weight"].shape
            outputs = tensors["head.weight"].shape[0]
            length, text_width = tensors["cfg_uncond"].shape
            config = cls(
                depth=sum(chunks) if chunked else 1 + max(plain, default=-1),
                chunks=chunks,
                width=width,
                heads=tensors[first + "sa.scale_mul_1H11"].numel(),
                hidden=tensors[first + "ffn.fc1.weight"].shape[0],
                bits=bits,
                text_width=text_width,
                text_length=length,
                pool_heads=tensors["text_proj_for_sos.ca.mat_q"].shape[1],
                levels=tensors["lvl_embed.weight"].shape[0],
                shared_adaln="shared_ada_lin.1.weight" in tensors,
                cross_gamma=first + "ca_gamma" in tensors,
            )
        if outputs != 2 * bits:
            raise CheckpointError(
                f"the head has {outputs} outputs, expected {2 * bits}: two for each of {bits} bits"
            )
        return config

    def chunk_ranges(self) -> tuple[range, ...]:
        """The blocks of every chunk; empty for files without chunks."""
        edges = [0]
        for size in self.chunks:
            edges.append(edges[-1] + size)
        return tuple(range(a, b) for a, b in pairwise(edges))


class SelfAttention(nn.Module):
    """Attention over normalised, rotated queries and keys; keys have no bias."""

    kernels: Kernels = NONE

    def __init__(self, config: InfinityConfig, scale_shape: torch.Size) -> None:
        super().__init__()
        c, self.heads = config.width, config.heads
        self.how = Heads(self.heads, "unit", "pairs", rounds=False)
        self.mat_qkv = Linear(c, 3 * c, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(c)), nn.Parameter(torch.zeros(c))
        self.register_buffer("zero_k_bias", torch.zeros(c))
        self.scale_mul_1H11 = nn.Parameter(torch.zeros(scale_shape))
        self.proj = Linear(c, c)
        self.register_buffer("qkv_bias", torch.empty(0), persistent=False)
        self.register_buffer("query_scale", torch.empty(0), persistent=False)

    def prepare(self) -> None:
        """Compute what depends on weights alone."""
        self.qkv_bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        scale = self.scale_mul_1H11.float().clamp_max(MAX_LOG_SCALE).exp()
        self.query_scale = scale.reshape(1, self.heads, 1, 1)  # 11H1 in files trained with flash

    def forward(
        self, x: Tensor, rotation: Rotation, cache: KVCache, narrow: LowRankLayers = WHOLE
    ) -> Tensor:
        qkv = linear(x, self.mat_qkv.weight, self.qkv_bias, narrow=narrow.get("qkv"))
        q, k, v = cached_heads(qkv, self.how, self.kernels, self.query_scale, rotation, cache)
        return self.proj(attend(q, k, v, 1.0), narrow.get("proj"))


class CrossAttention(nn.Module):
    """Attention to the text; as a ``pool`` with learned queries instead of x."""

    def __init__(self, width: int, text_width: int, heads: int, pool: bool = False) -> None:
        super().__init__()
        self.heads, self.scale = heads, 1 / math.sqrt(width // heads)
        self.mat_q: nn.Module | nn.Parameter = (
            nn.Parameter(torch.zeros(1, heads, width // heads)) if pool else Linear(width, width)
        )
        self.mat_kv = Linear(text_width, 2 * width, bias=False)
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("zero_k_bias", torch.zeros(width))
        self.proj = Linear(width, width)

    def keys_values(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """``(rows, H, T, c)`` each, of text features ``(rows, T, C)``."""
        bias = torch.cat([torch.zeros_like(self.v_bias), self.v_bias])
        kv = linear(text, self.mat_kv.weight, bias).unflatten(2, (2, self.heads, -1))
        k, v = kv.permute(2, 0, 3, 1, 4).unbind()
        return k, v

    def forward(
        self, x: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, narrow: LowRankLayers = WHOLE
    ) -> Tensor:
        assert isinstance(self.mat_q, nn.Module)
        q = self.mat_q(x, narrow.get("text_q")).unflatten(2, (self.heads, -1)).transpose(1, 2)
        return self.proj(attend(q, k, v, self.scale, mask), narrow.get("text_proj"))

    def pool(self, text: Tensor, mask: Tensor | None) -> Tensor:
        """One vector ``(rows, C)`` of text features ``(rows, T, text width)``."""
        assert isinstance(self.mat_q, nn.Parameter)
        k, v = self.keys_values(text)
        q = self.mat_q[:, :, None].expand(text.shape[0], -1, -1, -1)
        return self.proj(attend(q, k, v, self.scale, mask))[:, 0]


class TextPool(nn.Module):
    """Where the published names put the pooling attention."""

    def __init__(self, config: InfinityConfig) -> None:
        super().__init__()
        self.ca = CrossAttention(config.width, config.text_width, config.pool_heads, pool=True)


class Block(nn.Module):
    """Self-attention and feed-forward modulated by the pooled text, cross-attention between.

    The residual stream is float32 whatever the weights are, as published.
    """

    def __init__(self, config: InfinityConfig, scale_shape: torch.Size) -> None:
        super().__init__()
        c = config.width
        self.sa = SelfAttention(config, scale_shape)
        self.ca = CrossAttention(c, c, config.heads)
        self.ffn = FeedForward(c, config.hidden)
        self.ca_norm = nn.LayerNorm(c, eps=EPS)
        self.ca_gamma = nn.Parameter(torch.ones(c)) if config.cross_gamma else None
        if config.shared_adaln:
            self.ada_gss = nn.Parameter(torch.zeros(1, 1, 6, c))
        else:
            self.ada_lin = ada_linear(c, 6)

    def prepare(self) -> None:
        """Compute what depends on weights alone."""
        self.sa.prepare()
        self.ca_norm.float()

    def products(self) -> dict[str, Layer]:
        """Every linear layer."""
        fc2 = self.ffn.fc2
        return {**self.layers(), "fc2": Layer(fc2, fc2.weight, fc2.bias)}

    def layers(self) -> dict[str, Layer]:
        """The layers that features can narrow."""
        sa, ca, fc1 = self.sa, self.ca, self.ffn.fc1
        assert isinstance(ca.mat_q, Linear)
        return {
            "qkv": Layer(sa, sa.mat_qkv.weight, sa.qkv_bias),
            "proj": Layer(sa.proj, sa.proj.weight, sa.proj.bias),
            "text_q": Layer(ca, ca.mat_q.weight, ca.mat_q.bias),
            "text_proj": Layer(ca.proj, ca.proj.weight, ca.proj.bias),
            "fc1": Layer(self.ffn, fc1.weight, fc1.bias),
        }

    def modulation(self, condition: Tensor, shared: Tensor | None) -> Modulation:
        """Six ``(rows, 1, C)`` float32: gamma1, gamma2, 1 + scale1, 1 + scale2, shift1, shift2."""
        if shared is not None:
            six = self.ada_gss + shared
        else:
            dtype = self.sa.q_bias.dtype
            six = self.ada_lin(condition.to(dtype)).unflatten(1, (1, 6, -1))
        gamma1, gamma2, scale1, scale2, shift1, shift2 = six.float().unbind(2)
        return gamma1, gamma2, scale1 + 1, scale2 + 1, shift1, shift2

    def forward(
        self,
        x: Residual,
        modulation: Modulation,
        text: tuple[Tensor, Tensor],
        mask: Tensor | None,
        rotation: Rotation,
        cache: KVCache,
        narrow: LowRankLayers = WHOLE,
    ) -> None:
        dtype, text_norm = self.sa.q_bias.dtype, self.ca_norm
        gamma1, gamma2, scale1, scale2, shift1, shift2 = modulation
        x.add(self.sa(x.normed(PLAIN, scale1, shift1, dtype), rotation, cache, narrow), gamma1)
        norm = Norm("layer", text_norm.weight, text_norm.bias, EPS)
        y = self.ca(x.normed(norm, dtype=dtype), *text, mask, narrow)
        x.add(y, self.ca_gamma, stepwise=True)
        x.add(self.ffn(x.normed(PLAIN, scale2, shift2, dtype), narrow), gamma2)


class Chunk(nn.Module):
    """Consecutive blocks under the name the published files give them."""

    def __init__(self, blocks: list[Block]) -> None:
        super().__init__()
        self.module = nn.ModuleList(blocks)


class Transformer(nn.Module):
    """An Infinity transformer. ``scale_shape``: of ``scale_mul_1H11``, (1, H, 1, 1) by default."""

    def __init__(self, config: InfinityConfig, scale_shape: torch.Size | None = None) -> None:
        super().__init__()
        c, shape = config.width, scale_shape or torch.Size((1, config.heads, 1, 1))
        self.cfg_uncond = nn.Parameter(torch.zeros(config.text_length, config.text_width))
        self.text_norm = nn.RMSNorm(config.text_width, eps=EPS)
        self.text_proj_for_sos = TextPool(config)
        self.text_proj_for_ca = nn.Sequential(
            Linear(config.text_width, c), nn.GELU(approximate="tanh"), Linear(c, c)
        )
        self.pos_start = nn.Parameter(torch.zeros(1, 1, c))
        self.lvl_embed = nn.Embedding(config.levels, c)
        self.word_embed = Linear(config.bits, c)
        if config.shared_adaln:
            self.shared_ada_lin = ada_linear(c, 6)
        blocks = [Block(config, shape) for _ in range(config.depth)]
        if config.chunks:
            self.block_chunks = nn.ModuleList(
                Chunk(blocks[r.start : r.stop]) for r in config.chunk_ranges()
            )
        else:
            self.blocks = nn.ModuleList(blocks)
        self.head_nm = Head(config.width)
        self.head = Linear(c, 2 * config.bits)

    def in_order(self) -> Iterator[Block]:
        """Every block, first to last."""
        lists = [c.module for c in self.block_chunks] if hasattr(self, "block_chunks") else []
        for module in lists or [self.blocks]:
            yield from module  # type: ignore[misc]
