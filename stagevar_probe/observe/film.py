"""The canvas after every scale of a generation, as pictures."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from stagevar_runtime.loop.engine import Generation, Observer
from stagevar_runtime.loop.plan import ScaleStep
from stagevar_runtime.model.protocol import ScaleModel, State


@dataclass
class Film:
    """One generation: ``frames[k]`` ``(B, 3, H, W)`` in [0, 1] after scale k, for those that ran;
    ``made`` has the times, which no frame is part of."""

    made: Generation
    frames: dict[int, Tensor]


@dataclass
class Filming(Observer):
    """Keeps every scale's canvas; they are decoded once the generation is done."""

    canvases: dict[int, Tensor] = field(default_factory=dict)
    state: State | None = None

    def advanced(self, state: State, step: ScaleStep, ids: Tensor) -> None:
        """A canvas is never written to again, so that it need not be copied."""
        self.canvases[step.scale.index], self.state = state.canvas, state

    @torch.inference_mode()
    def film(self, model: ScaleModel, made: Generation) -> Film:
        """The frames, decoded one scale at a time; the last is the picture itself."""
        assert self.state is not None
        *early, last = self.canvases
        frames = {k: model.decode(replace(self.state, canvas=self.canvases[k])) for k in early}
        return Film(made, frames | {last: made.images})
