"""The fused kernel of :mod:`.norms`: one program a token, its row held in registers.

Sums are float32; where the definition rounds to the stream's dtype (after the sum, after the norm,
after its weight), so does this. Memory is read once and written once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import on_device
from .norms import Norm, Step


@triton.jit(do_not_specialize=["n", "y_rows"])
def add_norm_kernel(
    x_ptr,
    y_ptr,
    gate_ptr,
    y_weight_ptr,
    weight_ptr,
    bias_ptr,
    factor_ptr,
    shift_ptr,
    sum_ptr,
    out_ptr,
    n,
    y_rows,
    width,
    y_row_stride,
    y_token_stride,
    gate_stride,
    factor_stride,
    shift_stride,
    eps,
    y_eps,
    HAS_Y: tl.constexpr,
    HAS_GATE: tl.constexpr,
    NORM_Y: tl.constexpr,
    RMS: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    MODULATE: tl.constexpr,
    ROUND_GATED: tl.constexpr,
    ROUND_SCALED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    row = token // n
    column = tl.arange(0, BLOCK)
    mask = column < width
    kind = x_ptr.dtype.element_ty
    x = tl.load(x_ptr + token * width + column, mask=mask, other=0.0).to(tl.float32)
    if HAS_Y:
        place = (row % y_rows) * y_row_stride + (token % n) * y_token_stride
        y = tl.load(y_ptr + place + column, mask=mask, other=0.0).to(tl.float32)
        if NORM_Y:
            mean = tl.sum(y * y, 0) / width
            y = (y * (1.0 / tl.sqrt(mean + y_eps))).to(y_ptr.dtype.element_ty).to(tl.float32)
            y *= tl.load(y_weight_ptr + column, mask=mask, other=0.0).to(tl.float32)
            y = y.to(y_ptr.dtype.element_ty).to(tl.float32)
        if HAS_GATE:
            place = row * gate_stride
            y *= tl.load(gate_ptr + place + column, mask=mask, other=0.0).to(tl.float32)
            if ROUND_GATED:
                y = y.to(y_ptr.dtype.element_ty).to(tl.float32)
        x = (x + y).to(kind)
        tl.store(sum_ptr + token * width + column, x, mask=mask)
        x = x.to(tl.float32)
    if RMS:
        mean = tl.sum(x * x, 0) / width
        out = (x * (1.0 / tl.sqrt(mean + eps))).to(kind).to(tl.float32)
        if HAS_WEIGHT:
            out *= tl.load(weight_ptr + column, mask=mask, other=0.0).to(tl.float32)
            out = out.to(kind).to(tl.float32)
    else:
        centred = tl.where(mask, x - tl.sum(x, 0) / width, 0.0)
        out = centred * (1.0 / tl.sqrt(tl.sum(centred * centred, 0) / width + eps))
        if HAS_WEIGHT:
            out *= tl.load(weight_ptr + column, mask=mask, other=0.0).to(tl.float32)
        if HAS_BIAS:
            out += tl.load(bias_ptr + column, mask=mask, other=0.0).to(tl.float32)
        out = out.to(kind).to(tl.float32)
    if MODULATE:
        place = row * factor_stride
        out *= tl.load(factor_ptr + place + column, mask=mask, other=0.0).to(tl.float32)
        if ROUND_SCALED:
            out = out.to(kind).to(tl.float32)
        place = row * shift_stride
        out += tl.load(shift_ptr + place + column, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + token * width + column, out.to(out_ptr.dtype.element_ty), mask=mask)


def add_norm(
    x: Tensor,
    step: Step | None,
    norm: Norm,
    factor: Tensor | None = None,
    shift: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """As :func:`stagevar_runtime.kernels.norms.add_norm`, in one pass."""
    x = x.contiguous()
    rows, n, width = x.shape
    y, gate, inner = (None, None, None) if step is None else (step.y, step.gate, step.norm)
    if y is not None and y.stride(2) != 1:
        y = y.contiguous()
    total = x if y is None else torch.empty_like(x)
    out = torch.empty_like(x, dtype=dtype or x.dtype)
    vectors = [_columns(t) for t in (gate, factor, shift)]
    weights = [_columns(t) for t in (inner.weight if inner else None, norm.weight, norm.bias)]
    block = triton.next_power_of_2(width)
    with on_device(x):
        add_norm_kernel[(rows * n,)](
            x,
            x if y is None else y,
            *(x if t is None else t for t in (*vectors[:1], *weights, *vectors[1:])),
            total,
            out,
            n,
            1 if y is None else y.shape[0],
            width,
            *((0, 0) if y is None else y.stride()[:2]),
            *(_row_stride(t) for t in vectors),
            norm.eps,
            inner.eps if inner else 0.0,
            HAS_Y=y is not None,
            HAS_GATE=gate is not None,
            NORM_Y=inner is not None,
            RMS=norm.kind == "rms",
            HAS_WEIGHT=norm.weight is not None,
            HAS_BIAS=norm.bias is not None,
            MODULATE=factor is not None,
            ROUND_GATED=step is not None and step.stepwise,
            ROUND_SCALED=norm.stepwise,
            BLOCK=block,
            num_warps=warps(block),
            enable_fp_fusion=True,
        )
    return total, out


def warps(block: int) -> int:
    """Threads enough that a row stays in registers."""
    return min(16, max(1, block // 256))


def _columns(t: Tensor | None) -> Tensor | None:
    """A tensor whose last axis the kernel can walk."""
    return t if t is None or t.stride(-1) == 1 else t.contiguous()


def _row_stride(t: Tensor | None) -> int:
    """From one row's vector to the next one's, of ``(rows, 1, C)`` or ``(C,)``."""
    return 0 if t is None or t.ndim == 1 or t.shape[0] == 1 else t.stride(0)
