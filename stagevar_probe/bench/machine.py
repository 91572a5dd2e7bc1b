"""What a device can do at best, measured, and what it is: the ceiling that `bench` quotes."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from stagevar_runtime.kernels.linear import backend, linear
from stagevar_runtime.loop.engine import start
from stagevar_runtime.loop.plan import Plan
from stagevar_runtime.model.protocol import Conditioning, ScaleModel

from ..measure.hardware import hardware, peak_memory_mb

PRODUCT_SIZE = {"cuda": 8192, "cpu": 2048}  # rows and columns
COPY_FLOATS = {"cuda": 2**28, "cpu": 2**25}


@torch.inference_mode()
def product_tflops(device: torch.device, dtype: torch.dtype) -> float:
    """Rate of one large matrix product, TFLOP/s, the better of torch's and ours."""
    size = PRODUCT_SIZE[device.type]
    a = torch.randn(size, size, device=device, dtype=dtype)
    b = torch.randn(size, size, device=device, dtype=dtype)
    ways: list[Callable[[], torch.Tensor]] = [lambda: a @ b]
    if backend(device, dtype) != "torch":
        ways.append(lambda: linear(a, b))
    return max(2 * size**3 / _best_s(device, way) / 1e12 for way in ways)


@torch.inference_mode()
def copy_gb_s(device: torch.device) -> float:
    """Rate of one large copy on the device, GB/s, bytes read and bytes written both counted."""
    source = torch.randn(COPY_FLOATS[device.type], device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _best_s(device, lambda: target.copy_(source)) / 1e9


def _best_s(device: torch.device, function: Callable[[], Any], repeats: int = 3) -> float:
    times = []
    for _ in range(repeats + 1):
        wait(device)
        begun = time.perf_counter()
        function()
        wait(device)
        times.append(time.perf_counter() - begun)
    return min(times[1:])


def decode_flops(model: ScaleModel, conditioning: Conditioning, plan: Plan) -> float:
    """FLOPs of decoding this batch, counted by PyTorch (convolutions and products)."""
    with torch.inference_mode():
        state = start(model, conditioning[:1], plan, 0)
        counter = FlopCounterMode(display=False)
        with counter:
            model.decode(state)
    return float(counter.get_total_flops() * conditioning.batch)


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def forget_peak(device: torch.device) -> None:
    """Start a new measurement of peak memory, where the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif os.access("/proc/self/clear_refs", os.W_OK):
        Path("/proc/self/clear_refs").write_text("5")  # Linux: forget the peak of the process


def peak_mb(model: ScaleModel) -> float:
    """Peak memory since :func:`forget_peak`, MB: of the device, or of the process on a CPU."""
    status = Path("/proc/self/status")
    if model.device.type == "cuda" or not status.exists():
        return peak_memory_mb(model)
    line = next(row for row in status.read_text().splitlines() if row.startswith("VmHWM"))
    return int(line.split()[1]) / 1e3


def describe_machine(model: ScaleModel) -> dict[str, Any]:
    """What it ran on, for the JSON."""
    out: dict[str, Any] = {**hardware(model), "cpus": os.cpu_count()}
    if model.device.type == "cpu":
        out["name"] = _cpu_name()
        out["products"] = backend(model.device, model.dtype)
        out["load_average"] = os.getloadavg()[0]
    return out


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    rows = info.read_text().splitlines() if info.exists() else []
    names = [row.partition(":")[2].strip() for row in rows if row.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
