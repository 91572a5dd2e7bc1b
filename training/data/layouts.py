"""Where the objects of training's scenes stand, as arrays: what a scene is painted from, on a GPU.

Shapes: N scenes, up to 4 objects each.
"""

from __future__ import annotations

import io
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stagevar_probe.datasets.scenes import COLORS, SHAPES, caption
from stagevar_probe.datasets.scenes.prompts import TRAINING_SEED
from stagevar_probe.datasets.scenes.render import lay_out, training_scene

OBJECTS = 4
FILES = ("scenes.npz", "scenes.json")


@dataclass(frozen=True)
class Layouts:
    """N scenes.

    Attributes:
        ground: (N, 3) light, slope, tilt of the background, in levels of 255.
        boxes: (N, 4, 3) top, left, side in pixels of a picture of 128.
        looks: (N, 4, 2) number of the shape, number of the colour; shape -1: no object.
        lights: (N, 4, 2) shade from top to bottom, brightness.
        caption: (N,) number of the caption.
        captions: every caption once.
    """

    ground: NDArray[np.float32]
    boxes: NDArray[np.int16]
    looks: NDArray[np.int8]
    lights: NDArray[np.float32]
    caption: NDArray[np.int32]
    captions: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.caption)

    def files(self) -> dict[str, bytes]:
        """As members of an archive."""
        buffer = io.BytesIO()
        np.savez_compressed(
            buffer,
            ground=self.ground.astype(np.float16),
            boxes=self.boxes,
            looks=self.looks,
            lights=self.lights.astype(np.float16),
            caption=self.caption,
        )
        return {FILES[0]: buffer.getvalue(), FILES[1]: json.dumps(self.captions).encode()}

    @classmethod
    def read(cls, files: Mapping[str, bytes]) -> Layouts:
        """Of members of an archive."""
        with np.load(io.BytesIO(files[FILES[0]]), allow_pickle=False) as arrays:
            return cls(
                ground=arrays["ground"].astype(np.float32),
                boxes=arrays["boxes"],
                looks=arrays["looks"],
                lights=arrays["lights"].astype(np.float32),
                caption=arrays["caption"],
                captions=tuple(json.loads(files[FILES[1]])),
            )


def draw_layouts(count: int, seed: int = TRAINING_SEED) -> Layouts:
    """``count`` scenes for training: no held-out caption, no held-out pair of colour and shape."""
    rng, numbers = random.Random(seed), dict[str, int]()
    shapes = {shape: i for i, shape in enumerate(SHAPES)}
    colors = {color: i for i, color in enumerate(COLORS)}
    ground, caption_of = np.zeros((count, 3), np.float32), np.zeros(count, np.int32)
    boxes, looks = np.zeros((count, OBJECTS, 3), np.int16), np.full((count, OBJECTS, 2), -1, "i1")
    lights = np.zeros((count, OBJECTS, 2), np.float32)
    for i in range(count):
        scene, decided = training_scene(rng)
        layout = lay_out(decided, rng)
        ground[i] = layout.light, layout.slope, layout.tilt
        caption_of[i] = numbers.setdefault(caption(scene), len(numbers))
        for j, thing in enumerate(layout.things):
            boxes[i, j] = thing.top, thing.left, thing.side
            looks[i, j] = shapes[thing.shape], colors[thing.color]
            lights[i, j] = thing.shade, thing.light
    return Layouts(ground, boxes, looks, lights, caption_of, tuple(numbers))
