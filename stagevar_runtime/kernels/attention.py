"""Attention of new queries over all keys and values so far."""

from __future__ import annotations

import torch
from torch import Tensor


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
    """``softmax(scale · q kᵀ + mask) v`` with PyTorch's fused kernels.

    ``q`` ``(rows, heads, n, head_dim)``; ``k``, ``v`` ``(rows, heads, m, head_dim)``.
    Returns ``(rows, n, heads · head_dim)``.
    """
    y = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    return y.transpose(1, 2).flatten(2)
