"""Token reduction: which tokens of a scale run, and what the others get. Tensor maths, no model.

Shapes: rows is B or 2B, n tokens on an ``h · w`` grid, width d, r tokens kept. A *selector* picks
tokens from the input ``x`` of some consecutive blocks, a *restorer* makes the blocks' full output
from the outputs of the kept ones:

    scene = Scene(x, grid, r, ...)
    kept = select(scene, "deviation")          # kept.x (rows, r, d)
    y = blocks(kept.x)                         # run on r tokens
    x = restore(scene, kept, y, "cache")       # (rows, n, d)

Selectors are in ``selectors.py``, restorers in ``restorers.py``: a function and a line each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from .sketch import orthonormal_sketch

SKETCH_WIDTH = 64  # columns of the sketch behind `leverage`, `pivot` and `lift`

Grid = tuple[int, int]
BlockSide = Literal["before", "after"]  # what entered and what left the blocks


@dataclass(frozen=True)
class TokenContext:
    """What selectors and restorers see: consecutive blocks at one scale, before they run.

    ``x`` ``(rows, n, d)`` enters the blocks, its tokens lie on ``grid``, ``keep`` of them will run.
    ``generators``: one an image, for selectors that are ``seeded``; the two guidance branches of
    an image share its draws.
    ``before`` and ``after`` are what entered and left the same blocks at the previous scale, each
    with its grid; there for those that ask for them (``needs``).
    """

    x: Tensor
    grid: Grid
    keep: int
    generators: Sequence[torch.Generator] = ()
    before: tuple[Tensor, Grid] | None = None
    after: tuple[Tensor, Grid] | None = None

    @cached_property
    def sketch(self) -> Tensor:
        """Orthonormal columns ``(rows, n, min(keep, 64))``, computed once for all who look."""
        return orthonormal_sketch(self.x, min(self.keep, SKETCH_WIDTH))

    def previous(self, boundary: BlockSide) -> Tensor:
        """``before`` or ``after``, resized to this scale: ``(rows, n, d)``."""
        found = self.before if boundary == "before" else self.after
        assert found is not None, f"the plan did not keep what was {boundary}"
        return resize(*found, self.grid)

    def first(self, rows: int) -> TokenContext:
        """The first ``rows`` rows alone."""
        cut = {
            name: (kept[0][:rows], kept[1])
            for name, kept in (("before", self.before), ("after", self.after))
            if kept is not None
        }
        return replace(self, x=self.x[:rows], **cut)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Kept:
    """The tokens that run. ``index`` ``(rows, r)`` says where their outputs go, ascending.

    ``positions`` are what the blocks are told (they differ from ``index`` under ``projection``).
    """

    x: Tensor
    index: Tensor
    positions: Tensor


@dataclass(frozen=True)
class Selector:
    """``choose`` gives the ``(rows, r)`` tokens to run, ascending.

    ``needs``: what must have been kept at the previous scale. ``mix`` gives rows ``(rows, r, d)``
    that run in their place, at positions 0 to r - 1; None: the tokens themselves, at their own.
    ``seeded``: it draws random numbers, so the scene must hold generators.
    """

    choose: Callable[[TokenContext], Tensor]
    needs: tuple[BlockSide, ...] = ()
    mix: Callable[[TokenContext], Tensor] | None = None
    seeded: bool = False


@dataclass(frozen=True)
class Restorer:
    """``fill`` gives the output ``(rows, n, d)`` of the tokens that did not run, from the scene,
    what was kept and its outputs ``(rows, r, d)``; the kept tokens get their own afterwards.

    ``needs``: what must have been kept at the previous scale.
    """

    fill: Callable[[TokenContext, Kept, Tensor], Tensor]
    needs: tuple[BlockSide, ...] = ()


T = TypeVar("T")


def named(registry: Mapping[str, T], kind: str, name: str) -> T:
    """What is registered under this name; a ValueError that lists the names otherwise."""
    if name not in registry:
        raise ValueError(f"unknown {kind} {name!r}, expected one of {', '.join(registry)}")
    return registry[name]


def kept_tokens(ratio: float, tokens: int, multiple: int = 1) -> int:
    """How many of ``tokens`` a keep ratio means, rounded up to ``multiple`` (GPU tiles)."""
    r = max(1, round(ratio * tokens))
    return min(tokens, -(-r // multiple) * multiple)


def take(x: Tensor, index: Tensor) -> Tensor:
    """Rows of ``x`` ``(rows, n, d)`` at ``index`` ``(rows, r)``."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


def put(x: Tensor, index: Tensor, y: Tensor) -> Tensor:
    """``x`` with ``y`` ``(rows, r, d)`` written at ``index``."""
    return x.scatter(1, index[..., None].expand(-1, -1, x.shape[-1]), y.to(x.dtype))


def top(score: Tensor, keep: int) -> Tensor:
    """The ``keep`` highest of ``score`` ``(rows, n)``, ascending by position: ``(rows, keep)``."""
    return score.topk(keep, dim=1, sorted=False).indices.sort(dim=1).values


def squared_norm(x: Tensor) -> Tensor:
    """``‖x_i‖²`` of every token in float32, ``(rows, n, d)`` → ``(rows, n)``."""
    return x.float().square().sum(-1)


def as_map(x: Tensor, grid: Grid) -> Tensor:
    """Tokens ``(rows, h·w, d)`` as maps ``(rows, d, h, w)``."""
    return x.transpose(1, 2).unflatten(2, grid)


def as_tokens(maps: Tensor) -> Tensor:
    """Maps ``(rows, d, h, w)`` as tokens ``(rows, h·w, d)``."""
    return maps.flatten(2).transpose(1, 2)


def resize(x: Tensor, source: Grid, target: Grid) -> Tensor:
    """Area-resize token features ``(rows, h·w, d)`` from one grid to another."""
    if source == target:
        return x
    return as_tokens(F.interpolate(as_map(x, source), size=target, mode="area"))
