"""Figures as text, the same way in every table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stagevar_runtime.tables import columns

__all__ = ["NONE", "columns", "fidelity", "ranged", "speed"]

NONE = "-"


def ranged(interval: Sequence[float], form: str = ".3f") -> str:
    """A value with the ends of its interval: ``0.287 [0.238, 0.340]``."""
    return "{:{f}} [{:{f}}, {:{f}}]".format(*interval, f=form)


def speed(row: Mapping[str, Any], unit: str = "") -> list[str]:
    """Milliseconds an image, end to end, and how much faster than exact: end to end, loop."""
    return [
        f"{row['total_ms'] / row['batch']:.1f}",
        f"{row['speedup_total'][0]:.2f}{unit}",
        f"{row['speedup_loop'][0]:.2f}{unit}",
    ]


def fidelity(row: Mapping[str, Any], unit: str = "") -> list[str]:
    """Perceptual distance to exact, and PSNR."""
    near = row["perceptual"][0] if "perceptual" in row else 1 - row["ssim"][0]
    return [f"{near:.4f}", f"{row['psnr'][0]:.1f}{unit}"]
