"""The class-conditional next-scale transformer being trained, under the published tensor names.

The runtime has its own implementation for generation. This one exists for teacher forcing with
gradients and for cheap samples while training runs.

Source: VAR (arXiv 2404.02905), ``models/var.py`` and ``models/basic_var.py``. Other than there,
residual branches start open (gate biases of 1), which learns faster in a short training.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MAX_SCALE = math.log(100)
LN_EPS = 1e-6
Cache = list[tuple[Tensor, Tensor] | None]


@dataclass(frozen=True)
class TransformerConfig:
    """Architecture; ``sides`` are the squares of the scales, coarse to fine."""

    sides: tuple[int, ...]
    vocabulary: int
    z_channels: int
    classes: int = 10
    width: int = 192
    depth: int = 6
    heads: int = 6
    label_dropout: float = 0.1


class Attention(nn.Module):
    """Self-attention with unit-length queries and keys and a learned scale per head."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale_mul_1H11 = nn.Parameter(torch.full((1, heads, 1, 1), math.log(4.0)))
        self.mat_qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("zero_k_bias", torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def forward(
        self, x: Tensor, mask: Tensor | None, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        bias = torch.cat((self.q_bias, self.zero_k_bias, self.v_bias))
        qkv = F.linear(x, self.mat_qkv.weight, bias)
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # 3 x (B, H, L, c)
        q = F.normalize(q, dim=-1) * self.scale_mul_1H11.clamp_max(MAX_SCALE).exp()
        k = F.normalize(k, dim=-1)
        if past is not None:
            k, v = torch.cat((past[0], k), 2), torch.cat((past[1], v), 2)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)
        return self.proj(out.transpose(1, 2).flatten(2)), (k, v)


class FeedForward(nn.Module):
    """Two linear layers around a tanh-approximated GELU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class Block(nn.Module):
    """Attention and feed-forward, both gated, scaled and shifted by the condition."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = Attention(width, heads)
        self.ffn = FeedForward(width)
        self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(
        self, x: Tensor, condition: Tensor, mask: Tensor | None, past: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        gamma1, gamma2, scale1, scale2, shift1, shift2 = (
            self.ada_lin(condition).unsqueeze(1).chunk(6, -1)
        )
        width = x.shape[-1:]
        h = torch.addcmul(shift1, F.layer_norm(x, width, eps=LN_EPS), 1 + scale1)
        h, kept = self.attn(h, mask, past)
        x = torch.addcmul(x, h, gamma1)
        h = torch.addcmul(shift2, F.layer_norm(x, width, eps=LN_EPS), 1 + scale2)
        return torch.addcmul(x, self.ffn(h), gamma2), kept


class HeadNorm(nn.Module):
    """Layer norm scaled and shifted by the condition."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ada_lin = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.ada_lin(condition).unsqueeze(1).chunk(2, -1)
        return torch.addcmul(shift, F.layer_norm(x, x.shape[-1:], eps=LN_EPS), 1 + scale)


class Transformer(nn.Module):
    """Predicts the tokens of every scale from the canvas so far.

    Shapes: labels (B,); inputs (B, L - 1, Cvae): the shrunk canvas before every scale but the
    first; logits (B, L, V).
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        lengths = [side * side for side in config.sides]
        total = sum(lengths)
        self.pos_start = nn.Parameter(torch.empty(1, lengths[0], width))
        self.pos_1LC = nn.Parameter(torch.empty(1, total, width))
        self.word_embed = nn.Linear(config.z_channels, width)
        self.class_emb = nn.Embedding(config.classes + 1, width)
        self.lvl_embed = nn.Embedding(len(lengths), width)
        self.blocks = nn.ModuleList(Block(width, config.heads) for _ in range(config.depth))
        self.head_nm = HeadNorm(width)
        self.head = nn.Linear(width, config.vocabulary)
        level = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
        self.register_buffer("lvl_1L", level.unsqueeze(0))
        visible = level[:, None] >= level[None, :]
        bias = torch.where(visible, 0.0, -torch.inf)
        self.register_buffer("attn_bias_for_masking", bias[None, None])
        self._initialise()

    @torch.no_grad()
    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.7 * module.in_features**-0.5)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.3)
        for position in (self.pos_start, self.pos_1LC):
            nn.init.normal_(position, std=0.1)
        for block in self.blocks:
            for projection in (block.attn.proj, block.ffn.fc2):
                projection.weight.div_(math.sqrt(2 * len(self.blocks)))
            block.ada_lin[1].weight.mul_(0.3)
            block.ada_lin[1].bias[: 2 * self.config.width] = 1.0
        self.head_nm.ada_lin[1].weight.mul_(0.3)
        self.head.weight.mul_(0.1)

    def positions(self) -> Tensor:
        """Level and position embeddings (1, L, C)."""
        return self.lvl_embed(self.lvl_1L) + self.pos_1LC

    def start(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Condition (B, C) and the first scale's input (B, l, C), without level and position."""
        condition = self.class_emb(labels)
        return condition, condition.unsqueeze(1) + self.pos_start

    def run(
        self, x: Tensor, condition: Tensor, mask: Tensor | None = None, cache: Cache | None = None
    ) -> Tensor:
        """Logits (B, l, V) of inputs (B, l, C); ``cache``, one entry per block, is extended."""
        for i, block in enumerate(self.blocks):
            x, kept = block(x, condition, mask, None if cache is None else cache[i])
            if cache is not None:
                cache[i] = kept
        return self.head(self.head_nm(x, condition))

    def forward(self, labels: Tensor, inputs: Tensor) -> Tensor:
        """Teacher-forced logits (B, L, V); labels are dropped at random while training."""
        if self.training and self.config.label_dropout:
            drop = torch.rand(labels.shape, device=labels.device) < self.config.label_dropout
            labels = labels.masked_fill(drop, self.config.classes)
        condition, first = self.start(labels)
        x = torch.cat((first, self.word_embed(inputs)), 1) + self.positions()
        return self.run(x, condition, self.attn_bias_for_masking)


def scale_slices(sides: Sequence[int]) -> list[slice]:
    """Where every scale's tokens lie in the sequence."""
    ends = torch.tensor([side * side for side in sides]).cumsum(0).tolist()
    return [slice(end - side * side, end) for side, end in zip(sides, ends, strict=True)]
