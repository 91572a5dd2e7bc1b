"""Settings of PyTorch that hold while a model runs, and not a moment longer."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

ORDER = (  # of attention kernels on a GPU that has cuDNN's: 1.7 times flash's speed on an H100
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
)
HOPPER = (9, 0)


@contextmanager
def running(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """While it is entered, float32 on CUDA is float32 (no TF32), and attention tries cuDNN first.

    What the caller had set is back afterwards.
    """
    with ExitStack() as stack:
        if device.type == "cuda":
            if dtype == torch.float32:
                stack.enter_context(full_precision())
            if cudnn_first(device):
                stack.enter_context(sdpa_kernel([*ORDER], set_priority=True))
        yield


def cudnn_first(device: torch.device) -> bool:
    """Whether cuDNN's attention is tried first: on Hopper and later, as PyTorch itself does."""
    ordered = "set_priority" in inspect.signature(sdpa_kernel).parameters
    return ordered and torch.cuda.get_device_capability(device) >= HOPPER


@contextmanager
def full_precision() -> Iterator[None]:
    """No TF32 in convolutions and products while it is entered."""
    owners: list[tuple[Any, str, Any]] = [
        (torch.backends.cudnn, "allow_tf32", False),
        (torch.backends.cuda.matmul, "allow_tf32", False),
    ]
    if hasattr(torch.backends.cuda.matmul, "fp32_precision"):  # mixing old and new names is refused
        convolution: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]
        owners = [
            (convolution, "fp32_precision", "ieee"),
            (torch.backends.cuda.matmul, "fp32_precision", "ieee"),
        ]
    before = [getattr(owner, name) for owner, name, _ in owners]
    try:
        for owner, name, value in owners:
            setattr(owner, name, value)
        yield
    finally:
        for (owner, name, _), value in zip(owners, before, strict=True):
            setattr(owner, name, value)
