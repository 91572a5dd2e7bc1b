"""Compiled regions: one block, compiled once for each shape a generation has, and the decoder.

A block is the region, so that all blocks share their compiled code and the loop over scales stays
plain Python. Shapes are compiled as they are (``dynamic=False``): a generation has as many as it
has scales, which is more than PyTorch's default limit of 8, past which it would run eagerly without
a word. So the limit is raised and ``fullgraph=True`` turns whatever cannot be compiled into an
error.

The kernels of a region are launched one by one; :mod:`.graphs` records them.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import nn

from ..errors import StagevarError
from ..model.protocol import ScaleModel

logger = logging.getLogger("stagevar_runtime")

MODES = ("auto", "off", "max")
RECOMPILE_LIMIT = 1024  # shapes of one block: scales x row counts x kept tokens x batch sizes
LIMITS = (  # of one block and of all that share its code; the names before PyTorch 2.6 are second
    ("recompile_limit", "cache_size_limit"),
    ("accumulated_recompile_limit", "accumulated_cache_size_limit"),
)


def compile_model(model: ScaleModel, mode: str = "auto", backend: str | Any = "inductor") -> str:
    """Compile the blocks and the decoder of ``model`` in place; returns what was done, in words.

    Args:
        mode: ``off`` undoes an earlier call, ``auto`` compiles on CUDA only, ``max`` compiles on
            any device and tunes kernels. The first image of every new shape pays for compiling;
            PyTorch keeps the kernels on disk for the next process.
        backend: of ``torch.compile``.

    Raises:
        StagevarError: an unknown mode, or a family without blocks to compile.
    """
    if mode not in MODES:
        raise StagevarError(f"compile is {mode!r}, expected one of {', '.join(MODES)}")
    off = mode == "off" or (mode == "auto" and model.device.type != "cuda")
    regions = compiled_regions(model, needed=not off)
    for module in regions:
        module._compiled_call_impl = None
    if off:
        return "off" if mode == "off" else f"off (auto, {model.device.type})"
    _raise_limits()
    settings: dict[str, Any] = {"backend": backend, "fullgraph": True, "dynamic": False}
    if mode == "max" and backend == "inductor":
        settings["mode"] = "max-autotune-no-cudagraphs"
    for module in regions:
        module.compile(**settings)
    return f"{mode}: {len(regions)} regions, {backend if isinstance(backend, str) else 'own'}"


def compiled_regions(model: ScaleModel, needed: bool = True) -> list[nn.Module]:
    """The modules that are compiled: every block, then the decoder.

    Raises:
        StagevarError: blocks are ``needed`` and the family names none.
    """
    if not model.blocks and needed:
        raise StagevarError(
            f"the {model.info.family} family has no blocks to compile: use compile='off'"
        )
    return [*model.blocks, *([model.tokenizer.decoder] if model.tokenizer else [])]


def _raise_limits() -> None:
    """Allow a block as many shapes as a generation has. A setting of the process, said once."""
    config: Any = torch._dynamo.config
    for names in LIMITS:
        name = next((name for name in names if hasattr(config, name)), None)
        if name and getattr(config, name) < RECOMPILE_LIMIT:
            logger.info("torch._dynamo.config.%s raised to %d", name, RECOMPILE_LIMIT)
            setattr(config, name, RECOMPILE_LIMIT)
