"""A rule that judges a picture by its caption, without any network.

What GenEval asks of photographs with a detector, asked of flat shapes by arithmetic, so that anyone
can recompute it: colour mask → connected components → best-fitting shape. The rules are GenEval's
(Ghosh et al., arXiv 2310.11513).

Shapes: image (3, H, W) in [0, 1]; mask (H, W) of booleans.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from .captions import COLORS, SHAPES, Asked, Scene, parse
from .shapes import shape_mask

MIN_CHROMA = 0.24  # of a coloured pixel: largest minus smallest channel; backgrounds are grey
MIN_AREA = 0.003  # of an object, as a share of the image
MAX_AREA = 0.6  # above it, it is the ground (the largest object drawn covers 0.47)
MIN_FIT = 0.68  # overlap (intersection over union) with the shape, below which it is none
MIN_PURITY = 0.6  # share of an object's pixels that have its colour
MIN_OFFSET = 0.06  # between centres, as a share of the side, for a position to hold
GRID = 32  # side of the grid that shapes are compared on


@dataclass(frozen=True)
class Found:
    """An object in a picture: ``fits`` (overlap with every shape), colour shares, centre (x, y)."""

    fits: dict[str, float]
    colors: dict[str, float]
    center: tuple[float, float]

    @property
    def shape(self) -> str | None:
        """The best-fitting shape, None where none fits."""
        best = max(self.fits, key=self.fits.__getitem__)
        return best if self.fits[best] >= MIN_FIT else None

    @property
    def color(self) -> str | None:
        """The colour most pixels have, None where it is mottled."""
        best = max(self.colors, key=self.colors.__getitem__)
        return best if self.colors[best] >= MIN_PURITY else None


@cache
def _templates() -> NDArray[np.bool_]:
    return np.stack([shape_mask(shape, GRID) > 0.5 for shape in SHAPES])


@cache
def _directions() -> NDArray[np.float32]:
    """Unit colour directions (8, 3), grey taken out: shading moves a colour along its own."""
    rgb = np.array(list(COLORS.values()), dtype=np.float32)
    rest = rgb - rgb.mean(1, keepdims=True)
    return rest / np.linalg.norm(rest, axis=1, keepdims=True)


def find_objects(image: Tensor) -> list[Found]:
    """Every coloured object of an image (3, H, W) in [0, 1]."""
    rgb = np.moveaxis(image.detach().float().cpu().numpy(), 0, -1)
    chroma = ndimage.uniform_filter(rgb.max(-1) - rgb.min(-1), 3)
    labels, _ = ndimage.label(chroma > MIN_CHROMA)
    rest = rgb - rgb.mean(-1, keepdims=True)
    nearest = (rest @ _directions().T).argmax(-1)
    found = []
    for index, box in enumerate(ndimage.find_objects(labels), 1):
        mask = labels[box] == index
        if not MIN_AREA <= mask.sum() / labels.size <= MAX_AREA:
            continue
        votes = np.bincount(nearest[box][mask], minlength=len(COLORS)) / mask.sum()
        y, x = (s.start + (s.stop - s.start) / 2 for s in box)
        found.append(
            Found(
                _fits(mask),
                dict(zip(COLORS, votes.tolist(), strict=True)),
                (x / rgb.shape[1], y / rgb.shape[0]),
            )
        )
    return found


def _fits(mask: NDArray[np.bool_]) -> dict[str, float]:
    """Overlap with every shape, both stretched to a common grid; long boxes fit less."""
    height, width = mask.shape
    rows = ((np.arange(GRID) + 0.5) * height / GRID).astype(int)
    columns = ((np.arange(GRID) + 0.5) * width / GRID).astype(int)
    small, templates = mask[rows][:, columns], _templates()
    both = (small & templates).sum((1, 2))
    either = (small | templates).sum((1, 2))
    squareness = min(1.0, 1.35 * min(height, width) / max(height, width))
    return dict(zip(SHAPES, (squareness * both / either).tolist(), strict=True))


def judge(image: Tensor, scene: Scene) -> bool:
    """Whether an image (3, H, W) in [0, 1] shows what a scene asks, by GenEval's rules.

    Every asked object is there (other objects may be too); counting asks for the exact number; a
    position holds between some pair of the asked objects.
    """
    found = find_objects(image)
    groups = [[f for f in found if _is(f, asked)] for asked in scene.objects]
    if scene.kind == "counting":
        return len(groups[0]) == scene.objects[0].count
    if not all(groups):
        return False
    if scene.position is None:
        return True
    first, second = groups
    return any(
        _holds(scene.position, a.center, b.center) for a in first for b in second if a is not b
    )


def _is(found: Found, asked: Asked) -> bool:
    return found.shape == asked.shape and asked.color in (None, found.color)


def _holds(position: str, a: tuple[float, float], b: tuple[float, float]) -> bool:
    right, down = a[0] - b[0], a[1] - b[1]
    offset = {"left of": -right, "right of": right, "above": -down, "below": down}[position]
    return offset > MIN_OFFSET


def closeness(image: Tensor, scene: Scene) -> float:
    """How near an image comes to passing, in [0, 1]: :func:`judge` with its thresholds softened.

    The mean over asked objects of overlap with the shape times share of the colour, each found
    object used once; a wrong number counts as a factor, and so does a wrong position.
    """
    found = find_objects(image)
    wanted = [asked for asked in scene.objects for _ in range(asked.count)]
    scores, free = [], list(found)
    chosen: list[Found] = []
    for asked in wanted:
        best = max(free, key=lambda f, a=asked: _likeness(f, a), default=None)  # type: ignore[misc]
        scores.append(0.0 if best is None else _likeness(best, asked))
        if best is not None:
            free.remove(best)
            chosen.append(best)
    value = sum(scores) / len(wanted)
    if scene.kind == "counting":
        there = sum(1 for f in found if _is(f, scene.objects[0]))
        value *= 0.5 ** abs(there - len(wanted))
    if scene.position is not None and len(chosen) == 2:
        value *= 1.0 if _holds(scene.position, chosen[0].center, chosen[1].center) else 0.5
    return value


def _likeness(found: Found, asked: Asked) -> float:
    # the difference to the best wrong shape tells neighbours apart (a circle half fits a heart)
    other = max(fit for shape, fit in found.fits.items() if shape != asked.shape)
    fit = min(1.0, max(0.0, 0.5 + 2.5 * (found.fits[asked.shape] - other)))
    fit *= min(1.0, found.fits[asked.shape] / MIN_FIT)
    return fit * (found.colors[asked.color] if asked.color else 1.0)


def passed(images: Tensor, prompts: Sequence[str]) -> list[bool]:
    """:func:`judge` of images (B, 3, H, W) by their captions."""
    return [judge(image, parse(prompt)) for image, prompt in zip(images, prompts, strict=True)]
