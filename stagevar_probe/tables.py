"""Figures as text, the same way in every table."""

from __future__ import annotations

from collections.abc import Sequence

from stagevar_runtime.tables import columns

__all__ = ["NONE", "columns", "ranged"]

NONE = "-"


def ranged(interval: Sequence[float], form: str = ".3f") -> str:
    """A value with the ends of its interval: ``0.287 [0.238, 0.340]``."""
    return "{:{f}} [{:{f}}, {:{f}}]".format(*interval, f=form)
