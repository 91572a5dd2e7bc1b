"""Drawing bits from pairs of logits: guidance, temperature, top-p of two, and the draw.

Infinity predicts every bit by two logits. The functions here define what is drawn, from numbers
that were drawn before (``clocks``): bit 1 wins where its clock, ``Exp(1) / probability``, rings
strictly first. Where the fused kernel of :mod:`.pairs_triton` is mounted it does the same in one
pass, with the same roundings, so that the bits are the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .slots import Kernels


@dataclass(frozen=True)
class Pairs:
    """How pairs become bits. ``weights`` ``(a, b)`` of ``a·cond + b·null``, None for one branch.

    ``temperature`` divides logits before; ``top_p`` 0 or 1 keeps both of a pair, anything between
    drops the less likely one where its probability is at most ``1 - top_p``.
    """

    weights: tuple[float, float] | None = None
    temperature: float = 1.0
    top_p: float = 0.0


def probabilities(logits: Tensor, pairs: Pairs) -> Tensor:
    """``(B, n · bits, 2)`` of logits ``(B or 2B, n, 2 · bits)``, cond rows first."""
    if pairs.temperature != 1.0:
        logits = logits / pairs.temperature
    if pairs.weights is not None:
        cond, null = logits.chunk(2)
        logits = pairs.weights[0] * cond + pairs.weights[1] * null
    logits = logits.reshape(logits.shape[0], -1, 2)
    kept = logits.softmax(-1)
    if not 0 < pairs.top_p < 1:
        return kept
    drop = kept.amin(-1, keepdim=True) <= 1 - pairs.top_p
    one = logits[..., 1:] >= logits[..., :1]  # of two as likely, the first is dropped
    return torch.where(drop, torch.cat([~one, one], -1).to(kept.dtype), kept)


def drawn(logits: Tensor, pairs: Pairs, clocks: Tensor) -> Tensor:
    """The definition: bits ``(B, n, bits)``, long.

    ``clocks`` ``(B, n · bits, 2)``: standard exponential numbers, one for every logit of the
    guided ones.
    """
    won = probabilities(logits, pairs) / clocks
    batch, bits = won.shape[0], logits.shape[2] // 2
    return (won[..., 1] > won[..., 0]).long().view(batch, -1, bits)


def can_draw(logits: Tensor, pairs: Pairs, clocks: Tensor) -> bool:
    """Whether the fused kernel takes these tensors."""
    rows = clocks.shape[0] * (1 if pairs.weights is None else 2)
    return (
        logits.dtype == clocks.dtype == torch.float32
        and logits.is_contiguous()
        and clocks.is_contiguous()
        and logits.shape[0] == rows
        and clocks.shape[1] * 2 == logits.shape[1] * logits.shape[2]
        and logits.numel() > 0
    )


def draw_pairs(logits: Tensor, pairs: Pairs, clocks: Tensor, kernels: Kernels) -> Tensor:
    """:func:`drawn` by the fused kernel where one is mounted and takes these tensors."""
    run = kernels.draw
    if run is not None and can_draw(logits, pairs, clocks):
        return run(logits, pairs, clocks)
    return drawn(logits, pairs, clocks)
