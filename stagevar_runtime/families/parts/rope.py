"""Rotary position embeddings: what angle each family gives a token.

A rotation is two tables, cosines and sines, ``(1 or rows, n, ...)`` of the n tokens of a scale, row
by row. A subset of tokens gathers its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ...kernels.heads import Rotation


def at_positions(rotation: Rotation, positions: Tensor | None) -> Rotation:
    """The tables of all tokens, or of those at ``positions`` ``(rows, m)``."""
    if positions is None:
        return rotation
    rows, width = positions.shape[0], rotation[0].shape[-1]
    index = positions[..., None].expand(-1, -1, width)
    cos, sin = (table.expand(rows, -1, -1).gather(1, index) for table in rotation)
    return cos, sin


INFINITY_MODES = (0, 1, 2)
_BASE = 10000.0
_EDGE = 128  # length of the published one-dimensional tables


def infinity_rotations(
    sizes: Sequence[tuple[int, int]],
    extent: tuple[int, int],
    head_dim: int,
    mode: int = 2,
) -> list[Rotation]:
    """One rotation a scale by Infinity's two-dimensional RoPE.

    The first half of the pairs turns with the row, the second with the column. ``extent`` is
    ``(height, width)`` of the last scale of the 1M schedule of this aspect ratio, whatever size is
    generated. ``mode`` 2: token i of h sits at round(i · height/h), so that scales share
    coordinates; 1: 128 positions along the longer side, shrunk linearly; 0: token i sits at i.

    Source: Infinity ``models/basic.py``, ``precompute_rope2d_freqs_grid``.
    """
    half = head_dim // 2
    frequency = 1.0 / (_BASE ** (torch.arange(0, half, 2).float() / half))
    longest = max(extent)

    def axis(count: int, full: int) -> Tensor:
        """``(2, count, c/4)`` of one side."""
        if mode == 1:
            used = torch.arange(int(_EDGE / longest * full) if full < longest else _EDGE)
            angle = torch.outer(used.float(), frequency)
            table = torch.stack([angle.cos(), angle.sin()]).transpose(1, 2)
            shrunk = F.interpolate(table, size=count, mode="linear", align_corners=True)
            return shrunk.transpose(1, 2)
        place = torch.arange(count)
        if mode == 2:
            place = (place * (full / count)).round()
        angle = torch.outer(place.float(), frequency)
        return torch.stack([angle.cos(), angle.sin()])

    rotations = []
    for h, w in sizes:
        rows = axis(h, extent[0])[:, :, None].expand(-1, -1, w, -1)
        columns = axis(w, extent[1])[:, None].expand(-1, h, -1, -1)
        cos, sin = torch.cat([rows, columns], -1).flatten(1, 2)
        rotations.append((cos[None], sin[None]))
    return rotations


def axial_angles(
    side: int, width: int, extent: float, device: torch.device, theta: float = 10000.0
) -> Tensor:
    """Angles ``(side², width/2)`` of a square grid stretched over ``[0, extent]`` (Switti, STAR).

    The first half of the pairs turns with the column, the second with the row. Sources: Switti
    ``models/rope.py``, STAR ``models/embed_rope.py``.
    """
    exponents = torch.arange(0, width, 4, device=device).float() / width
    frequencies = 1.0 / theta**exponents
    token = torch.arange(side * side, device=device)
    column, row = (t / max(1, side - 1) * extent for t in (token % side, token // side))
    return torch.cat([torch.outer(column, frequencies), torch.outer(row, frequencies)], -1)


def text_angles(positions: Tensor, width: int) -> Tensor:
    """Angles ``(rows, T, width)`` of text at ``positions`` ``(rows, T)``, for half rotation (HART).

    Source: HART ``basic_hart.py``, ``LlamaRotaryEmbedding1D``.
    """
    exponents = torch.arange(0, width, 2, device=positions.device).float() / width
    angles = positions.float()[..., None] * (1.0 / 10000**exponents)
    return torch.cat([angles, angles], -1)


def grid_angles(side: int, last: int, after: Tensor, width: int) -> Tensor:
    """Angles ``(rows, side², width)`` of a grid that continues behind text (HART).

    The grid is stretched to ``last`` cells a side and begins at ``after`` ``(rows,)``, the position
    of the last text token, along both axes. A head holds y, y, x, x quarters, yet turns by halves:
    y and x mix, as trained. Source: HART ``basic_hart.py``, ``LlamaRotaryEmbedding``.
    """
    exponents = torch.arange(0, width, 4, device=after.device).float() / width
    token = torch.arange(side * side, device=after.device)
    place = torch.stack([token // side, token % side], -1) / side * last  # (n, 2)
    angles = (place + after.float()[:, None, None])[..., None] * (1.0 / 10000**exponents)
    return torch.cat([angles, angles], -1).flatten(2)
