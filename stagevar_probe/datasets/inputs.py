"""What a model is asked to draw while it is measured: balanced labels, or prompts."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path

import torch

from stagevar_runtime.errors import CalibrationError
from stagevar_runtime.model.protocol import Conditioning, ScaleModel

from .lines import lines_of, prompt_of, read_lines, rows_of

__all__ = [
    "Inputs",
    "balanced_labels",
    "builtin_prompts",
    "given_labels",
    "prompts_beside",
    "prompts_from",
    "read_lines",
    "split_prompts",
]

HELD_OUT_SEED = 1_000_003  # held-out images never share a seed with calibration images

Encode = Callable[[Sequence[str]], Conditioning]


@dataclass(frozen=True)
class Inputs:
    """``items`` to draw (class labels or prompts), each with its own seed.

    ``name`` and ``sha256`` of the items go into the profile.
    """

    name: str
    items: tuple[int | str, ...]
    seeds: tuple[int, ...]
    encode: Encode | None = None

    def __len__(self) -> int:
        return len(self.items)

    @property
    def sha256(self) -> str:
        """Hash of the items, in order."""
        return hashlib.sha256(json.dumps(self.items).encode()).hexdigest()

    def chunk(self, start: int, size: int) -> Inputs:
        """``size`` items from ``start`` on."""
        part = slice(start, start + size)
        return Inputs(self.name, self.items[part], self.seeds[part], self.encode)

    def condition(self, model: ScaleModel) -> Conditioning:
        """The model's conditioning of all items."""
        if self.encode is not None:
            return self.encode([str(item) for item in self.items])
        return model.condition(labels=torch.tensor([int(item) for item in self.items]))


def balanced_labels(model: ScaleModel, count: int, seed: int, held_out: bool = False) -> Inputs:
    """``count`` class labels, every class as often as the others, each with a seed of its own.

    Fewer images than classes are spread over all of them, and so is every first part of them.
    """
    classes = model.info.classes
    stride = 1 if count >= classes else round(0.618 * classes)
    while math.gcd(stride, classes) > 1:
        stride += 1
    start = (HELD_OUT_SEED if held_out else 0) + 7919 * seed
    return Inputs(
        name="balanced-labels",
        items=tuple(i * stride % classes for i in range(count)),
        seeds=tuple(start + i for i in range(count)),
    )


def prompts_from(
    lines: Sequence[str], name: str, count: int, seed: int, encode: Encode, held_out: bool = False
) -> Inputs:
    """``count`` prompts, the list repeated with new seeds when it is shorter."""
    if not lines:
        raise CalibrationError(f"{name}: no prompts in it, expected one a line")
    start = (HELD_OUT_SEED if held_out else 0) + 7919 * seed
    return Inputs(
        name,
        tuple(lines[i % len(lines)] for i in range(count)),
        tuple(start + i for i in range(count)),
        encode,
    )


def builtin_prompts(held_out: bool) -> list[str]:
    """The project's own prompts, 64 to calibrate with or 64 held out: eight of each of GenEval's
    six kinds, eight scenes, eight styles and long ones."""
    with as_file(files("stagevar_probe.datasets.prompts") / "builtin.jsonl") as path:
        return split_prompts(path, held_out)


def prompts_beside(checkpoint: Path) -> Path | None:
    """``model.prompts.jsonl`` beside ``model.pth``: the prompts a model was made for."""
    path = checkpoint.with_suffix(".prompts.jsonl")
    return path if checkpoint.is_file() and path.is_file() else None


def split_prompts(path: Path, held_out: bool) -> list[str]:
    """The prompts of a file whose lines say ``"split": "calibration"`` or ``"held_out"``.

    Raises:
        CalibrationError: a line is no such object, or the split has none.
    """
    wanted = "held_out" if held_out else "calibration"
    rows = [(f"{path}, line {n}", row) for n, row in rows_of(path, lines_of(path))]
    for where, row in rows:
        if "split" not in row:
            raise CalibrationError(f"{where}: expected lines of JSON with 'prompt' and 'split'")
    found = [prompt_of(row, where) for where, row in rows if row["split"] == wanted]
    if not found:
        raise CalibrationError(f'{path}: no line says "split": "{wanted}"')
    return found


def prompt_tags(path: Path) -> dict[str, str]:
    """The kind of every prompt of such a file, where its line has a ``tag``."""
    rows = [(f"{path}, line {n}", row) for n, row in rows_of(path, lines_of(path))]
    return {prompt_of(row, where): str(row["tag"]) for where, row in rows if "tag" in row}


def given_labels(
    model: ScaleModel, lines: Sequence[str], name: str, count: int, seed: int, held_out: bool
) -> Inputs:
    """Labels of a file, repeated with new seeds to ``count``."""
    try:
        labels = [int(line) for line in lines]
    except ValueError as error:
        raise CalibrationError(f"{name}: {error}; this model takes class numbers") from error
    model.condition(labels=labels)
    start = (HELD_OUT_SEED if held_out else 0) + 7919 * seed
    items = tuple(labels[i % len(labels)] for i in range(count))
    return Inputs(name, items, tuple(start + i for i in range(count)))
