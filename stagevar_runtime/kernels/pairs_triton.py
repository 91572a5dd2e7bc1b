"""The fused kernel of :mod:`.pairs`: one lane a bit.

It rounds as PyTorch's kernels round, one operation at a time: the compiler may not fuse a product
with a sum, exponentials are CUDA's own, quotients are exact, and a division by the temperature is a
product with its reciprocal on a GPU. So the same numbers give the same bits.
"""

from __future__ import annotations

import os

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import libdevice

from .launch import on_device
from .pairs import Pairs

BLOCK = 1024
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@triton.jit(do_not_specialize=["count"])
def draw_kernel(
    logits_ptr,
    clocks_ptr,
    bits_ptr,
    count,
    first,
    second,
    temperature,
    least,
    GUIDED: tl.constexpr,
    TEMPERED: tl.constexpr,
    TOP_P: tl.constexpr,
    ON_GPU: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """``count`` bits in all; null's logits lie ``2 · count`` behind cond's."""
    bit = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = bit < count
    zero = tl.load(logits_ptr + 2 * bit, mask=mask, other=0.0)
    one = tl.load(logits_ptr + 2 * bit + 1, mask=mask, other=0.0)
    if TEMPERED:
        if ON_GPU:
            zero, one = zero * temperature, one * temperature
        else:
            zero, one = zero / temperature, one / temperature
    if GUIDED:
        null_zero = tl.load(logits_ptr + 2 * (count + bit), mask=mask, other=0.0)
        null_one = tl.load(logits_ptr + 2 * (count + bit) + 1, mask=mask, other=0.0)
        if TEMPERED:
            if ON_GPU:
                null_zero, null_one = null_zero * temperature, null_one * temperature
            else:
                null_zero, null_one = null_zero / temperature, null_one / temperature
        zero = first * zero + second * null_zero
        one = first * one + second * null_one
    highest = tl.maximum(zero, one)
    if ON_GPU:
        p_zero, p_one = libdevice.exp(zero - highest), libdevice.exp(one - highest)
    else:
        p_zero, p_one = tl.exp(zero - highest), tl.exp(one - highest)
    total = p_zero + p_one
    p_zero, p_one = tl.div_rn(p_zero, total), tl.div_rn(p_one, total)
    if TOP_P:
        drop_one = (one < zero) & (p_one <= least)
        drop_zero = (zero <= one) & (p_zero <= least)
        p_zero = tl.where(drop_zero, 0.0, tl.where(drop_one, 1.0, p_zero))
        p_one = tl.where(drop_one, 0.0, tl.where(drop_zero, 1.0, p_one))
    clock_zero = tl.load(clocks_ptr + 2 * bit, mask=mask, other=1.0)
    clock_one = tl.load(clocks_ptr + 2 * bit + 1, mask=mask, other=1.0)
    won = tl.div_rn(p_one, clock_one) > tl.div_rn(p_zero, clock_zero)
    tl.store(bits_ptr + bit, won.to(tl.int64), mask=mask)


def draw(logits: Tensor, pairs: Pairs, clocks: Tensor) -> Tensor:
    """As :func:`stagevar_runtime.kernels.pairs.drawn`, in one pass."""
    batch, bits = clocks.shape[0], logits.shape[2] // 2
    out = torch.empty((batch, logits.shape[1], bits), dtype=torch.long, device=logits.device)
    first, second = pairs.weights or (1.0, 0.0)
    on_gpu = not INTERPRETED
    temperature = pairs.temperature
    if on_gpu:
        temperature = float(1 / torch.tensor(temperature, dtype=torch.float32))
    with on_device(logits):
        draw_kernel[(triton.cdiv(out.numel(), BLOCK),)](
            logits,
            clocks,
            out,
            out.numel(),
            first,
            second,
            temperature,
            1 - pairs.top_p,
            GUIDED=pairs.weights is not None,
            TEMPERED=pairs.temperature != 1.0,
            TOP_P=0 < pairs.top_p < 1,
            ON_GPU=on_gpu,
            BLOCK=BLOCK,
            num_warps=4,
            enable_fp_fusion=False,
        )
    return out
