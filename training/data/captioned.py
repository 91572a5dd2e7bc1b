"""Reads what training.data.emoji writes, to train on.

Shapes: pixels (N, 3, 128, 128) uint8.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

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
        self.path = path
        if not path.is_file():
            raise DataError(
                f"no file {path}. Make it with: python -m training.data.emoji --output {path} "
                "(or train on scenes only with --emoji-share 0)"
            )
        try:
            with zipfile.ZipFile(path) as file:
                index = file.read("index.jsonl")
            self.rows = [json.loads(line) for line in index.splitlines()]
            self.prompts = [row["prompt"] for row in self.rows]
        except (zipfile.BadZipFile, KeyError, ValueError) as error:
            raise DataError(
                f"{path} is no zip of captioned pictures ({error}); make it again with: "
                f"python -m training.data.emoji --output {path}"
            ) from error
        self.digest = hashlib.sha256(index).hexdigest()[:16]

    def words(self) -> list[str]:
        """Every word of a caption, of held-out pictures too, sorted."""
        return sorted({word for prompt in self.prompts for word in split_words(prompt)})

    def captions(self, split: str) -> list[str]:
        """Captions of a split, in the order of :meth:`pixels`."""
        return [row["prompt"] for row in self.rows if row["split"] == split]

    def pixels(self, split: str) -> Tensor:
        """Pictures of a split."""
        pictures = []
        with zipfile.ZipFile(self.path) as file:
            for row in self.rows:
                if row["split"] == split:
                    with Image.open(io.BytesIO(file.read(row["file"]))) as picture:
                        pictures.append(np.asarray(picture.convert("RGB")))
        if not pictures:
            raise DataError(f"{self.path} has no picture of the split {split!r}")
        return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()

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
