"""Coverage masks of the eight shapes."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw


@cache
def shape_mask(shape: str, side: int) -> NDArray[np.float32]:
    """Coverage (side, side) in [0, 1] of a shape that fills its square."""
    fine = side * 4
    image = Image.new("L", (fine, fine))
    draw, last = ImageDraw.Draw(image), fine - 1
    if shape in ("circle", "ring"):
        draw.ellipse((0, 0, last, last), fill=255)
        if shape == "ring":
            hole = round(0.26 * last)
            draw.ellipse((hole, hole, last - hole, last - hole), fill=0)
    elif shape == "heart":
        draw.polygon([(x * last, y * last) for x, y in _heart()], fill=255)
    else:
        draw.polygon([(x * last, y * last) for x, y in _POLYGONS[shape]], fill=255)
    small = image.resize((side, side), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32) / np.float32(255)


def _star() -> list[tuple[float, float]]:
    angles = np.pi * np.arange(10) / 5 - np.pi / 2
    radii = np.where(np.arange(10) % 2 == 0, 1.0, 0.45)
    return _fitted(radii * np.cos(angles), radii * np.sin(angles))


def _heart() -> list[tuple[float, float]]:
    t = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    up = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return _fitted(16 * np.sin(t) ** 3, -up)


def _fitted(x: NDArray[np.float64], y: NDArray[np.float64]) -> list[tuple[float, float]]:
    """Points moved and stretched to fill the unit square."""
    x, y = (x - x.min()) / np.ptp(x), (y - y.min()) / np.ptp(y)
    return list(zip(x.tolist(), y.tolist(), strict=True))


_A, _B = 0.32, 0.68  # the arms of a cross
_POLYGONS: dict[str, list[tuple[float, float]]] = {
    "square": [(0, 0), (1, 0), (1, 1), (0, 1)],
    "triangle": [(0.5, 0), (1, 1), (0, 1)],
    "diamond": [(0.5, 0), (1, 0.5), (0.5, 1), (0, 0.5)],
    "star": _star(),
    "cross": [
        *((_A, 0), (_B, 0), (_B, _A), (1, _A), (1, _B), (_B, _B)),
        *((_B, 1), (_A, 1), (_A, _B), (0, _B), (0, _A), (_A, _A)),
    ],
}
