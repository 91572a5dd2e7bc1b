"""The small diffusion head that ends HART: what the codes of the last scale leave out.

A residual MLP denoises every token alone, in a few steps of a cosine schedule with a learned range
of variance. Sources: MAR (Li et al., arXiv 2406.11838) ``diffloss.py``; Nichol & Dhariwal, arXiv
2102.09672; HART ``hart/modules/diffusion``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...kernels.linear import Linear

TRAINING_STEPS = 1000
VAE_SCALE = 0.6  # residuals were divided by it in training
FREQUENCIES = 256
Normal = Callable[[int], Tensor]  # width → (B·n, width) standard normal numbers


def sinusoids(t: Tensor) -> Tensor:
    """Cosines, then sines, ``(..., 256)`` of numbers ``(...)`` at 128 frequencies from 1 down."""
    half = FREQUENCIES // 2
    steps = torch.arange(half, dtype=torch.float32, device=t.device)
    angles = t.float()[..., None] * torch.exp(-math.log(10000) * steps / half)
    return torch.cat([angles.cos(), angles.sin()], -1)


class NumberEmbedding(nn.Module):
    """A number (a time, the index of a scale) as a vector."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(Linear(FREQUENCIES, width), nn.SiLU(), Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        return self.mlp(sinusoids(t).to(next(self.mlp.parameters()).dtype))


class DenoiserBlock(nn.Module):
    """A modulated two-layer MLP with a gate."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_ln = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(Linear(width, width), nn.SiLU(), Linear(width, width))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), Linear(width, 3 * width))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        shift, scale, gate = self.adaLN_modulation(y).chunk(3, dim=-1)
        return x + gate * self.mlp(self.in_ln(x) * (1 + scale) + shift)


class DenoiserEnd(nn.Module):
    """A modulated norm and the output layer."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.linear = Linear(width, out)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), Linear(width, 2 * width))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(y).chunk(2, dim=-1)
        return self.linear(F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift)


class Denoiser(nn.Module):
    """Noise and variance ``(N, 2C)`` of noisy residuals ``(N, C)``, each token alone."""

    def __init__(self, channels: int, condition: int, width: int, depth: int) -> None:
        super().__init__()
        self.time_embed = NumberEmbedding(width)
        self.cond_embed = Linear(condition, width)
        self.input_proj = Linear(channels, width)
        self.res_blocks = nn.ModuleList(DenoiserBlock(width) for _ in range(depth))
        self.final_layer = DenoiserEnd(width, 2 * channels)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """``condition`` ``(N, width)`` went through :attr:`cond_embed` already."""
        x, y = self.input_proj(x), self.time_embed(t) + condition
        for block in self.res_blocks:
            x = block(x, y)
        return self.final_layer(x, y)


@dataclass(frozen=True)
class DenoisingStep:
    """Constants of one step: its training time, and how x, noise and variance combine."""

    time: int
    recip: float
    recip_minus_one: float
    mean_start: float
    mean_x: float
    min_log: float
    max_log: float


def denoising_steps(count: int) -> tuple[DenoisingStep, ...]:
    """``count`` of the 1000 training times, the noisiest first, with their constants in float64."""
    alphas = _cosine_alphas()
    stride = (TRAINING_STEPS - 1) / max(1, count - 1)
    times = sorted({round(i * stride) for i in range(count)})
    kept = alphas[times]
    before = np.append(1.0, kept[:-1])
    betas = 1 - kept / before
    variance = betas * (1 - before) / (1 - kept)
    clipped = np.log(np.append(variance[1:2], variance[1:]) if count > 1 else betas)
    return tuple(
        DenoisingStep(
            time=times[i],
            recip=float(np.sqrt(1 / kept[i])),
            recip_minus_one=float(np.sqrt(1 / kept[i] - 1)),
            mean_start=float(betas[i] * np.sqrt(before[i]) / (1 - kept[i])),
            mean_x=float((1 - before[i]) * np.sqrt(1 - betas[i]) / (1 - kept[i])),
            min_log=float(clipped[i]),
            max_log=float(np.log(betas[i])),
        )
        for i in reversed(range(len(times)))
    )


def _cosine_alphas() -> np.ndarray:
    def bar(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [
        min(1 - bar((i + 1) / TRAINING_STEPS) / bar(i / TRAINING_STEPS), 0.999)
        for i in range(TRAINING_STEPS)
    ]
    return np.cumprod(1 - np.array(betas))


class DiffusionHead(nn.Module):
    """Draws residuals ``(N, C)`` on a condition for every token."""

    def __init__(self, channels: int, condition: int, width: int, depth: int) -> None:
        super().__init__()
        self.channels = channels
        self.net = Denoiser(channels, condition, width, depth)

    def draw(
        self,
        z: Tensor,
        strength: float | None,
        steps: tuple[DenoisingStep, ...],
        normal: Normal,
    ) -> Tensor:
        """Residuals ``(N, C)``.

        Args:
            z: conditions, ``(N, width)``, or ``(2N, width)``, cond then null, with a strength.
            strength: t of ``(1 + t)·cond - t·null`` on the predicted noise; None: one branch.
            normal: called once at the start and once a step.
        """
        condition = self.net.cond_embed(z)
        x = normal(self.channels)
        for number, step in enumerate(steps):
            t = torch.full((1,), step.time, device=z.device)
            if strength is None:
                eps, variance = self.net(x, t, condition).chunk(2, dim=1)
            else:
                cond, null = self.net(x.repeat(2, 1), t, condition).chunk(2)
                eps, variance = cond.chunk(2, dim=1)
                eps = eps * (1 + strength) - strength * null[:, : self.channels]
            start = (step.recip * x - step.recip_minus_one * eps).clamp(-1, 1)
            noise = normal(self.channels)  # also drawn, though not used, in the last step
            x = step.mean_start * start + step.mean_x * x
            if number + 1 < len(steps):
                share = (variance + 1) / 2
                log = share * step.max_log + (1 - share) * step.min_log
                x = x + (0.5 * log).exp() * noise
        return x * VAE_SCALE
