"""What every launch of a fused kernel needs."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def on_device(x: Tensor) -> AbstractContextManager[object]:
    """Kernels are launched on the current device: make that ``x``'s (a CPU's are interpreted)."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()
