"""Paints training's scenes on the device, and moves emoji a little.

What stagevar_probe.datasets.scenes.render paints one by one, for a batch and in floating point.

Shapes: B pictures of side S, N scenes of up to J objects.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stagevar_probe.datasets.scenes import COLORS, SHAPES
from stagevar_probe.datasets.scenes.render import SIDE
from stagevar_probe.datasets.scenes.shapes import shape_mask

from ..data.layouts import Layouts

GRAIN = 2.0  # standard deviation of the noise, in levels of 255
SHIFT = 0.03  # of the side, that a picture moves at most
ZOOM = 0.06  # that it grows or shrinks by at most


class Painter:
    """Layouts on a device, painted by number."""

    def __init__(self, layouts: Layouts, pixels: int, device: str) -> None:
        self.pixels = pixels
        self.ground = torch.from_numpy(layouts.ground).to(device)
        self.boxes = torch.from_numpy(layouts.boxes).to(device).float() / SIDE
        self.looks = torch.from_numpy(layouts.looks).to(device).long()
        self.lights = torch.from_numpy(layouts.lights).to(device)
        # objects are 0.3 to 0.7 of the side: masks of half of it are neither blurred nor jagged
        masks = np.stack([shape_mask(shape, pixels // 2) for shape in SHAPES])
        self.masks = torch.from_numpy(masks).to(device)
        self.colors = torch.tensor(list(COLORS.values()), device=device).float()

    def __call__(self, numbers: Tensor) -> Tensor:
        """Pictures (B, 3, S, S) of scenes (B,), in [0, 255], with fresh grain."""
        ramp = torch.linspace(-1, 1, self.pixels, device=numbers.device)
        light, slope, tilt = self.ground[numbers][..., None, None].unbind(1)
        picture = (light + slope * ramp[:, None] + tilt * ramp).unsqueeze(1).repeat(1, 3, 1, 1)
        boxes, looks, lights = self.boxes[numbers], self.looks[numbers], self.lights[numbers]
        place = (torch.arange(self.pixels, device=numbers.device) + 0.5) / self.pixels
        for j in range(boxes.shape[1]):
            top, left, side = boxes[:, j, :, None].clamp_min(1e-3).unbind(1)
            down, across = ((place - start) / side for start in (top, left))  # (B, S) in the box
            mask = self._mask(down, across, looks[:, j, 0])
            shade, brightness = lights[:, j, :, None, None].unbind(1)
            shaded = 1 + shade * (1 - 2 * down[..., None])
            color = self.colors[looks[:, j, 1].clamp_min(0)][..., None, None]
            painted = color * (shaded * brightness)[:, None]
            picture = torch.lerp(picture, painted.expand_as(picture), mask)
        picture = picture + GRAIN * torch.randn_like(picture)
        return picture.clamp(0, 255)

    def _mask(self, down: Tensor, across: Tensor, shapes: Tensor) -> Tensor:
        """Coverage (B, 1, S, S) of shapes (B,), where pixels lie at (B, S) of their boxes."""
        grid = torch.stack(
            torch.broadcast_tensors(2 * across[:, None] - 1, 2 * down[..., None] - 1), -1
        )
        masks = self.masks[shapes.clamp_min(0)][:, None]
        drawn = F.grid_sample(masks, grid, mode="bilinear", align_corners=False)
        return drawn * (shapes >= 0)[:, None, None, None]


def moved(pictures: Tensor) -> Tensor:
    """Pictures (B, 3, S, S) on a plain ground, each a little larger or smaller and elsewhere."""
    batch, device = len(pictures), pictures.device
    zoom = 1 + ZOOM * (2 * torch.rand(batch, device=device) - 1)
    shift = 2 * SHIFT * (2 * torch.rand(batch, 2, device=device) - 1)
    theta = torch.zeros(batch, 2, 3, device=device)
    theta[:, 0, 0] = theta[:, 1, 1] = zoom
    theta[:, :, 2] = shift
    grid = F.affine_grid(theta, list(pictures.shape), align_corners=False)
    return F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)
