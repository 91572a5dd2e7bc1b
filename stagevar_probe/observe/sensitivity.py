"""Observed guidance sensitivity: what the sampled distribution loses when guidance is dropped.

Two numbers a scale and branch (METHODS section 3a): the Jensen-Shannon divergence between the
guided distribution and the one left without guidance, and the share of draws that change when
both are drawn with the same noise. Both are per prompt, so intervals can be made.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from stagevar_runtime.errors import CalibrationError
from stagevar_runtime.model.sampling import mask_logits
from stagevar_runtime.options.guidance import Weights, combine

NoiseKind = Literal["gumbel", "exponential", "uniform"]

CHUNK = 1 << 22  # logits held in float64 at once


def as_pairs(logits: Tensor) -> Tensor:
    """Bit logits ``(rows, n, 2·bits)`` as ``(rows, n, bits, 2)``. Source: Infinity, BSQ heads."""
    if logits.shape[-1] % 2:
        raise CalibrationError(f"got {logits.shape[-1]} logits a token, expected pairs of bits")
    return logits.unflatten(-1, (-1, 2))


def js_divergence(logits_p: Tensor, logits_q: Tensor) -> Tensor:
    """Jensen-Shannon divergence in nats of two distributions given by their logits.

    ``(..., V)`` twice → ``(...)`` float64, between 0 and ln 2. Logits of -inf (excluded by top-k)
    are allowed, also where only one side has them; a row that is -inf throughout is refused.
    """
    if logits_p.shape != logits_q.shape:
        raise CalibrationError(f"got logits {tuple(logits_p.shape)} and {tuple(logits_q.shape)}")
    size = logits_p.shape[-1]
    rows = max(1, CHUNK // size)
    parts = [
        _js(p, q)
        for p, q in zip(
            logits_p.reshape(-1, size).split(rows),
            logits_q.reshape(-1, size).split(rows),
            strict=True,
        )
    ]
    return torch.cat(parts).view(logits_p.shape[:-1])


def _js(logits_p: Tensor, logits_q: Tensor) -> Tensor:
    log_p, log_q = logits_p.double().log_softmax(-1), logits_q.double().log_softmax(-1)
    if log_p.isnan().any() or log_q.isnan().any():
        raise CalibrationError("logits give no distribution: NaN, +inf, or all -inf in a row")
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    zero = log_p.new_zeros(())
    left = torch.where(log_p.isneginf(), zero, log_p.exp() * (log_p - log_m))
    right = torch.where(log_q.isneginf(), zero, log_q.exp() * (log_q - log_m))
    return ((left + right).sum(-1) / 2).clamp(0, math.log(2))


def gumbel_from(noise: Tensor, kind: NoiseKind) -> Tensor:
    """Standard Gumbel noise from itself, from Exp(1) draws, or from uniform draws in [0, 1)."""
    if kind == "gumbel":
        return noise
    tiny = torch.finfo(noise.dtype).tiny
    if kind == "uniform":
        top = 1 - torch.finfo(noise.dtype).eps / 2
        noise = -noise.clamp(tiny, top).log()
    elif kind != "exponential":
        raise CalibrationError(f"noise is {kind!r}, expected gumbel, exponential or uniform")
    return -noise.clamp(min=tiny).log()


def coupled_draw(logits: Tensor, noise: Tensor, kind: NoiseKind = "gumbel") -> Tensor:
    """One draw a token by the Gumbel trick: ``(..., V)`` → ids ``(...)``.

    ``noise`` has the shape of ``logits``. Exact samples of softmax(logits); two calls with the
    same noise differ only where the distributions make them differ. ``exponential`` noise gives
    what ``torch.multinomial`` gives for it.
    """
    if logits.shape != noise.shape:
        raise CalibrationError(f"noise is {tuple(noise.shape)}, expected {tuple(logits.shape)}")
    return (logits + gumbel_from(noise, kind)).argmax(-1)


def changed_ids(
    logits_p: Tensor, logits_q: Tensor, noise: Tensor, kind: NoiseKind = "gumbel"
) -> Tensor:
    """Share of draws that differ between two distributions under the same noise.

    ``(B, n, V)`` or, for bits, ``(B, n, bits, 2)`` → ``(B,)`` float64 (a draw is then one bit).
    """
    differ = coupled_draw(logits_p, noise, kind) != coupled_draw(logits_q, noise, kind)
    return differ.flatten(1).double().mean(1)


def observed_sensitivity(
    logits: Tensor,
    weights: Weights,
    temperature: float = 1.0,
    *,
    pairs: bool = False,
    delta: Tensor | None = None,
    noise: Tensor | None = None,
    kind: NoiseKind = "gumbel",
    top_k: int = 0,
    top_p: float = 0.0,
) -> dict[str, Tensor]:
    """Per image, how far each way of dropping guidance is from the guided distribution.

    ``logits`` ``(2B, n, V')`` raw, cond block then null block; ``weights`` ``(a, b)`` of
    ``a·cond + b·null``. ``pairs``: V' is two logits for each of V'/2 bits, and values are means
    over bits. ``delta`` ``(B, n, V')``: the last guided scale's cond - null, already resized.
    ``noise``: shaped like B images' logits (``(B, n, V')``, also with ``pairs``). ``top_k`` and
    ``top_p`` are applied to every distribution as the sampler does.

    Returns ``(B,)`` float64 on the CPU: ``cond``, ``null`` (and ``delta``) mean divergence a token
    in nats; with noise also ``changed_cond``, ``changed_null`` (and ``changed_delta``) shares.
    """
    if logits.shape[0] % 2:
        raise CalibrationError(f"got {logits.shape[0]} rows, expected the cond and null blocks")
    if temperature <= 0:
        raise CalibrationError(f"temperature is {temperature}, expected above 0")
    cond, null = logits.chunk(2)
    ways = {"cond": cond, "null": null}
    if delta is not None:
        ways["delta"] = cond - weights[1] * delta

    def ready(raw: Tensor) -> Tensor:
        raw = raw.float() / temperature
        return mask_logits(as_pairs(raw) if pairs else raw, top_k, top_p)

    guided = ready(combine(logits, weights))
    shaped = as_pairs(noise) if pairs and noise is not None else noise
    out: dict[str, Tensor] = {}
    for name, raw in ways.items():
        left = ready(raw)
        out[name] = js_divergence(guided, left).flatten(1).mean(1).cpu()
        if shaped is not None:
            out[f"changed_{name}"] = changed_ids(guided, left, shaped, kind).cpu()
    return out
