"""A file of prompts or labels is read to its end before the first generation."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from stagevar_runtime.errors import CalibrationError, StagevarError
from stagevar_runtime.pipeline import Pipeline

from .lines import numbered_lines

logger = logging.getLogger("stagevar_probe")

AT_ONCE = 64  # prompts that are encoded together
MANY = 256  # prompts whose reading is announced


def check_file(path: Path, pipeline: Pipeline) -> None:
    """Encode every prompt of a file, or see that every label is a class.

    Raises:
        CalibrationError: one cannot be drawn; names the file and the line.
    """
    rows = numbered_lines(path)
    if not rows:
        raise CalibrationError(f"{path}: no prompts or labels in it, expected one a line")
    if pipeline.model.info.classes:
        for number, text in rows:
            check_label(text, pipeline.model.info.classes, f"{path}, line {number}")
        return
    first: dict[str, int] = {}
    for number, text in rows:
        first.setdefault(text, number)
    if len(first) > MANY:
        logger.info("reading %d prompts of %s", len(first), path)
    texts = list(first)
    for begin in range(0, len(texts), AT_ONCE):
        part = texts[begin : begin + AT_ONCE]
        try:
            pipeline.read_condition(part)
        except StagevarError as error:
            culprit = _culprit(part, pipeline)
            if culprit is None:
                raise
            raise CalibrationError(f"{path}, line {first[culprit[0]]}: {culprit[1]}") from error


def check_label(text: str, classes: int, where: str) -> int:
    """The label that a line says. Raises CalibrationError unless it is a class."""
    try:
        label = int(text)
    except ValueError:
        label = -1
    if not 0 <= label < classes:
        raise CalibrationError(
            f"{where}: got {text[:40]!r}, this model takes class numbers from 0 to {classes - 1}"
        )
    return label


def _culprit(prompts: Sequence[str], pipeline: Pipeline) -> tuple[str, StagevarError] | None:
    """The first prompt that cannot be read by itself, and why."""
    for prompt in prompts:
        try:
            pipeline.read_condition([prompt])
        except StagevarError as error:
            return prompt, error
    return None
