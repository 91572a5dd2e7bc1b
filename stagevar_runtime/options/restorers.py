"""Restorers: what the tokens that did not run get. To add one, write a function and name it below.

Sources: StageVAR (arXiv 2512.16483) for ``cache``; FastVAR (arXiv 2503.23367), which adds the
cached output of a sub-layer to the residual, for ``delta-cache``; ``lift`` is ours.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .sketch import cholesky
from .tokens import Kept, Restorer, TokenContext, named, put, resize, take

RIDGE = 0.05  # of the mean kept leverage: keeps a lift from extrapolating


def restore(context: TokenContext, kept: Kept, y: Tensor, method: str) -> Tensor:
    """The blocks' output for all n tokens, from ``y`` ``(rows, r, d)`` at the kept ones."""
    restorer = named(RESTORERS, "restorer", method)
    return put(restorer.fill(context, kept, y), kept.index, y)


def unchanged(context: TokenContext, kept: Kept, y: Tensor) -> Tensor:
    """x_j, as if the blocks were not there."""
    return context.x


def cache(context: TokenContext, kept: Kept, y: Tensor) -> Tensor:
    """The blocks' output at the previous scale."""
    return context.previous("after")


def delta_cache(context: TokenContext, kept: Kept, y: Tensor) -> Tensor:
    """x_j plus what the blocks added at the previous scale (output - input)."""
    assert context.before is not None and context.after is not None
    (output, grid), (entered, _) = context.after, context.before
    return context.x + resize(output - entered, grid, context.grid)


def lift(context: TokenContext, kept: Kept, y: Tensor) -> Tensor:
    """x_j plus the kept tokens' updates, by how well they rebuild token j."""
    return context.x + spread(context.sketch, kept.index, y - take(context.x, kept.index))


def spread(q: Tensor, index: Tensor, change: Tensor) -> Tensor:
    """Carry the kept tokens' ``change`` ``(rows, r, d)`` to all n tokens.

    Ridge least squares on a sketch ``q`` ``(rows, n, s)`` of the input: with Q_I its kept rows,
    ``W = Q (Q_Iᵀ Q_I + λ)⁻¹ Q_Iᵀ`` is the n by r matrix that best rebuilds the sketch from the
    kept tokens, and every token gets ``Σ_i W_ji · change_i``. W itself is never formed.
    """
    q_kept = take(q, index)
    gram = q_kept.transpose(1, 2) @ q_kept
    ridge = RIDGE * gram.diagonal(dim1=1, dim2=2).mean(-1).clamp_min(1e-12)
    gram = gram + ridge[:, None, None] * torch.eye(gram.shape[-1], device=q.device)
    factor, wanted = cholesky(gram), q_kept.transpose(1, 2) @ change.float()
    half = torch.linalg.solve_triangular(factor, wanted, upper=False)
    coefficients = torch.linalg.solve_triangular(factor.mT, half, upper=True)
    return (q @ coefficients).to(change.dtype)


RESTORERS: dict[str, Restorer] = {
    "cache": Restorer(cache, needs=("after",)),
    "delta-cache": Restorer(delta_cache, needs=("before", "after")),
    "lift": Restorer(lift),
    "none": Restorer(unchanged),
}
