"""What makes one model fast: fused kernels, recorded graphs, a decoder in half precision.

``auto`` (the default of ``load``): all of these on CUDA, nothing on a CPU. ``off``: none of them.
``graphs``: graphs and the decoder with PyTorch's own kernels. ``max``: ``auto``, with blocks that
``torch.compile`` compiled (on any device) instead of the kernels they would run; the first image of
every shape takes minutes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import nn

from ..errors import StagevarError
from ..kernels.mounted import fused, mount
from ..kernels.settings import cudnn_first
from ..kernels.slots import NONE, Kernels
from ..model.protocol import ScaleModel
from .compiled import compile_model
from .graphs import Graphs
from .half_decoder import HalfDecoder
from .recorder import CudaRecorder, Recorder

logger = logging.getLogger("stagevar_runtime")

T = TypeVar("T")
MODES = ("off", "graphs", "auto", "max")
TEXT_TILE = 32  # text is padded to a multiple of this, so that prompts share shapes


@dataclass
class Acceleration:
    """What was done to a model, in words, and what a generation needs to use it."""

    mode: str = "off"
    description: str = "off"
    compiles: bool = False
    graphs: Graphs | None = None
    decoder: HalfDecoder | None = None
    trouble: list[str] = field(default_factory=list)

    def notes(self) -> list[str]:
        """For a summary: what runs how, and what could not."""
        idle = self.description.startswith("off") and not self.trouble
        if self.mode == "off" or (self.mode == "auto" and idle):
            return []
        graphs = self.graphs.notes() if self.graphs else []
        decoder = self.decoder.description() if self.decoder else []
        return [f"compile: {self.description}", *graphs, *decoder, *self.trouble]

    def attempt(self, model: ScaleModel, run: Callable[[], T]) -> T:
        """What ``run`` gives; once more without what failed: blocks that cannot be compiled, or
        graphs whose memory is wanted."""
        try:
            return run()
        except torch.OutOfMemoryError as error:
            if self.graphs is None or self.graphs.off:
                raise
            self.graphs.give_up(error)
        except torch._dynamo.exc.TorchDynamoException as error:
            if not self.compiles:
                raise
            self._without_compiler(model, error)
        if model.device.type == "cuda":
            torch.cuda.empty_cache()
        return run()

    def _without_compiler(self, model: ScaleModel, error: Exception) -> None:
        compile_model(model, "off")
        self.compiles, self.description = False, f"{self.description} (could not compile)"
        if self.graphs:
            self.graphs.clear()
        self.trouble.append(f"compiling failed: {type(error).__name__}")
        logger.warning("compiling failed, the blocks run as they are: %s", error)


def accelerate(
    model: ScaleModel,
    mode: str = "auto",
    backend: str | Any = "inductor",
    recorder: Recorder | None = None,
    kernels: Kernels | None = None,
) -> Acceleration:
    """Make ``model`` fast in place; what an earlier call did is undone first.

    Args:
        mode: see the module. The first images of every new shape pay for it.
        backend: of ``torch.compile``.
        recorder: records on another device than CUDA (for tests).
        kernels: run instead of those found to work on this device (for tests).

    Raises:
        StagevarError: an unknown mode, or a family without blocks to compile.
    """
    if mode not in MODES:
        raise StagevarError(f"compile is {mode!r}, expected one of {', '.join(MODES)}")
    decoder, cuda = full_decoder(model), model.device.type == "cuda"
    compile_model(model, "off")
    _mount(model, NONE)
    model.networks = None
    if mode == "off":
        model.text_tile = 1
        return Acceleration()
    trouble: list[str] = []
    if kernels is None:
        kernels = NONE
        if cuda and mode != "graphs":
            kernels, trouble = fused(model.device, model.dtype)
    recorder = CudaRecorder(model.device) if recorder is None and cuda else recorder
    half = None
    half_wanted = recorder and model.dtype != torch.float32
    if half_wanted and model.tokenizer is not None and decoder is not None:
        own = NONE if mode == "max" else kernels
        half = HalfDecoder(decoder, kernels=own, recorder=recorder)
        model.tokenizer.decoder = half
    said = []
    if compiles := mode == "max":
        said.append(compile_model(model, mode, backend))
        kernels = Kernels(draw=kernels.draw)
    if kernels != NONE:
        _mount(model, kernels)
        said.append(f"kernels {', '.join(kernels.names())}")
    graphs = Graphs(model.info, recorder) if recorder else None
    model.networks = graphs
    said += ["graphs"] * (graphs is not None)
    said += ["attention by cuDNN first"] * (cuda and cudnn_first(model.device))
    model.text_tile = TEXT_TILE if graphs or compiles else 1
    described = ", ".join(said) or f"off ({mode}, {model.device.type})"
    return Acceleration(mode, described, compiles, graphs, half, trouble)


def _mount(model: ScaleModel, kernels: Kernels) -> None:
    """Have the model and its transformer run ``kernels``, and its decoder too where it has no copy
    in half precision, which runs its own."""
    whole = model.dtype == torch.float32 or kernels == NONE
    for part in (model, getattr(model, "transformer", None), model.tokenizer if whole else None):
        if part is not None:
            mount(part, kernels)


def full_decoder(model: ScaleModel) -> nn.Module | None:
    """The float32 decoder, put back where a half one stands for it; None where there is none."""
    if model.tokenizer is None:
        return None
    if isinstance(model.tokenizer.decoder, HalfDecoder):
        model.tokenizer.decoder = model.tokenizer.decoder.full
    return model.tokenizer.decoder
