"""Every error the toolkit raises on purpose: what was got, what was expected, what to do."""

from __future__ import annotations

import re

FAULTS = (
    *(KeyError, IndexError, ValueError, TypeError, AttributeError, AssertionError, OverflowError),
    *(ZeroDivisionError, RuntimeError, NotImplementedError, RecursionError, MemoryError),
)
"""What Python and PyTorch raise for a file in which names, shapes or values are not what they seem.
"""

COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def one_line(error: BaseException, named: bool = True, most: int = 160) -> str:
    """What somebody else's error says, short enough to stand inside our own.

    ``named``: with its type. It is cut after ``most`` characters.
    """
    name, words = type(error).__name__, " ".join(COLOURS.sub("", str(error)).split())
    line = f"{name}: {words}" if named and words else words or name
    return line if len(line) <= most else f"{line[: most - 3]}..."


class StagevarError(Exception):
    """Base of all errors below. ``exit_code`` is what the command line returns for it."""

    exit_code = 1


class UnsupportedModelError(StagevarError):
    """No registered family recognises the checkpoint, or a family lacks what was asked of it."""

    exit_code = 3


class CheckpointError(StagevarError):
    """A file cannot be read as a checkpoint: truncated, mislabelled, incomplete, or holding NaN."""

    exit_code = 1


class NotFiniteError(StagevarError):
    """A generation overflowed: logits, canvas or picture hold NaN or infinity."""


class ProfileError(StagevarError):
    """A profile cannot be read, or asks for something that cannot be done."""

    exit_code = 4


class ProfileMismatchError(ProfileError):
    """A profile belongs to another model. ``field``, ``expected`` and ``found`` say how."""

    def __init__(self, message: str, *, field: str, expected: object, found: object) -> None:
        super().__init__(message)
        self.field, self.expected, self.found = field, expected, found


class CalibrationError(StagevarError):
    """A calibration cannot go on: its state belongs to another job, or a metric failed."""

    exit_code = 1
