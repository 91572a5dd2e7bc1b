"""Suites of prompts that a model is scored by, found by name."""

from __future__ import annotations

from pathlib import Path

from stagevar_runtime.errors import CalibrationError

from ..datasets.archive import MAKE, open_archive
from .suite import Kind, Suite

__all__ = ["SUITES", "Kind", "Suite", "fault_of", "find_suite"]

SUITES = ("scenes", "emoji")
PICTURED = ("emoji",)  # suites that need an archive of pictures


def fault_of(name: str, pictures: Path | None) -> str | None:
    """What is wrong with asking for a suite like that, if anything."""
    if name not in SUITES:
        return f"suite {name!r}, expected one of {', '.join(SUITES)}"
    if name in PICTURED and pictures is None:
        return f"suite {name} needs real pictures: --pictures FILE, made by {MAKE}"
    if name not in PICTURED and pictures is not None:
        return f"suite {name} renders its own pictures, got --pictures {pictures}"
    return None


def find_suite(name: str, pictures: Path | None = None) -> Suite:
    """A suite by name; ``pictures``: the archive, for one that needs it.

    Raises:
        CalibrationError: no such suite, or no archive that it can use.
    """
    if fault := fault_of(name, pictures):
        raise CalibrationError(fault)
    if pictures is not None:
        from .emoji import emoji_suite

        return emoji_suite(open_archive(pictures))
    from .scenes import scenes_suite

    return scenes_suite()
