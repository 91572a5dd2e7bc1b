"""Feature rank: how few directions hold the tokens of one scale at one group of blocks.

X ``(n, d)`` is what enters a group. Its spectrum comes from the smaller Gram matrix in float64.
Two conventions, both reported: ``pca`` subtracts the mean token first, as the published table did
(``torch.pca_lowrank`` centres silently); ``svd`` does not. METHODS sections 1 and 3.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stagevar_runtime.errors import CalibrationError

from ..intervals import Interval, mean_interval

Centring = Literal["pca", "svd"]
CENTRINGS: tuple[Centring, ...] = ("pca", "svd")
ALPHA = 0.96  # the share of the energy that profiles and reports show, as published
ALPHAS = (0.9, 0.95, 0.96, 0.97, 0.98, 0.99, 0.999)
LARGE = 2048  # both sides above this: a randomised SVD instead of an exact eigenvalue problem
SLACK = 1e-12  # the share alpha is met up to float64 rounding


@dataclass(frozen=True)
class Spectrum:
    """Squared singular values of b matrices ``(n, d)``.

    ``squared`` ``(b, min(n, d))`` float64 on the CPU, descending. ``exact`` False: the tail beyond
    the computed part is the remaining energy spread evenly (an upper bound of the effective rank).
    """

    squared: Tensor
    tokens: int
    width: int
    exact: bool = True

    @property
    def energy(self) -> Tensor:
        """``(b,)`` squared Frobenius norms."""
        return self.squared.sum(-1)


def spectrum(x: Tensor, centred: bool, seed: int = 0) -> Spectrum:
    """Spectrum of every matrix of ``x`` ``(b, n, d)``; rows of the batch are prompts.

    ``centred`` subtracts the mean over the n tokens. ``seed`` matters only where both n and d
    exceed 2048. Raises :class:`CalibrationError` on another shape, NaN or infinity.
    """
    if x.ndim != 3 or 0 in x.shape:
        raise CalibrationError(f"features have shape {tuple(x.shape)}, expected (b, n, d)")
    if not torch.isfinite(x).all():
        raise CalibrationError("features hold NaN or infinity, expected finite values")
    _, n, d = x.shape
    wide = x.double() if x.device.type != "mps" else x.cpu().double()
    if centred:
        plain, wide = wide, wide - wide.mean(dim=1, keepdim=True)
        noise = (n * d * torch.finfo(torch.float64).eps) ** 2 * plain.square().sum((1, 2))
        lost = wide.square().sum((1, 2)) <= noise  # equal tokens: what is left is rounding
        wide = wide.masked_fill(lost[:, None, None], 0)
    if min(n, d) > LARGE:
        rows = [_randomised(one.cpu().numpy(), seed) for one in wide]
        return Spectrum(torch.stack([r for r, _ in rows]), n, d, all(e for _, e in rows))
    gram = wide @ wide.mT if n <= d else wide.mT @ wide
    return Spectrum(torch.linalg.eigvalsh(gram).flip(-1).clamp(min=0).cpu(), n, d)


def _randomised(matrix: NDArray[np.float64], seed: int) -> tuple[Tensor, bool]:
    """Leading squared singular values until they hold the largest alpha; the rest spread evenly."""
    from sklearn.utils.extmath import randomized_svd

    side, total = min(matrix.shape), float((matrix**2).sum())
    count = LARGE // 8
    while count < side // 2:
        _, s, _ = randomized_svd(matrix, n_components=count, n_iter=4, random_state=seed)
        head = s.astype(np.float64) ** 2
        if head.sum() >= ALPHAS[-1] * total:
            rest = max(0.0, total - float(head.sum())) / (side - count)
            tail = np.full(side - count, min(rest, float(head[-1])))
            return torch.from_numpy(np.concatenate([head, tail])), False
        count *= 2
    gram = matrix @ matrix.T if matrix.shape[0] == side else matrix.T @ matrix
    return torch.from_numpy(np.linalg.eigvalsh(gram)[::-1].clip(min=0).copy()), True


def energy_rank(squared: Tensor, alpha: float) -> Tensor:
    """Smallest r whose r largest squared singular values reach ``alpha`` of the total.

    ``squared`` ``(..., m)`` descending; returns integers ``(...)``. A zero matrix has rank 0.
    Source: METHODS section 1 (StageVAR's offline table uses alpha 0.96).
    """
    if not 0 < alpha <= 1:
        raise CalibrationError(f"alpha is {alpha}, expected above 0 and at most 1")
    held = squared.cumsum(-1)
    total = held[..., -1:]
    rank = (held < alpha * total * (1 - SLACK)).sum(-1) + 1
    return torch.where(total[..., 0] > 0, rank, 0)


def effective_rank(squared: Tensor) -> Tensor:
    """exp(-sum p ln p), p the share of each squared singular value (``(..., m)`` → ``(...)``).

    Between 1 and m; 0 for a zero matrix. Source: Roy and Vetterli 2007, on energies.
    """
    total = squared.sum(-1, keepdim=True)
    p = squared / torch.where(total > 0, total, 1)
    return torch.where(total[..., 0] > 0, torch.special.entr(p).sum(-1).exp(), 0)


def stable_rank(squared: Tensor) -> Tensor:
    """Squared Frobenius norm over squared spectral norm, ``(..., m)`` → ``(...)``; 0 for zero."""
    top = squared.amax(-1)
    return torch.where(top > 0, squared.sum(-1) / torch.where(top > 0, top, 1), 0)


class RankKey(NamedTuple):
    """Where a spectrum was measured."""

    scale: int
    group: int
    branch: str
    centring: Centring


def ratio_name(alpha: float) -> str:
    """Name of the energy-rank ratio r/n at ``alpha`` in :meth:`RankMeter.values`."""
    return f"energy_rank_ratio_{alpha:g}"


MEASURES = (*(ratio_name(alpha) for alpha in ALPHAS), "effective_rank", "stable_rank")


@dataclass
class RankMeter:
    """Collects ranks batch by batch and keeps one value a prompt, so intervals can be made.

    Prompts must be added in the same order everywhere. Memory: nine numbers a prompt and key.
    """

    centrings: tuple[Centring, ...] = CENTRINGS
    _rows: dict[RankKey, list[NDArray[np.float64]]] = field(default_factory=dict)
    _tokens: dict[RankKey, int] = field(default_factory=dict)

    def add(self, scale: int, group: int, branch: str, x: Tensor) -> None:
        """Measure ``x`` ``(b, n, d)``, one matrix a prompt, entering ``group`` at ``scale``."""
        for centring in self.centrings:
            key = RankKey(scale, group, branch, centring)
            found = spectrum(x, centred=centring == "pca")
            known = self._tokens.setdefault(key, found.tokens)
            if known != found.tokens:
                raise CalibrationError(f"scale {scale} had {known} tokens, now {found.tokens}")
            s2 = found.squared
            columns = [energy_rank(s2, alpha) / found.tokens for alpha in ALPHAS]
            columns += [effective_rank(s2), stable_rank(s2)]
            self._rows.setdefault(key, []).append(torch.stack(columns, -1).double().numpy())

    def keys(self) -> Iterator[RankKey]:
        """All places measured so far, in order."""
        return iter(sorted(self._rows))

    def values(self, key: RankKey) -> dict[str, NDArray[np.float64]]:
        """Per prompt ``(prompts,)``: each of :data:`MEASURES`; ratios are r/n, ranks are counts."""
        if key not in self._rows:
            raise CalibrationError(f"no rank was measured at {key}")
        table = np.concatenate(self._rows[key])
        return {name: table[:, i] for i, name in enumerate(MEASURES)}

    def intervals(self, key: RankKey, seed: int = 0) -> dict[str, Interval]:
        """Mean over prompts with its 95 % interval, for each of :data:`MEASURES`."""
        return {name: mean_interval(v, seed) for name, v in self.values(key).items()}

    def merge(self, other: RankMeter) -> None:
        """Append the prompts of another shard after this one's."""
        for key, rows in other._rows.items():
            known = self._tokens.setdefault(key, other._tokens[key])
            if known != other._tokens[key]:
                raise CalibrationError(f"{key} has {known} tokens here, {other._tokens[key]} there")
            self._rows.setdefault(key, []).extend(rows)
