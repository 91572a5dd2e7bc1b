"""``stagevar-probe doctor``: what is here, what is fast and why, what is missing."""

from __future__ import annotations

import platform
import shutil
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

import click
import torch

import stagevar_runtime
from stagevar_runtime.accelerate.modes import MODES
from stagevar_runtime.kernels.linear import backend
from stagevar_runtime.kernels.mounted import fused
from stagevar_runtime.kernels.quantised import PRECISIONS, obstacle
from stagevar_runtime.tables import columns

from .options import Printer, printing
from .parameters import DTYPES

PACKAGES = ("torch", "numpy", "safetensors", "pydantic", "pillow", "click", "scipy", "scikit-learn")
EXTRAS = {  # what each brings, and the module that says whether it is there
    "hub": ("repositories of the Hugging Face Hub", "huggingface_hub"),
    "t5": ("prompts for Infinity", "transformers"),
    "clip": ("prompts for Switti and STAR", "transformers"),
    "qwen": ("prompts for HART", "transformers"),
    "metrics": ("metric networks inside wheels", "efficientnet_lite_pytorch"),
    "metrics-net": ("CLIP score and FID", "torchmetrics"),
    "studio": ("the page of stagevar-probe studio", "nicegui"),
}


@click.command()
@printing
def doctor(printer: Printer) -> int:
    """Say what is here: versions, devices, what is fast and why, what is missing.

    Kernels are tried and products timed on the device itself, which takes a second or two.
    """
    found = {
        "versions": versions(),
        "devices": devices(),
        "speed": speed(),
        "extras": extras(),
    }
    missing = [name for name, there in found["extras"].items() if not there]
    lines = [columns([["versions", ", ".join(f"{k} {v}" for k, v in found["versions"].items())]])]
    lines += [f"{name}: {said}" for name, said in found["devices"].items()]
    lines += ["", "what is fast here", columns([[k, v] for k, v in found["speed"].items()])]
    lines += ["", "extras"]
    lines.append(
        columns(
            [
                [name, EXTRAS[name][0], "there" if there else f"pip install 'stagevar[{name}]'"]
                for name, there in found["extras"].items()
            ]
        )
    )
    printer.show(found | {"missing": missing}, *lines)
    return 0


def versions() -> dict[str, str]:
    """Of Python, this project and what it stands on; those that are not there are left out."""
    said = {"stagevar": stagevar_runtime.__version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            said[name] = version(name)
        except PackageNotFoundError:
            continue
    return said


def devices() -> dict[str, str]:
    """Every device PyTorch could run on, the one taken by default first."""
    said = {}
    for i in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(i)
        said[f"cuda:{i}"] = (
            f"{card.name}, {card.total_memory / 1e9:.0f} GB, compute {card.major}.{card.minor}"
        )
    threads = torch.get_num_threads()
    said["cpu"] = f"{platform.machine()}, {threads} threads, {_instructions()}"
    return said


def _instructions() -> str:
    return str(torch.backends.cpu.get_cpu_capability())


def speed(device: torch.device | None = None) -> dict[str, str]:
    """What runs fast on ``device`` (None: the default one) and why the rest does not."""
    on_cuda = torch.cuda.is_available()
    device = device or torch.device("cuda" if on_cuda else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    name = next(name for name, kind in DTYPES.items() if kind == dtype)
    said = {"default": f"{device.type}, {name}", "products": backend(device, dtype)}
    if device.type == "cuda":
        kernels, notes = fused(device, dtype)
        said["kernels"] = ", ".join(kernels.names()) or "none"
        said |= {f"note {i}": note for i, note in enumerate(notes, 1)}
        said["graphs"] = "yes: compile='graphs', 'auto' or 'max'"
    else:
        said["kernels"] = "none: fused kernels need CUDA"
        said["graphs"] = "none: recorded graphs need CUDA"
    said["compiler"] = _compiler(device)
    for kind in PRECISIONS:
        why = obstacle(kind, device, dtype)
        said[kind] = f"no gain: {why}" if why else "faster here than the model's own products"
    return said


def _compiler(device: torch.device) -> str:
    """Whether ``compile=`` has what it needs."""
    if device.type == "cuda":
        there = find_spec("triton") is not None
        return f"modes {', '.join(MODES)}" if there else "no: pip install triton"
    there = any(shutil.which(name) for name in ("c++", "g++", "clang++"))
    return "compile='max' alone compiles on a CPU" if there else "no: install a C++ compiler"


def extras() -> dict[str, Any]:
    """Whether what each extra brings can be imported."""
    return {name: find_spec(module) is not None for name, (_, module) in EXTRAS.items()}
