"""The fused kernels of :mod:`.groups`: statistics of slices of positions, their merge, one pass.

Every program of the first kernel takes a slice of positions of some channels and keeps mean and sum
of squared deviations of every channel, tile by tile (Chan, Golub & LeVeque 1983), so that large
means cost no digits. The second merges slices and channels of a group; the third writes.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

from .launch import on_device

TILE = 64  # positions a tile
CHANNELS = 64  # channels a program
SLICES = 256  # at most, of positions: so many programs for every CHANNELS of an image
FLAT = 2048  # elements a program of the last pass


@triton.jit(do_not_specialize=["positions", "tiles"])
def statistics_kernel(
    x_ptr,
    mean_ptr,
    square_ptr,
    positions,
    channels,
    tiles,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Means and squared deviations ``(B, slices, C)`` of ``tiles`` tiles of positions each."""
    image, piece = tl.program_id(0).to(tl.int64), tl.program_id(1)
    channel = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    valid = channel < channels
    count = 0.0
    mean = tl.zeros((BLOCK,), tl.float32)
    square = tl.zeros((BLOCK,), tl.float32)
    for tile in range(tiles):
        place = (piece * tiles + tile) * TILE + tl.arange(0, TILE)
        mask = (place < positions)[:, None] & valid[None, :]
        offset = (image * positions + place)[:, None] * channels + channel[None, :]
        x = tl.load(x_ptr + offset, mask=mask, other=0.0).to(tl.float32)
        here = tl.minimum(tl.maximum(positions - (piece * tiles + tile) * TILE, 0), TILE)
        number = tl.maximum(here, 1).to(tl.float32)
        own = tl.sum(x, 0) / number
        centred = tl.where(mask, x - own[None, :], 0.0)
        weight = here / tl.maximum(count + here, 1.0)
        moved = own - mean
        square += tl.sum(centred * centred, 0) + moved * moved * count * weight
        mean += moved * weight
        count += here
    place = (image * tl.num_programs(1) + piece) * channels + channel
    tl.store(mean_ptr + place, mean, mask=valid)
    tl.store(square_ptr + place, square, mask=valid)


@triton.jit(do_not_specialize=["positions", "slices", "slice_positions"])
def merge_kernel(
    mean_ptr,
    square_ptr,
    weight_ptr,
    bias_ptr,
    factor_ptr,
    shift_ptr,
    positions,
    channels,
    slices,
    slice_positions,
    eps,
    WIDE: tl.constexpr,
    SLICES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """What every channel is multiplied with and what is added, ``(B, C)`` each."""
    image, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    column = tl.arange(0, BLOCK)
    piece = tl.arange(0, SLICES)
    channel = group * WIDE + column
    valid = column < WIDE
    mask = (piece < slices)[:, None] & valid[None, :]
    place = (image * slices + piece)[:, None] * channels + channel[None, :]
    own = tl.load(mean_ptr + place, mask=mask, other=0.0)
    square = tl.load(square_ptr + place, mask=mask, other=0.0)
    count = tl.minimum(tl.maximum(positions - piece * slice_positions, 0), slice_positions)
    count = tl.where(mask, count[:, None].to(tl.float32), 0.0)
    total = positions.to(tl.float32) * WIDE
    mean = tl.sum(own * count) / total
    moved = own - mean
    spread = (tl.sum(square) + tl.sum(moved * moved * count)) / total
    weight = tl.load(weight_ptr + channel, mask=valid, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + channel, mask=valid, other=0.0).to(tl.float32)
    factor = weight / tl.sqrt(spread + eps)
    place = image * channels + channel
    tl.store(factor_ptr + place, factor, mask=valid)
    tl.store(shift_ptr + place, bias - mean * factor, mask=valid)


@triton.jit(do_not_specialize=["elements"])
def apply_kernel(
    x_ptr,
    factor_ptr,
    shift_ptr,
    out_ptr,
    elements,
    channels,
    SILU: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """``silu(x · factor + shift)`` of one image after the other, ``elements`` each."""
    image = tl.program_id(1).to(tl.int64)
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = place < elements
    channel = place % channels
    x = tl.load(x_ptr + image * elements + place, mask=mask, other=0.0).to(tl.float32)
    factor = tl.load(factor_ptr + image * channels + channel, mask=mask, other=0.0)
    y = x * factor + tl.load(shift_ptr + image * channels + channel, mask=mask, other=0.0)
    if SILU:
        y = y / (1.0 + tl.exp(-y))
    tl.store(out_ptr + image * elements + place, y.to(out_ptr.dtype.element_ty), mask=mask)


def group_norm(x: Tensor, norm: nn.GroupNorm, silu: bool = True) -> Tensor:
    """As :func:`stagevar_runtime.kernels.groups.normed`, of a channels-last ``x``."""
    images, channels, height, width = x.shape
    positions = height * width
    tiles = triton.cdiv(positions, TILE)
    each = triton.cdiv(tiles, SLICES)  # tiles a slice
    slices = triton.cdiv(tiles, each)
    wide = channels // norm.num_groups
    means, squares = x.new_empty((2, images, slices, channels), dtype=torch.float32)
    factor, shift = x.new_empty((2, images, channels), dtype=torch.float32)
    out = torch.empty_like(x, memory_format=torch.channels_last)
    block = min(CHANNELS, triton.next_power_of_2(channels))
    with on_device(x):
        statistics_kernel[(images, slices, triton.cdiv(channels, block))](
            x,
            means,
            squares,
            positions,
            channels,
            each,
            TILE=TILE,
            BLOCK=block,
            num_warps=4,
            enable_fp_fusion=True,
        )
        merge_kernel[(images, norm.num_groups)](
            means,
            squares,
            norm.weight,
            norm.bias,
            factor,
            shift,
            positions,
            channels,
            slices,
            each * TILE,
            norm.eps,
            WIDE=wide,
            SLICES=triton.next_power_of_2(SLICES),  # one kernel for all sizes
            BLOCK=triton.next_power_of_2(wide),
            num_warps=8,
            enable_fp_fusion=True,
        )
        elements = channels * positions
        apply_kernel[(triton.cdiv(elements, FLAT), images)](
            x, factor, shift, out, elements, channels, SILU=silu, BLOCK=FLAT, num_warps=8
        )
    return out
