"""Classifier-free guidance: its strength at every scale, and how two branches become one."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import StagevarError
from ..model.protocol import ModelInfo

Weights = tuple[float, float]


def published_weights(
    info: ModelInfo, guidance: float | tuple[float, ...], count: int
) -> list[Weights]:
    """``(a, b)`` of ``a·cond + b·null`` at each of ``count`` scales, as the family publishes it.

    ``ramp`` (VAR, HART, STAR, Switti): t = g·k/(K-1), (1 + t)·cond - t·null.
    Held (HART): the last scale keeps the strength of the one before.
    ``linear`` (Infinity): g·cond + (1 - g)·null.
    """
    values = guidance if isinstance(guidance, tuple) else (guidance,) * count
    if len(values) != count:
        raise StagevarError(f"got {len(values)} guidance scales for {count} scales")
    if info.guidance == "linear":
        return [(g, 1 - g) for g in values]
    ramp = [g * (k / max(1, count - 1)) for k, g in enumerate(values)]
    if info.guidance_held and count > 1:
        ramp[-1] = values[-1] * ((count - 2) / (count - 1))
    return [(1 + t, -t) for t in ramp]


def plain_weights(strength: float) -> Weights:
    """``(a, b)`` for the textbook strength w of ``w·cond + (1 - w)·null``; 1 is no guidance."""
    return strength, 1 - strength


def combine(
    logits: Tensor,
    weights: Weights | None,
    difference: Tensor | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """``(2B, n, V')`` → ``(B, n, V')`` over the temperature; one branch alone (``weights`` None)
    passes through.

    ``difference`` ``(B, n, V')``: cond - null of an earlier scale or of some tokens, where
    ``logits`` hold cond alone. Weights sum to 1, so ``a·cond + b·null = cond - b·(cond - null)``.
    """
    if temperature != 1.0:
        logits = logits / temperature
        difference = None if difference is None else difference / temperature
    if weights is None:
        return logits
    if difference is not None:
        return torch.sub(logits, difference, alpha=weights[1])
    cond, null = logits.chunk(2)
    return weights[0] * cond + weights[1] * null
