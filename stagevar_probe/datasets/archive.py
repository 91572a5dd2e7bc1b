"""An archive of captioned pictures: real ones to compare with, and which of them trained a model.

A zip of pictures (WebP, RGB, square), ``index.jsonl`` with one object a picture, and ``about.json``
that says their side. ``python -m training.data.shard`` writes one.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from stagevar_runtime.errors import CalibrationError

TRAIN, HELD_OUT_PAIR, HELD_OUT_CONCEPT = "train", "held_out_pair", "held_out_concept"
HELD_OUT = (HELD_OUT_PAIR, HELD_OUT_CONCEPT)
SPLITS = (TRAIN, *HELD_OUT)
MAKE = "python -m training.data.shard --output runs/pictures.zip"


@dataclass(frozen=True)
class Picture:
    """One line of the index.

    Attributes:
        file: its name in the archive.
        prompt: what a model is asked for it.
        concept: what it shows, by an identifier that all styles share; ``label`` in words.
        style: who drew it.
        group: of the concept.
        split: ``train``; ``held_out_pair``, where training had the concept and the style apart;
            ``held_out_concept``, where training had the concept in no style.
    """

    file: str
    prompt: str
    concept: str
    label: str
    style: str
    group: str
    split: str


@dataclass(frozen=True)
class Archive:
    """What an archive holds; pictures are read when asked for. ``sha256`` is the index's."""

    path: Path
    side: int
    pictures: tuple[Picture, ...]
    sha256: str

    def of(self, *splits: str) -> list[Picture]:
        """The pictures of splits, in the order of the index."""
        return [picture for picture in self.pictures if picture.split in splits]

    def read(self, pictures: Sequence[Picture]) -> Tensor:
        """Pictures ``(B, 3, side, side)`` in [0, 1]; raises as :meth:`pixels`."""
        return self.pixels(pictures).float().div(255)

    def pixels(self, pictures: Sequence[Picture]) -> Tensor:
        """Pictures ``(B, 3, side, side)`` uint8.

        Raises:
            CalibrationError: one cannot be read or has another size.
        """
        with zipfile.ZipFile(self.path) as file:
            return torch.stack([self._decoded(file, picture.file) for picture in pictures])

    def _decoded(self, file: zipfile.ZipFile, name: str) -> Tensor:
        try:
            with Image.open(io.BytesIO(file.read(name))) as picture:
                values = np.array(picture.convert("RGB"))
        except (OSError, zipfile.BadZipFile, UnidentifiedImageError) as error:
            raise CalibrationError(f"{self.path}: {name} is no picture ({error})") from error
        if values.shape[:2] != (self.side, self.side):
            raise CalibrationError(
                f"{self.path}: {name} is {values.shape[0]}x{values.shape[1]}, about.json says "
                f"{self.side}x{self.side}"
            )
        return torch.from_numpy(values).permute(2, 0, 1)


def open_archive(path: Path | str) -> Archive:
    """Read the index of an archive, and check it.

    Raises:
        CalibrationError: there is no such file, it is no such archive, a line lacks a field or
            says an unknown split, or names a picture that is not there.
    """
    path = Path(path)
    if not path.is_file():
        raise CalibrationError(f"{path}: no such file, expected an archive of pictures: {MAKE}")
    try:
        with zipfile.ZipFile(path) as file:
            names = set(file.namelist())
            index = file.read("index.jsonl")
            side = json.loads(file.read("about.json"))["side"]
        lines = index.decode().splitlines()
    except (zipfile.BadZipFile, KeyError, ValueError, TypeError, OSError) as error:
        raise CalibrationError(
            f"{path}: no archive of captioned pictures ({error}); expected a zip with index.jsonl "
            f"and about.json, as made by {MAKE}"
        ) from error
    if not isinstance(side, int) or side < 1:
        raise CalibrationError(f"{path}: about.json says side {side!r}, expected pixels")
    pictures = tuple(_picture(f"{path}: index.jsonl", i, line) for i, line in enumerate(lines, 1))
    if absent := [picture.file for picture in pictures if picture.file not in names]:
        raise CalibrationError(
            f"{path}: {len(absent)} pictures of the index are not in it, the first {absent[0]!r}"
        )
    if not pictures:
        raise CalibrationError(f"{path}: index.jsonl is empty, expected a line a picture")
    return Archive(path, side, pictures, hashlib.sha256(index).hexdigest())


def _picture(where: str, number: int, line: str) -> Picture:
    names = [one.name for one in fields(Picture)]
    try:
        row: dict[str, Any] = json.loads(line)
        picture = Picture(**{name: row[name] for name in names})
        fault = next((n for n in names if not isinstance(row[n], str)), None)
    except (ValueError, KeyError, TypeError) as error:
        raise CalibrationError(
            f"{where}, line {number}: {error!r}; expected an object with {', '.join(names)}"
        ) from error
    if fault:
        raise CalibrationError(f"{where}, line {number}: {fault} is {row[fault]!r}, expected text")
    if picture.split not in SPLITS:
        raise CalibrationError(
            f"{where}, line {number}: split {picture.split!r}, expected one of {', '.join(SPLITS)}"
        )
    return picture
