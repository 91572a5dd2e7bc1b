"""The fused kernel of :mod:`.heads`: one program a token and part (queries, keys, values).

All heads of a token are one tile, so that the norm of a head and the norm over all of them are sums
of the same registers. The channel that another one turns with is read a second time, from cache.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .heads import Heads, Rotation, Slots
from .launch import on_device

UNIT_EPS = tl.constexpr(1e-12)  # of torch's normalize
WHOLE_EPS = tl.constexpr(1e-6)


@triton.jit(do_not_specialize=["n"])
def split_kernel(
    product_ptr,
    q_ptr,
    k_ptr,
    v_ptr,
    scale_ptr,
    cos_ptr,
    sin_ptr,
    n,
    heads,
    dim,
    product_row,
    product_token,
    k_row,
    k_head,
    k_token,
    v_row,
    v_head,
    v_token,
    table_row,
    table_token,
    UNIT: tl.constexpr,
    WHOLE: tl.constexpr,
    HAS_SCALE: tl.constexpr,
    PAIRS: tl.constexpr,
    HALVES: tl.constexpr,
    ROUNDS: tl.constexpr,
    H_BLOCK: tl.constexpr,
    D_BLOCK: tl.constexpr,
):
    row = (tl.program_id(0) // n).to(tl.int64)
    token = (tl.program_id(0) % n).to(tl.int64)
    part = tl.program_id(1)
    kind = product_ptr.dtype.element_ty
    width = heads * dim
    head = tl.arange(0, H_BLOCK)[:, None]
    channel = tl.arange(0, D_BLOCK)[None, :]
    mask = (head < heads) & (channel < dim)
    source = product_ptr + row * product_row + token * product_token + part * width + head * dim
    raw = tl.load(source + channel, mask=mask, other=0.0)
    if part == 2:
        tl.store(v_ptr + row * v_row + token * v_token + head * v_head + channel, raw, mask=mask)
    else:
        x = raw.to(tl.float32)
        factor = tl.full((H_BLOCK, 1), 1.0, tl.float32)
        mean = 0.0
        if UNIT:
            length = tl.sqrt(tl.sum(x * x, 1))[:, None]
            factor = 1.0 / tl.maximum(length, UNIT_EPS)
        if WHOLE:
            mean = tl.sum(x) / width
            centred = tl.where(mask, x - mean, 0.0)
            spread = tl.sum(centred * centred) / width
            factor = factor / tl.sqrt(spread + WHOLE_EPS)
        if HAS_SCALE:
            learned = tl.load(scale_ptr + head, mask=head < heads, other=1.0)
            factor = factor * tl.where(part == 0, learned, 1.0)
        x = (x - mean) * factor
        if ROUNDS:
            x = x.to(kind).to(tl.float32)
        if PAIRS or HALVES:
            if PAIRS:
                partner = channel ^ 1
                sign = tl.where(channel % 2 == 0, -1.0, 1.0)
                column = channel // 2
            else:
                half = dim // 2
                partner = tl.where(channel < half, channel + half, channel - half)
                sign = tl.where(channel < half, -1.0, 1.0)
                column = channel
            other = tl.load(source + partner, mask=mask, other=0.0).to(tl.float32)
            other = (other - mean) * factor
            if ROUNDS:
                other = other.to(kind).to(tl.float32)
            entry = row * table_row + token * table_token + column
            cos = tl.load(cos_ptr + entry, mask=channel < dim, other=0.0).to(tl.float32)
            sin = tl.load(sin_ptr + entry, mask=channel < dim, other=0.0).to(tl.float32)
            if HALVES:  # in the heads' dtype, as published
                cos, sin = cos.to(kind).to(tl.float32), sin.to(kind).to(tl.float32)
                straight = (x * cos).to(kind).to(tl.float32)
                x = straight + (sign * other * sin).to(kind).to(tl.float32)
            else:
                x = x * cos + sign * other * sin
        turned = x.to(kind)
        if part == 0:
            q_place = (row * n + token) * width + head * dim + channel
            tl.store(q_ptr + q_place, turned, mask=mask)
        else:
            k_place = row * k_row + token * k_token + head * k_head + channel
            tl.store(k_ptr + k_place, turned, mask=mask)


def split(
    product: Tensor,
    heads: Heads,
    scale: Tensor | None = None,
    rotation: Rotation | None = None,
    slots: Slots | None = None,
) -> tuple[Tensor, ...]:
    """As :func:`stagevar_runtime.kernels.heads.split`, in one pass.

    Queries lie token by token in memory, so that attention's output does too.
    """
    product = product if product.stride(2) == 1 else product.contiguous()
    rows, n, width = product.shape
    dim = width // heads.parts // heads.count
    shape = (rows, n, heads.count, dim)
    q = product.new_empty(shape).transpose(1, 2)
    if heads.parts == 1:
        k = v = q
    elif slots is None:
        k, v = (product.new_empty(shape).transpose(1, 2) for _ in range(2))
    else:
        k, v = slots
    turns = rotation is not None and heads.rotate != "none"
    cos, sin = (t.contiguous() for t in rotation) if rotation is not None and turns else (q, q)
    h_block = triton.next_power_of_2(heads.count)
    d_block = triton.next_power_of_2(dim)
    scaled = scale is not None and heads.norm == "unit"
    with on_device(product):
        split_kernel[(rows * n, heads.parts)](
            product,
            q,
            k,
            v,
            scale.contiguous() if scale is not None and scaled else q,
            cos,
            sin,
            n,
            heads.count,
            dim,
            *product.stride()[:2],
            *k.stride()[:3],
            *v.stride()[:3],
            0 if not turns or cos.shape[0] == 1 else cos.stride(0),
            cos.shape[-1] if turns else 0,
            UNIT=heads.norm == "unit",
            WHOLE=heads.norm == "whole",
            HAS_SCALE=scaled,
            PAIRS=turns and heads.rotate == "pairs",
            HALVES=turns and heads.rotate == "halves",
            ROUNDS=heads.rounds,
            H_BLOCK=h_block,
            D_BLOCK=d_block,
            num_warps=warps(h_block * d_block),
            enable_fp_fusion=True,
        )
    return (q,) if heads.parts == 1 else (q, k, v)


def warps(elements: int) -> int:
    """Threads enough that the heads of a token stay in registers."""
    return min(8, max(1, elements // 512))
