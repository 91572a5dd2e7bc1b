"""What machine this is, and how much memory was used."""

from __future__ import annotations

import platform
from collections.abc import Mapping

import torch

from stagevar_runtime.model.protocol import ScaleModel
from stagevar_runtime.summary import peak_memory

Hardware = Mapping[str, str | int | float | bool]


def hardware(model: ScaleModel) -> dict[str, str | int | float | bool]:
    """What the measurements ran on, for the profile."""
    out: dict[str, str | int | float | bool] = {
        "device": str(model.device.type),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
    }
    if model.device.type == "cuda":
        out["name"] = torch.cuda.get_device_name(model.device)
    return out


def dtype_name(model: ScaleModel) -> str:
    """``float32``, ..."""
    return str(model.dtype).removeprefix("torch.")


def peak_memory_mb(model: ScaleModel) -> float:
    """Peak memory so far in MB: of the device, or of the process on a CPU."""
    return peak_memory(model.device)[0]
