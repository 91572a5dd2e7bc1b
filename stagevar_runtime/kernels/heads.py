"""From one product to queries, keys and values: heads split, normed, rotated, and keys and values
written to their place in the cache.

The functions here define what is computed, on every device and bit by bit; where the fused kernel
of :mod:`.heads_triton` is mounted it does the same in one pass. Shapes: rows = B or 2B, n tokens of
a scale, C width, H heads, c head dim.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from .slots import Kernels

MAX_WIDTH = 4096
Rotation = tuple[Tensor, Tensor]
Slots = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Heads:
    """How a family makes its heads.

    ``norm``: ``unit`` length of every head in float32; ``whole``, a layer norm without weights over
    all C channels before heads are split; or none. ``rotate``: ``pairs``, neighbouring channels
    turn together, in float32, by tables ``(1 or rows, n, c/2)``; ``halves``, channel i with
    i + c/2, in the heads' dtype, by tables ``(1 or rows, n, c)``; or none. ``rounds``: normed heads
    are rounded to their dtype before they are rotated. ``parts`` of the product: queries, keys and
    values, or queries alone.
    """

    count: int
    norm: Literal["unit", "whole", "none"] = "unit"
    rotate: Literal["pairs", "halves", "none"] = "none"
    rounds: bool = True
    parts: Literal[1, 3] = 3


def rotate_pairs(x: Tensor, rotation: Rotation) -> Tensor:
    """Turn neighbouring pairs of ``x`` ``(rows, heads, m, c)``, in float32."""
    cos, sin = (table[:, None] for table in rotation)
    a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([cos * a - sin * b, sin * a + cos * b], -1).flatten(-2).to(x.dtype)


def rotate_halves(x: Tensor, rotation: Rotation) -> Tensor:
    """``x cos + (-x₂, x₁) sin`` of ``x`` ``(rows, H, n, c)`` with angles ``(rows or 1, n, c)``."""
    cos, sin = (t[:, None].to(x.dtype) for t in rotation)
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], -1) * sin


def split(
    product: Tensor,
    heads: Heads,
    scale: Tensor | None = None,
    rotation: Rotation | None = None,
    slots: Slots | None = None,
) -> tuple[Tensor, ...]:
    """The definition: ``(rows, H, n, c)`` each, of a product ``(rows, n, parts · C)``.

    Args:
        scale: of unit queries, ``(1, H, 1, 1)`` float32.
        rotation: tables of cosines and sines; None leaves heads as they are.
        slots: where keys and values go, ``(rows, H, n, c)`` each; they are returned.
    """
    parts = product.chunk(heads.parts, dim=-1)
    made = []
    for number, part in enumerate(parts):
        if number == 2:
            made.append(_split(part, heads.count))
            continue
        x = F.layer_norm(part, part.shape[-1:], eps=1e-6) if heads.norm == "whole" else part
        x = _split(x, heads.count)
        if heads.norm == "unit":
            x = F.normalize(x.float(), dim=-1)
            x = x * scale if number == 0 and scale is not None else x
            x = x.to(part.dtype) if heads.rounds else x
        if rotation is not None and heads.rotate != "none":
            x = (rotate_pairs if heads.rotate == "pairs" else rotate_halves)(x, rotation)
        made.append(x.to(part.dtype))
    if slots is None:
        return tuple(made)
    for slot, x in zip(slots, made[1:], strict=True):
        slot.copy_(x)
    return made[0], *slots


def _split(x: Tensor, heads: int) -> Tensor:
    """``(rows, n, C)`` → ``(rows, H, n, c)``."""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


def can_split(
    product: Tensor, heads: Heads, rotation: Rotation | None, slots: Slots | None
) -> bool:
    """Whether the fused kernel takes these tensors."""
    rows, n, width = product.shape
    if product.numel() == 0 or width // heads.parts > MAX_WIDTH:
        return False
    dim = width // heads.parts // heads.count
    if rotation is not None and heads.rotate != "none":
        wide = dim if heads.rotate == "halves" else dim // 2
        if dim % 2 or any(
            t.shape[1:] != (n, wide) or t.shape[0] not in (1, rows) for t in rotation
        ):
            return False
    wanted = (rows, heads.count, n, dim)
    return slots is None or all(
        slot.shape == wanted and slot.stride(3) == 1 and slot.dtype == product.dtype
        for slot in slots
    )


def split_heads(
    product: Tensor,
    heads: Heads,
    kernels: Kernels,
    scale: Tensor | None = None,
    rotation: Rotation | None = None,
    slots: Slots | None = None,
) -> tuple[Tensor, ...]:
    """:func:`split` by the fused kernel where one is mounted and takes these tensors."""
    run = kernels.split
    if run is not None and can_split(product, heads, rotation, slots):
        return run(product, heads, scale, rotation, slots)
    return split(product, heads, scale, rotation, slots)
