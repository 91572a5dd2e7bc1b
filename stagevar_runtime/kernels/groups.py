"""Group norm, then SiLU: what stands between the convolutions of a tokenizer.

PyTorch's CUDA kernel for group norm wants contiguous channels, so in the channels-last layout that
convolutions want it copies there and back, and one block of threads for each of 32 groups fills a
quarter of a large GPU. The fused kernel of :mod:`.groups_triton` reads channels-last memory in two
passes split over positions. The function :func:`normed` defines what is computed.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .slots import Kernels

MAX_CHANNELS = 2048


def normed(x: Tensor, norm: nn.GroupNorm, silu: bool = True) -> Tensor:
    """The definition: ``x`` ``(B, C, H, W)`` normed in groups, then SiLU if asked."""
    y = F.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)
    return F.silu(y, inplace=True) if silu else y


def can_norm(x: Tensor) -> bool:
    """Whether the fused kernel takes this tensor: channels-last, no gradient wanted."""
    return (
        x.ndim == 4
        and x.numel() > 0
        and x.shape[1] <= MAX_CHANNELS
        and x.is_contiguous(memory_format=torch.channels_last)
        and not (torch.is_grad_enabled() and x.requires_grad)
    )


def group_norm(x: Tensor, norm: nn.GroupNorm, kernels: Kernels, silu: bool = True) -> Tensor:
    """:func:`normed` by the fused kernel where one is mounted and takes ``x``."""
    run = kernels.group_norm
    if run is not None and can_norm(x):
        return run(x, norm, silu)
    return normed(x, norm, silu)
