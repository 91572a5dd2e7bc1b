"""Renders scenes of coloured shapes with exact captions: training data and real pictures.

Some (colour, shape) pairs never occur in training, and some captions of two objects neither, so
that held-out prompts can ask for combinations nobody showed.

Shapes: pixels (N, 3, 128, 128) uint8, or larger where a side is given.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .captions import COLORS, POSITIONS, SHAPES, Asked, Scene, caption
from .shapes import shape_mask

SIDE = 128
HELD_OUT_PAIRS = 0.15  # share of (colour, shape) pairs
HELD_OUT_CAPTIONS = 0.10  # share of captions of two objects
GAP = 6  # pixels between objects at least
KIND_WEIGHTS = {
    "single_object": 0.08,
    "colors": 0.17,
    "two_object": 0.15,
    "counting": 0.2,
    "position": 0.2,
    "color_attr": 0.2,
}
SIZES = {1: (52, 88), 2: (44, 58), 3: (40, 52), 4: (40, 52)}  # pixels, by number of objects


def unseen_pairs() -> frozenset[tuple[str, str]]:
    """The (colour, shape) pairs kept out of training: the first 15 % by a hash of their names."""
    pairs = [(color, shape) for color in COLORS for shape in SHAPES]
    pairs.sort(key=lambda pair: hashlib.sha256(" ".join(pair).encode()).digest())
    return frozenset(pairs[: round(HELD_OUT_PAIRS * len(pairs))])


def held_out(text: str) -> bool:
    """Whether a caption of two objects is kept out of training, by a hash of its words."""
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:4], "big") < HELD_OUT_CAPTIONS * 2**32


def draw_scene(rng: random.Random, kind: str | None = None) -> Scene:
    """A scene as its caption says it, of a kind drawn by :data:`KIND_WEIGHTS` if none is given."""
    if kind is None:
        kind = rng.choices(list(KIND_WEIGHTS), list(KIND_WEIGHTS.values()))[0]
    color = rng.choice(list(COLORS))
    shape = rng.choice(SHAPES)
    if kind == "single_object":
        return Scene(kind, (Asked(shape),))
    if kind == "colors":
        return Scene(kind, (Asked(shape, color),))
    if kind == "counting":
        said = color if rng.random() < 0.3 else None
        return Scene(kind, (Asked(shape, said, rng.randint(2, 4)),))
    other = rng.choice([s for s in SHAPES if s != shape])
    second = rng.choice([c for c in COLORS if c != color])
    if kind == "color_attr":
        return Scene(kind, (Asked(shape, color), Asked(other, second)))
    if kind == "two_object":
        return Scene(kind, (Asked(shape), Asked(other)))
    objects = (Asked(shape), Asked(other))
    if rng.random() < 0.3:
        objects = (Asked(shape, color), Asked(other, second))
    return Scene(kind, objects, rng.choice(POSITIONS))


def training_scene(rng: random.Random) -> tuple[Scene, Scene]:
    """A scene for training, and the same with every colour decided."""
    unseen = unseen_pairs()
    while True:
        scene = draw_scene(rng)
        if len(scene.objects) == 2 and held_out(caption(scene)):
            continue
        decided = decide(scene, rng)
        if not any((a.color, a.shape) in unseen for a in decided.objects):
            return scene, decided


def decide(scene: Scene, rng: random.Random) -> Scene:
    """Give every object without a colour one."""
    objects = [replace(a, color=a.color or rng.choice(list(COLORS))) for a in scene.objects]
    return replace(scene, objects=tuple(objects))


@dataclass(frozen=True)
class Thing:
    """One object of a picture: where (pixels of a picture of :data:`SIDE`) and how it is lit."""

    shape: str
    color: str
    top: int
    left: int
    side: int
    shade: float
    light: float


@dataclass(frozen=True)
class Layout:
    """Everything that a picture of a scene is painted from. ``noise``: seed of the grain."""

    noise: int
    light: float
    slope: float
    tilt: float
    things: tuple[Thing, ...]


def lay_out(scene: Scene, rng: random.Random) -> Layout:
    """Places and lights of a decided scene."""
    noise = rng.getrandbits(64)
    light, slope = rng.uniform(120, 235), rng.uniform(-18, 18)
    tilt = rng.uniform(-18, 18)
    things = [
        Thing(
            *(asked.shape, asked.color or "red", *box, rng.uniform(0.04, 0.14)),
            light=rng.uniform(0.92, 1.05),
        )
        for asked, box in _placed(scene, rng)
    ]
    return Layout(noise, light, slope, tilt, tuple(things))


def paint(layout: Layout, side: int = SIDE) -> NDArray[np.uint8]:
    """A picture (side, side, 3): grey shaded background, shaded shapes, noise.

    ``side`` is a multiple of :data:`SIDE`.
    """
    grown = side // SIDE
    noise = np.random.default_rng(layout.noise)
    ramp = np.linspace(-1, 1, side, dtype=np.float32)
    grey = layout.light + layout.slope * ramp[:, None] + layout.tilt * ramp[None, :]
    picture = np.repeat(grey[..., None], 3, axis=2)
    for thing in layout.things:
        top, left, size = (grown * value for value in (thing.top, thing.left, thing.side))
        mask = shape_mask(thing.shape, size)[..., None]
        shade = 1 + thing.shade * np.linspace(1, -1, size, dtype=np.float32)
        color = np.array(COLORS[thing.color], np.float32) * shade[:, None, None]
        region = picture[top : top + size, left : left + size]
        region += mask * (color * thing.light - region)
    picture += noise.normal(0, 2.0, picture.shape).astype(np.float32)
    return picture.clip(0, 255).round().astype(np.uint8)


def render(scene: Scene, rng: random.Random, side: int = SIDE) -> NDArray[np.uint8]:
    """A picture (side, side, 3) of a decided scene."""
    return paint(lay_out(scene, rng), side)


def _placed(scene: Scene, rng: random.Random) -> list[tuple[Asked, tuple[int, int, int]]]:
    """Objects with (top, left, side), apart from each other and where the scene wants them."""
    wanted = [asked for asked in scene.objects for _ in range(asked.count)]
    low, high = SIZES[len(wanted)]
    while True:
        boxes: list[tuple[int, int, int]] = []
        for x, y, jitter_x, jitter_y in _places(scene.position, len(wanted), rng):
            side = rng.randint(low, high)
            left = round(x + rng.uniform(-jitter_x, jitter_x) - side / 2)
            top = round(y + rng.uniform(-jitter_y, jitter_y) - side / 2)
            boxes.append((top, left, side))
        if _inside(boxes) and _apart(boxes):
            return list(zip(wanted, boxes, strict=True))


def _places(
    position: str | None, count: int, rng: random.Random
) -> list[tuple[float, float, float, float]]:
    """Centres (x, y) and how far from them objects may be, in pixels: the middle, halves or
    quarters of the picture, in reading order unless a position is said."""
    near, far = SIDE / 4, 3 * SIDE / 4
    if count == 1:
        return [(SIDE / 2, SIDE / 2, 18, 18)]
    if count == 2:
        across = rng.random() < 0.5 if position is None else position in ("left of", "right of")
        if across:
            places = [(near, SIDE / 2, 4.0, 16.0), (far, SIDE / 2, 4.0, 16.0)]
        else:
            places = [(SIDE / 2, near, 16.0, 4.0), (SIDE / 2, far, 16.0, 4.0)]
        return places[::-1] if position in ("right of", "below") else places
    quarters = [(x, y, 5.0, 5.0) for y in (near, far) for x in (near, far)]
    return [quarters[i] for i in sorted(rng.sample(range(4), count))]


def _inside(boxes: Sequence[tuple[int, int, int]]) -> bool:
    return all(min(t, x) >= 2 and max(t, x) + side <= SIDE - 2 for t, x, side in boxes)


def _apart(boxes: Sequence[tuple[int, int, int]]) -> bool:
    for i, (top, left, side) in enumerate(boxes):
        for y, x, other in boxes[:i]:
            reach = GAP + (side if top < y else other), GAP + (side if left < x else other)
            if abs(top - y) < reach[0] and abs(left - x) < reach[1]:
                return False
    return True


def training_set(count: int, seed: int, side: int = SIDE) -> tuple[Tensor, list[str]]:
    """``count`` pictures (N, 3, side, side) uint8 with their captions, the same for a seed."""
    rng = random.Random(seed)
    pictures, texts = np.empty((count, side, side, 3), np.uint8), []
    for i in range(count):
        scene, decided = training_scene(rng)
        pictures[i] = render(decided, rng, side)
        texts.append(caption(scene))
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous(), texts
