"""Muon for stacks of equal matrices, and AdamW for the rest, without a wait for the device.

Sources: Muon (Jordan et al., 2024), whose Newton-Schulz coefficients these are; the rate is scaled
to AdamW's as in Moonlight (arXiv 2502.16982), so that one learning rate serves both.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
STEPS = 5


def orthogonal(matrices: Tensor) -> Tensor:
    """Matrices (N, r, c) with their singular values moved near 1; in bfloat16 on a GPU."""
    wide = matrices.shape[1] <= matrices.shape[2]
    x = matrices if wide else matrices.mT
    x = x.bfloat16() if x.is_cuda else x.float()
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    x = x.to(matrices.dtype)
    return x if wide else x.mT


class Muon:
    """Momentum, orthogonalised; ``decay``: of weights."""

    def __init__(
        self, parameters: Sequence[nn.Parameter], decay: float, momentum: float = 0.95
    ) -> None:
        self.decay, self.momentum = decay, momentum
        self.stacks: dict[torch.Size, list[nn.Parameter]] = {}
        for parameter in parameters:
            self.stacks.setdefault(parameter.shape, []).append(parameter)
        self.moving = {shape: torch.stack(own).detach() * 0 for shape, own in self.stacks.items()}

    def forget(self) -> None:
        """Set the momentum to zero."""
        for moving in self.moving.values():
            moving.zero_()

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """One step against the gradients."""
        for shape, own in self.stacks.items():
            gradients = torch.stack([p.grad for p in own if p.grad is not None])
            moving = self.moving[shape].lerp_(gradients, 1 - self.momentum)
            ahead = gradients.lerp(moving, self.momentum)  # Nesterov's
            scaled = orthogonal(ahead) * (0.2 * max(shape) ** 0.5)
            torch._foreach_mul_(own, 1 - rate * self.decay)
            torch._foreach_add_(own, list(scaled.unbind()), alpha=-rate)
