"""How much low and high spatial frequencies still change."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from stagevar_runtime.errors import CalibrationError


def frequency_change(
    images_by_scale: Sequence[Tensor] | Tensor, cut: float = 0.25
) -> tuple[Tensor, Tensor]:
    """Energy of change between successive canvases, below and above a spatial frequency.

    ``images_by_scale``: K images ``(B, C, H, W)`` of one size, the decoded canvas after each
    scale. ``cut`` is the radius between low and high as a share of the Nyquist frequency.
    Returns ``(low, high)``, each ``(B, K-1)`` float64 on the CPU; column k is the change made by
    scale k + 1. Both are mean squares a value, so low + high is the mean squared difference.
    """
    if len(images_by_scale) < 2:
        raise CalibrationError(f"got {len(images_by_scale)} canvases, expected at least 2")
    if not 0 < cut < 1:
        raise CalibrationError(f"cut is {cut}, expected between 0 and 1")
    height, width = images_by_scale[0].shape[-2:]
    fy, fx = torch.fft.fftfreq(height), torch.fft.fftfreq(width)
    low_band = (fy[:, None].square() + fx.square()).sqrt() <= cut * 0.5
    lows, highs = [], []
    for before, after in itertools.pairwise(images_by_scale):
        if before.shape != after.shape:
            raise CalibrationError(f"canvases are {tuple(before.shape)} and {tuple(after.shape)}")
        change = torch.fft.fft2((after - before).float().cpu(), norm="ortho")
        energy = change.abs().double().square()
        size = energy[0].numel()
        lows.append((energy * low_band).sum((1, 2, 3)) / size)
        highs.append((energy * ~low_band).sum((1, 2, 3)) / size)
    return torch.stack(lows, 1), torch.stack(highs, 1)
