"""Overflow is found without waiting in the loop: sums on the device, read once when it is over."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ..errors import NotFiniteError
from ..model.protocol import ScaleModel, State


def watch(state: State, what: str, values: Tensor) -> None:
    """Remember the sum of ``values``: it is not finite if one of them is not."""
    state.sums.append((what, values.sum()))


def decode_finite(model: ScaleModel, state: State) -> Tensor:
    """The picture ``(B, 3, H, W)`` of a canvas, both watched."""
    watch(state, "the canvas", state.canvas)
    images = model.decode(state)
    watch(state, "the picture", images)
    return images


def check_finite(model: ScaleModel, state: State) -> None:
    """Read all sums at once. Waits for the device.

    Raises:
        NotFiniteError: one is NaN or infinite; names the first, the dtype and what to try.
    """
    sums = torch.stack([value.float() for _, value in state.sums]).tolist()
    for (what, _), value in zip(state.sums, sums, strict=True):
        if not math.isfinite(value):
            dtype = str(model.dtype).removeprefix("torch.")
            wider = "float32" if model.dtype == torch.bfloat16 else "bfloat16 or float32"
            hint = f"load with dtype={wider}" if dtype != "float32" else "check the weights"
            raise NotFiniteError(
                f"{what} of this {model.info.family} model is not finite in {dtype}, nothing was "
                f"drawn: {hint}, or use less guidance and a higher temperature"
            )


@contextmanager
def refused_draws(model: ScaleModel, state: State) -> Iterator[None]:
    """On a CPU PyTorch refuses to draw from NaN: say where it came from.

    Raises:
        NotFiniteError: as :func:`check_finite`, instead of PyTorch's own error.
    """
    try:
        yield
    except RuntimeError:
        if state.sums:
            check_finite(model, state)
        raise
