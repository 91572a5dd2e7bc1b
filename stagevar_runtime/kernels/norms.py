"""Between two layers of a block: add the last one's output, norm the sum, modulate it.

    x += gate · y          (or gate · norm(y), where a family norms twice)
    out = norm(x) · factor + shift

The functions here define what is computed, on every device and bit by bit; where the fused kernel
of :mod:`.norms_triton` is mounted it does the same in one pass over memory. Shapes: rows = B or 2B,
n tokens, C width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from .slots import Kernels

MAX_WIDTH = 4096  # a row is normed by one program


@dataclass(frozen=True)
class Norm:
    """Layer norm, or root-mean-square norm in float32, over the last axis.

    ``weight`` and ``bias`` ``(C,)`` or None. ``stepwise``: gates, factors and shifts are rounded
    one by one as HART and Switti publish it, otherwise as ``addcmul`` does.
    """

    kind: Literal["layer", "rms"] = "layer"
    weight: Tensor | None = None
    bias: Tensor | None = None
    eps: float = 1e-6
    stepwise: bool = False

    def __call__(self, x: Tensor) -> Tensor:
        if self.kind == "layer":
            return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)
        normed = F.rms_norm(x.float(), x.shape[-1:], eps=self.eps).to(x.dtype)
        return normed if self.weight is None else normed * self.weight


PLAIN = Norm()


@dataclass(frozen=True)
class Step:
    """What is added to the residual: ``y`` ``(rows or a divisor, n, C)``, through ``norm`` first if
    there is one, times ``gate`` ``(rows, 1, C)`` or ``(C,)``.

    Fewer rows than the residual has are repeated. ``stepwise`` as in :class:`Norm`.
    """

    y: Tensor
    gate: Tensor | None = None
    norm: Norm | None = None
    stepwise: bool = False


def added(x: Tensor, step: Step) -> Tensor:
    """``x`` ``(rows, n, C)`` after one step, in its dtype."""
    y = step.y if step.norm is None else step.norm(step.y)
    if y.shape[0] != x.shape[0]:
        y = y.repeat(x.shape[0] // y.shape[0], 1, 1)
    if step.gate is None:
        return x + y
    return x + y * step.gate if step.stepwise else torch.addcmul(x, y.to(x.dtype), step.gate)


def modulated(x: Tensor, norm: Norm, factor: Tensor | None, shift: Tensor | None) -> Tensor:
    """``norm(x) · factor + shift`` with ``(rows, 1, C)`` each, in ``x``'s dtype."""
    normed = norm(x)
    if factor is None or shift is None:
        return normed
    return normed * factor + shift if norm.stepwise else torch.addcmul(shift, normed, factor)


def add_norm(
    x: Tensor,
    step: Step | None,
    norm: Norm,
    factor: Tensor | None = None,
    shift: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """The definition: ``x`` after ``step``, and that normed, modulated, in ``dtype``."""
    x = x if step is None else added(x, step)
    return x, modulated(x, norm, factor, shift).to(dtype or x.dtype)


def can_add_norm(x: Tensor, step: Step | None, norm: Norm, factor: Tensor | None) -> bool:
    """Whether the fused kernel takes these tensors."""
    shapes = norm.kind == "layer" or norm.weight is None or norm.weight.dtype == x.dtype
    shapes = shapes and x.ndim == 3 and 0 < x.shape[2] <= MAX_WIDTH and x.numel() > 0
    per_row = (x.shape[0], 1, x.shape[2])
    shapes = shapes and (factor is None or factor.shape == per_row)
    if step is not None:
        y, gate = step.y, step.gate
        shapes = shapes and y.shape[1:] == x.shape[1:] and x.shape[0] % y.shape[0] == 0
        shapes = shapes and (gate is None or gate.shape in (per_row, per_row[2:]))
        shapes = shapes and (step.norm is None or _rms_of(y, step.norm))
    return shapes


def _rms_of(y: Tensor, norm: Norm) -> bool:
    return norm.kind == "rms" and norm.weight is not None and norm.weight.dtype == y.dtype


class Residual:
    """The residual stream of blocks, ``(rows, n, C)``: what is added waits for the norm after it,
    so that both are one pass.

    It is read at the end by :meth:`value`; between there are only :meth:`normed` and :meth:`add`.
    """

    def __init__(self, x: Tensor, kernels: Kernels) -> None:
        self._x, self._kernels = x, kernels
        self._step: Step | None = None

    def add(
        self,
        y: Tensor,
        gate: Tensor | None = None,
        norm: Norm | None = None,
        stepwise: bool = False,
    ) -> None:
        """Add ``gate · norm(y)``."""
        self._x, self._step = self.value(), Step(y, gate, norm, stepwise)

    def normed(
        self,
        norm: Norm = PLAIN,
        factor: Tensor | None = None,
        shift: Tensor | None = None,
        dtype: torch.dtype | None = None,
        rows: int | None = None,
    ) -> Tensor:
        """``norm(x) · factor + shift`` of what the stream holds by now; of its first ``rows``."""
        step, self._step = self._step, None
        run = self._kernels.add_norm
        if run is not None and can_add_norm(self._x, step, norm, factor):
            self._x, out = run(self._x, step, norm, factor, shift, dtype)
            return out[:rows]
        if step is not None:
            self._x = added(self._x, step)
        return modulated(self._x[:rows], norm, factor, shift).to(dtype or self._x.dtype)

    def value(self) -> Tensor:
        """What the stream holds, ``(rows, n, C)``."""
        if self._step is not None:
            self._x, self._step = added(self._x, self._step), None
        return self._x
