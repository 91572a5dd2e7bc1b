"""How far a generation is from where its profile was measured: what differs, in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..model.sampling import Sampling
from .schema import Calibration

TIMES = {"guidance": 1.25, "temperature": 1.25, "top_k": 2.0, "batch": 4.0}  # that are still near
TOP_P = 0.05  # that is still near


@dataclass(frozen=True)
class Use:
    """What a generation runs with. ``device``: its kind."""

    sampling: Sampling
    dtype: str
    device: str
    batch: int


def far_from(calibration: Calibration, use: Use) -> dict[str, str]:
    """By name, what is far from the conditions of the measurements: ``guidance 9 (measured: 3)``.

    What a profile does not say is near.
    """
    used = use.sampling
    pairs: dict[str, tuple[Any, Any]] = {
        "guidance": (_most(used.guidance), _most(calibration.guidance)),
        "temperature": (used.temperature, calibration.sampling.temperature),
        "top_k": (_most(used.top_k), _most(calibration.sampling.top_k)),
        "top_p": (used.top_p or 1.0, calibration.sampling.top_p),
        "dtype": (use.dtype, calibration.dtype),
        "device": (use.device, _kind(calibration)),
        "batch": (use.batch, calibration.hardware.get("batch")),
    }
    return {
        name: f"{name} {_said(here)} (measured: {_said(there)})"
        for name, (here, there) in pairs.items()
        if there is not None and not _near(name, here, there)
    }


def _near(name: str, here: Any, there: Any) -> bool:
    if isinstance(here, str) or isinstance(there, str):
        return bool(here == there)
    if name == "top_p":
        return bool(abs(here - (there or 1.0)) <= TOP_P)
    if here <= 0 or there <= 0:  # switched off, or a strength that has no ratio
        return bool(here == there)
    return bool(max(here / there, there / here) <= TIMES[name])


def _kind(calibration: Calibration) -> str | None:
    said = calibration.hardware.get("device")
    return None if said is None else str(said).partition(":")[0]


def _most(value: Any) -> Any:
    return max(value) if isinstance(value, tuple) else value


def _said(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
