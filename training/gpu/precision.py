"""In what numbers a device multiplies."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Precision:
    """bfloat16 products on a GPU; on a CPU float32, but for training.products' own rounding."""

    device: str

    def autocast(self) -> AbstractContextManager[object]:
        """Around a forward pass."""
        if self.device.startswith("cuda"):
            return torch.autocast("cuda", torch.bfloat16, cache_enabled=False)
        return nullcontext()

    def prepare(self) -> None:
        """Process-wide settings of the libraries."""
        if not self.device.startswith("cuda"):
            return
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
        torch.backends.cuda.enable_cudnn_sdp(False)  # plans anew for every shape

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()
