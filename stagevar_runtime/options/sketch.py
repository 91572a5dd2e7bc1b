"""Randomised linear algebra on the tokens of one scale: batched, deterministic, on any device.

Shapes: rows is B or 2B, n tokens of width d, s columns of a sketch.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


def orthonormal_sketch(x: Tensor, width: int) -> Tensor:
    """An orthonormal basis ``(rows, n, s)`` of nearly the leading column space of each row's x.

    Randomised subspace iteration, one round (Halko, Martinsson & Tropp 2011, algorithm 4.4), with
    a fixed test matrix: the same input always gives the same sketch. s = min(width, n, d).
    """
    x = x.float()
    width = min(width, x.shape[1], x.shape[2])
    test = _test_matrix(x.shape[2], width, x.device)
    q = orthonormalise(x @ test)
    return orthonormalise(x @ (x.transpose(1, 2) @ q))


def orthonormalise(z: Tensor) -> Tensor:
    """Columns of ``z`` ``(rows, n, s)`` made orthonormal by Cholesky QR (fast on every device)."""
    z = z / z.square().sum((1, 2), keepdim=True).sqrt().clamp_min(1e-20)
    gram = z.transpose(1, 2) @ z
    jitter = 1e-6 * torch.eye(gram.shape[-1], device=z.device)
    factor = cholesky(gram + jitter)
    return torch.linalg.solve_triangular(factor, z.transpose(1, 2), upper=False).transpose(1, 2)


def cholesky(gram: Tensor) -> Tensor:
    """The lower factor, without the check whose answer the host would wait for."""
    return torch.linalg.cholesky_ex(gram).L


@lru_cache(maxsize=32)
def _test_matrix(d: int, width: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        generator = torch.Generator().manual_seed(d * 1009 + width)
        return torch.randn(d, width, generator=generator).to(device)


def pivots(q: Tensor, count: int) -> Tensor:
    """The first ``count`` pivots of QR with column pivoting of qᵀ, in the order they are found.

    Each is the row of ``q`` ``(rows, n, s)`` farthest from the span of those before it (Golub
    1965; the row set of an interpolative decomposition). ``count`` steps of O(n·s) each, all rows
    of the batch at once; nothing waits for the device. ``count`` is at most s. Returns
    ``(rows, count)``.
    """
    left = q.float()
    taken = torch.zeros(left.shape[:2], dtype=torch.bool, device=left.device)
    found = []
    for _ in range(count):
        pick = left.square().sum(-1).masked_fill(taken, -1).argmax(1, keepdim=True)
        taken = taken.scatter(1, pick, True)
        found.append(pick)
        row = left.gather(1, pick[..., None].expand(-1, -1, left.shape[2]))
        row = row / row.norm(dim=-1, keepdim=True).clamp_min(1e-20)
        left = torch.baddbmm(left, left @ row.mT, row, alpha=-1)
    return torch.cat(found, 1)
