"""One buffer, grown once, forks that do not disturb.

pytest tests/runtime/model/test_kvcache.py
"""

from __future__ import annotations

import torch
from torch import Tensor

from stagevar_runtime.kernels.attention import attend
from stagevar_runtime.model.kvcache import KVCache, empty_caches


def piece(n: int, seed: int, rows: int = 4) -> Tensor:
    return torch.randn(rows, 2, n, 3, generator=torch.Generator().manual_seed(seed))


def test_append_is_concatenation() -> None:
    cache = KVCache()
    for i, n in enumerate((1, 4, 9)):
        k, v = cache.append(piece(n, i), piece(n, 10 + i))
    assert torch.equal(k, torch.cat([piece(n, i) for i, n in enumerate((1, 4, 9))], 2))
    assert torch.equal(v, torch.cat([piece(n, 10 + i) for i, n in enumerate((1, 4, 9))], 2))
    assert cache.length == 14


def test_capacity_is_allocated_once() -> None:
    cache = KVCache(capacity=14)
    places = set()
    for i, n in enumerate((1, 4, 9)):
        k, _ = cache.append(piece(n, i), piece(n, i))
        places.add(k.data_ptr())
    assert len(places) == 1
    assert cache.bytes == 2 * 4 * 2 * 14 * 3 * 4
    cache.append(piece(1, 0), piece(1, 0))
    assert cache.length == 15  # beyond what was announced it still works


def test_keep_slices_rows_and_frees_the_others_when_it_grows() -> None:
    cache = KVCache(capacity=5)
    cache.append(piece(5, 0), piece(5, 1))
    held = cache.bytes
    cache.keep(slice(2, 4))
    cache.capacity = 9
    k, _ = cache.append(piece(4, 2, rows=2), piece(4, 3, rows=2))
    assert torch.equal(k[:, :, :5], piece(5, 0)[2:4])
    assert cache.bytes == held // 2 * 9 // 5


def test_keep_of_an_empty_cache_changes_nothing() -> None:
    cache = KVCache()
    cache.keep(slice(0, 1))
    assert (cache.k, cache.v, cache.length, cache.bytes) == (None, None, 0, 0)


def test_forks_share_the_past_and_go_their_own_way() -> None:
    trunk = KVCache(capacity=9)
    trunk.append(piece(4, 0), piece(4, 0))
    twin = trunk.fork()
    twin.append(piece(5, 7), piece(5, 7))
    assert trunk.length == 4
    k, _ = trunk.append(piece(5, 8), piece(5, 8))
    assert torch.equal(k, torch.cat([piece(4, 0), piece(5, 8)], 2))
    late = trunk.fork()
    late.keep(slice(0, 2))
    assert trunk.k is not None and trunk.k.shape[0] == 4


def test_empty_caches_are_apart() -> None:
    first, second = empty_caches(2)
    first.append(piece(1, 0), piece(1, 0))
    assert second.k is None


def test_attention() -> None:
    q, k, v = piece(3, 0), piece(5, 1), piece(5, 2)
    mask = torch.zeros(3, 5)
    mask[:, 4] = -torch.inf
    for given in (None, mask):
        scores = 0.7 * q @ k.transpose(2, 3) + (0 if given is None else given)
        want = (scores.softmax(-1) @ v).transpose(1, 2).reshape(4, 3, 6)
        torch.testing.assert_close(attend(q, k, v, 0.7, given), want, atol=1e-5, rtol=0)
