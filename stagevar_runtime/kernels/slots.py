"""One slot for every fused kernel that a module may run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

from torch import Tensor


@dataclass(frozen=True)
class Kernels:
    """The fused kernels that modules run, each None where its definition runs."""

    add_norm: Callable[..., tuple[Tensor, Tensor]] | None = None
    split: Callable[..., tuple[Tensor, ...]] | None = None
    group_norm: Callable[..., Tensor] | None = None
    draw: Callable[..., Tensor] | None = None
    gelu: Callable[..., Tensor] | None = None

    def names(self) -> list[str]:
        """The kernels that are there."""
        return [f.name for f in fields(self) if getattr(self, f.name) is not None]


NONE = Kernels()
