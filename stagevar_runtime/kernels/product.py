"""What stands in for a linear layer."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Product(Protocol):
    """Stands in for a linear layer."""

    def __call__(self, x: Tensor, gelu: bool = False) -> Tensor:
        """``x`` ``(..., d)`` to ``(..., d_out)`` in its dtype, through a tanh GELU if asked."""

    @property
    def nbytes(self) -> int:
        """Memory of what was made for it."""
