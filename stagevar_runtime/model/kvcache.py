"""The keys and values of one block: a preallocated buffer and how much of it is filled."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass
class KVBuffer:
    """Flat memory for the keys and values of one block that outlives a generation.

    It is laid out anew for every row count, so that what dropped guidance frees is used again.
    """

    k: Tensor
    v: Tensor

    def fits(self, like: Tensor, shape: Sequence[int]) -> bool:
        """Whether keys like these find room in this shape."""
        same = (self.k.dtype, self.k.device) == (like.dtype, like.device)
        return same and self.k.numel() >= math.prod(shape)

    def laid_out(self, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Keys and values of this shape ``(rows, heads, capacity, head_dim)``, not cleared."""
        count = math.prod(shape)
        return self.k[:count].view(*shape), self.v[:count].view(*shape)


@dataclass
class KVCache:
    """Keys and values of one block, ``(rows, heads, capacity, head_dim)`` each.

    The buffer is made by the first :meth:`append`, with the capacity asked for by then: in ``room``
    where there is one. Copies made by :meth:`fork` share it: what lies below ``length`` is never
    written again, so an earlier fork stays valid as long as only one of its descendants goes on at
    a time, and has no room.
    """

    capacity: int = 0
    length: int = 0
    k: Tensor | None = None
    v: Tensor | None = None
    buffer: KVBuffer | None = None

    def reserve(self, capacity: int) -> None:
        """Announce how many tokens there will be; grows at once if there are some already."""
        self.capacity = capacity
        if self.k is not None and self.v is not None and capacity > self.k.shape[2]:
            self._grow(self.k, self.v, capacity)

    def claim(self, like: Tensor, rows: int, heads: int, n: int, dim: int) -> tuple[Tensor, Tensor]:
        """Where the next keys and values go, ``(rows, heads, n, head_dim)`` each, of the type of
        ``like``; they count as there from now on."""
        end = self.length + n
        if self.k is None or end > self.k.shape[2]:
            empty = like.new_empty((rows, heads, 0, dim))
            self._grow(empty, empty, max(end, self.capacity))
        assert self.k is not None and self.v is not None
        start, self.length = self.length, end
        return self.k[:, :, start:end], self.v[:, :, start:end]

    def filled(self) -> tuple[Tensor, Tensor]:
        """All keys and values so far, ``(rows, heads, length, head_dim)`` each."""
        assert self.k is not None and self.v is not None
        return self.k[:, :, : self.length], self.v[:, :, : self.length]

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add ``(rows, heads, n, head_dim)`` keys and values; return all keys and values so far."""
        end = self.length + k.shape[2]
        if self.k is None or end > self.k.shape[2]:
            self._grow(k, v, max(end, self.capacity))
        assert self.k is not None and self.v is not None
        self.k[:, :, self.length : end] = k
        self.v[:, :, self.length : end] = v
        self.length = end
        return self.k[:, :, :end], self.v[:, :, :end]

    def _grow(self, k: Tensor, v: Tensor, capacity: int) -> None:
        old_k, old_v = self.k, self.v
        shape = (k.shape[0], k.shape[1], capacity, k.shape[3])
        if self.buffer is None or not self.buffer.fits(k, shape):
            self.k, self.v = k.new_empty(shape), v.new_empty(shape)
        else:
            if old_k is not None and old_v is not None:  # the new layout lies over the old one
                old_k, old_v = (
                    old_k[:, :, : self.length].clone(),
                    old_v[:, :, : self.length].clone(),
                )
            self.k, self.v = self.buffer.laid_out(shape)
        if old_k is not None and old_v is not None:
            self.k[:, :, : self.length] = old_k[:, :, : self.length]
            self.v[:, :, : self.length] = old_v[:, :, : self.length]

    def keep(self, rows: slice) -> None:
        """Keep these rows only. Growing past the old buffer then frees the others."""
        if self.k is not None and self.v is not None:
            self.k, self.v = self.k[rows], self.v[rows]

    def fork(self) -> KVCache:
        """A copy that can go its own way from here, sharing what is filled."""
        return KVCache(self.capacity, self.length, self.k, self.v)

    @property
    def bytes(self) -> int:
        """Memory held by the buffers this cache sees, in bytes."""
        held = [t for t in (self.k, self.v) if t is not None]
        return sum(t.untyped_storage().nbytes() for t in held)


def cache_bytes(caches: Sequence[KVCache]) -> int:
    """Memory that keys and values of all blocks hold, in bytes."""
    return sum(cache.bytes for cache in caches)


def empty_caches(depth: int) -> list[KVCache]:
    """One empty cache a block."""
    return [KVCache() for _ in range(depth)]
