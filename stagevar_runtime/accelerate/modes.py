"""What makes one model fast: compiled blocks, recorded graphs, a decoder in half precision.

``off``: none of them. ``graphs``: graphs and the decoder. ``auto``: these and compiled blocks, and
blocks that cannot be compiled run as they are. ``max``: these, kernels tuned, and failures are
errors. On a CPU only ``max`` does anything: it compiles.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import nn

from ..errors import StagevarError
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
        if self.mode == "off":
            return []
        graphs = self.graphs.notes() if self.graphs else []
        decoder = self.decoder.description() if self.decoder else []
        return [f"compile: {self.description}", *graphs, *decoder, *self.trouble]

    def attempt(self, model: ScaleModel, run: Callable[[], T]) -> T:
        """What ``run`` gives; in mode ``auto`` once more without blocks that cannot be compiled."""
        try:
            return run()
        except Exception as error:
            if self.mode != "auto" or not self.compiles:
                raise
            if not isinstance(error, torch._dynamo.exc.TorchDynamoException):
                raise
            self._without_compiler(model, error)
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
) -> Acceleration:
    """Make ``model`` fast in place; what an earlier call did is undone first.

    Args:
        mode: see the module. The first images of every new shape pay for it.
        backend: of ``torch.compile``.
        recorder: records on another device than CUDA (for tests).

    Raises:
        StagevarError: an unknown mode, or a family without blocks to compile.
    """
    if mode not in MODES:
        raise StagevarError(f"compile is {mode!r}, expected one of {', '.join(MODES)}")
    decoder = full_decoder(model)
    compile_model(model, "off")
    if mode != "off" and recorder is None and model.device.type == "cuda":
        recorder = CudaRecorder(model.device)
    half = None
    half_wanted = mode != "off" and recorder and model.dtype != torch.float32
    if half_wanted and model.tokenizer is not None and decoder is not None:
        model.tokenizer.decoder = half = HalfDecoder(decoder)
    said = compile_model(model, "off" if mode == "graphs" else mode, backend)
    compiles = not said.startswith("off")
    graphs = Graphs(model.info, recorder) if mode != "off" and recorder else None
    model.text_tile = TEXT_TILE if graphs or compiles else 1
    if graphs:
        said = f"{said}, graphs" if compiles else "graphs"
    elif mode == "graphs":
        said = f"off (graphs, {model.device.type})"
    return Acceleration(mode, said, compiles, graphs, half)


def full_decoder(model: ScaleModel) -> nn.Module | None:
    """The float32 decoder, put back where a half one stands for it; None where there is none."""
    if model.tokenizer is None:
        return None
    if isinstance(model.tokenizer.decoder, HalfDecoder):
        model.tokenizer.decoder = model.tokenizer.decoder.full
    return model.tokenizer.decoder
