"""What one scale changes in a state, and what it reads: references, no copies of tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..model.kvcache import KVCache
from ..model.protocol import Branch, State, map_tensors


@dataclass
class Snapshot:
    """What the transformer changes in a state."""

    kv: list[KVCache]
    rows: dict[str, Any]
    extra: dict[str, Any]
    stored: dict[int, Any]
    branches: tuple[Branch, ...]
    null: State | None

    @classmethod
    def of(cls, state: State) -> Snapshot:
        """As it is now."""
        return cls(
            [replace(cache) for cache in state.kv],
            dict(state.rows),
            dict(state.extra),
            dict(state.stored),
            state.branches,
            state.null and state.null.fork(),
        )

    def restore(self, state: State) -> None:
        """Make it so again."""
        state.kv = [replace(cache) for cache in self.kv]
        state.rows, state.extra = dict(self.rows), dict(self.extra)
        state.stored, state.branches = dict(self.stored), self.branches
        state.null = self.null and self.null.fork()

    def resume(self, state: State) -> None:
        """Go on as after a replay: hidden states are copied, since another graph may write where
        they are before they are read."""
        self.restore(state)
        state.stored = map_tensors(state.stored, torch.clone)

    def caches(self) -> list[KVCache]:
        """All caches, null's own last."""
        return [*self.kv, *(self.null.kv if self.null else ())]


class Inputs:
    """What the transformer reads of a state but for keys and values.

    ``changing``: tensors that differ from scale to scale. ``fixed``: addresses of those that lie in
    ``home``, a set of addresses of memory. ``partly``: the null branch will see part of the tokens,
    so the kept difference is read.
    """

    def __init__(self, state: State, home: set[int], partly: bool) -> None:
        leaves = list(tensors((state.rows, state.extra, state.null.rows if state.null else None)))
        at_home = [t.untyped_storage().data_ptr() in home for t in leaves]
        self.fixed = [t.data_ptr() for t, inside in zip(leaves, at_home, strict=True) if inside]
        self.changing = [t for t, inside in zip(leaves, at_home, strict=True) if not inside]
        read = (state.canvas, state.stored, state.difference if partly else None)
        self.changing += tensors(read)

    def kinds(self) -> list[tuple[Any, ...]]:
        """Shapes, types and strides of what changes."""
        return [kind(t) for t in self.changing]


def exchanged(state: State, tensor: Callable[[Tensor], Tensor]) -> None:
    """Have ``state`` read ``tensor(t)`` instead of every ``t`` it reads, keys and values aside."""
    state.rows, state.extra = map_tensors(state.rows, tensor), map_tensors(state.extra, tensor)
    state.stored = map_tensors(state.stored, tensor)
    state.difference = map_tensors(state.difference, tensor)
    state.canvas = tensor(state.canvas)


def tensors(tree: Any) -> Iterator[Tensor]:
    """Every tensor of nested dicts, lists and tuples."""
    found: list[Tensor] = []
    map_tensors(tree, found.append)
    return iter(found)


def kind(t: Tensor) -> tuple[Any, ...]:
    """What two tensors must share for one to be copied over the other."""
    return t.shape, t.dtype, t.stride()


def caches_of(state: State) -> list[KVCache]:
    """All caches of a state, null's own last."""
    return [*state.kv, *(state.null.kv if state.null else ())]


def places(state: State) -> list[tuple[Any, ...]]:
    """Where keys and values are and how many: what must not differ from a graph's."""
    return [
        (cache.length, *((t.data_ptr(), *t.shape) for t in (cache.k, cache.v) if t is not None))
        for cache in caches_of(state)
    ]
