"""Reads what training.data.emoji writes, to train on.

Shapes: pixels (N, 3, 128, 128) uint8.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from stagevar_probe.datasets.archive import open_archive
from stagevar_runtime.errors import CalibrationError
from stagevar_runtime.text.words import split_words

from . import DataError

REACH = 4  # pixels that a picture moves at most; the art stands further from the border
CHUNK = 1000  # pictures moved at once


class Captioned:
    """A zip of captioned pictures.

    Raises:
        DataError: there is no such file, or it is none of ours.
    """

    def __init__(self, path: Path) -> None:
        try:
            self.archive = open_archive(path)
        except CalibrationError as error:
            raise DataError(f"{error} (--emoji-share 0 trains on scenes only)") from error
        self.digest = self.archive.sha256[:16]

    def words(self) -> list[str]:
        """Every word of a caption, of held-out pictures too, sorted."""
        prompts = [picture.prompt for picture in self.archive.pictures]
        return sorted({word for prompt in prompts for word in split_words(prompt)})

    def captions(self, split: str) -> list[str]:
        """Captions of a split, in the order of :meth:`pixels`."""
        return [picture.prompt for picture in self.archive.of(split)]

    def pixels(self, split: str) -> Tensor:
        """Pictures of a split."""
        pictures = self.archive.of(split)
        if not pictures:
            raise DataError(f"{self.archive.path} has no picture of the split {split!r}")
        return self.archive.pixels(pictures)

    @cached_property
    def _training(self) -> tuple[Tensor, list[str]]:
        return self.pixels("train"), self.captions("train")

    def training_set(self, count: int, seed: int) -> tuple[Tensor, list[str]]:
        """``count`` training pictures with their captions, the same for a seed.

        All of them in a random order, then all again moved by a few pixels, and so on.
        """
        pixels, captions = self._training
        generator = torch.Generator().manual_seed(seed)
        rounds = -(-count // len(pixels))
        order = torch.cat([torch.randperm(len(pixels), generator=generator) for _ in range(rounds)])
        order, out = order[:count], torch.empty((count, *pixels.shape[1:]), dtype=torch.uint8)
        for start in range(0, count, CHUNK):
            index = order[start : start + CHUNK]
            part = pixels[index]
            first = max(0, len(pixels) - start)  # of these, so many are shown for the first time
            part[first:] = moved(part[first:], generator)
            out[start : start + CHUNK] = part
        return out, [captions[i] for i in order.tolist()]


def moved(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures on a plain ground, each moved by up to :data:`REACH` pixels either way."""
    side = pixels.shape[-1]
    if not len(pixels):
        return pixels
    wide = F.pad(pixels.float(), [REACH] * 4, mode="replicate").to(pixels.dtype)
    places = torch.randint(2 * REACH + 1, (len(pixels), 2), generator=generator).tolist()
    return torch.stack(
        [p[:, y : y + side, x : x + side] for p, (y, x) in zip(wide, places, strict=True)]
    )
