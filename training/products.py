"""Matrix products with gradients through the runtime's kernels: faster than PyTorch's on a CPU.

On a CPU PyTorch sends products to MKL, with gradients as without:
see stagevar_runtime/kernels/linear.py.
Where the processor multiplies bfloat16, products are rounded to it and summed in float32, twice as
fast as float32; everything else stays in float32.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from stagevar_runtime.kernels.linear import backend


@cache
def rounded() -> torch.dtype:
    """What products are rounded to on this processor: bfloat16 where it multiplies that."""
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return torch.bfloat16 if supported is not None and supported() else torch.float32


def _product(x: Tensor, weight: Tensor) -> Tensor:
    """``x @ weightᵀ`` by oneDNN."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        x, weight = x.to(rounded()), weight.to(rounded())
        ctx.save_for_backward(x, weight)
        ctx.biased = bias is not None
        y = _product(x, weight).float()
        return y if bias is None else y + bias

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None]:
        x, weight = ctx.saved_tensors
        whole = gradients[0].flatten(0, -2)
        dy = whole.to(rounded())
        dx = None
        if ctx.needs_input_grad[0]:
            dx = _product(dy.contiguous(), weight.t().contiguous()).float().view_as(x)
        dw = _product(dy.t().contiguous(), x.flatten(0, -2).t().contiguous()).float()
        return dx, dw, whole.sum(0) if ctx.biased else None


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weightᵀ + bias`` with gradients."""
    if backend(x.device, x.dtype) == "onednn":
        return _Linear.apply(x, weight, bias)
    return F.linear(x, weight, bias)
