"""Watches the exact path: guidance sensitivity, feature ranks, the picture after every scale."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from stagevar_runtime.loop.engine import Observer
from stagevar_runtime.loop.plan import ScaleStep
from stagevar_runtime.model.protocol import ScaleModel, ScaleSpec, State
from stagevar_runtime.model.sampling import Sampling
from stagevar_runtime.options.tokens import resize

from .rank import RankMeter
from .sensitivity import observed_sensitivity

NOISE_KEY = 77  # keeps this noise apart from the draws of the generation


class ExactObserver(Observer):
    """Collects, per image and scale, what METHODS section 3 asks of one exact run.

    ``sensitivity[scale][name]`` ``(B,)``; ``ranks`` for at most ``rank_images`` images;
    ``pictures[scale]`` ``(B, 3, H, W)``: the canvas decoded after every scale.
    """

    def __init__(
        self,
        model: ScaleModel,
        sampling: Sampling,
        rank_images: int,
        decode: Callable[[State], Tensor] | None = None,
    ) -> None:
        self.model, self.sampling, self.rank_images = model, sampling, rank_images
        self.decode = decode or model.decode
        self.sensitivity: dict[int, dict[str, Tensor]] = {}
        self._before: tuple[ScaleSpec, Tensor] | None = None
        self.ranks = RankMeter()
        self.groups = [blocks.start for blocks in model.info.groups]
        self.pictures: list[Tensor] = []

    def group(self, state: State, step: ScaleStep, number: int, x: Tensor) -> None:
        if step.groups[number].blocks.start not in self.groups:
            return  # a group cut in two, so that an intervention finds what it restores from
        number = self.groups.index(step.groups[number].blocks.start)
        for branch, rows in zip(state.branches, x.chunk(len(state.branches)), strict=True):
            if self.rank_images:
                self.ranks.add(step.scale.index, number, branch, rows[: self.rank_images])

    def logits(self, state: State, step: ScaleStep, logits: Tensor, guided: Tensor) -> None:
        if step.weights is None:
            return
        noise = torch.stack(
            [
                torch.rand(guided.shape[1:], generator=g, device=guided.device)
                for g in state.noise.derived(step.scale.index, NOISE_KEY)
            ]
        )
        self.sensitivity[step.scale.index] = observed_sensitivity(
            logits / step.temperature,
            step.weights,
            delta=self._delta(step, logits),
            pairs=self.model.info.bits > 0,
            noise=noise,
            kind="uniform",
            top_k=step.sampling.top_k,
            top_p=step.sampling.top_p,
        )

    def _delta(self, step: ScaleStep, logits: Tensor) -> Tensor | None:
        """What the scale before says cond - null is here, tempered alike; None at the first."""
        before, self._before = self._before, None
        if step.scale.is_map:
            self._before = step.scale, torch.sub(*logits.chunk(2))
        if before is None or not self.model.info.guides_logits:
            return None
        return resize(before[1], before[0].grid, step.scale.grid) / step.temperature

    def advanced(self, state: State, step: ScaleStep, ids: Tensor) -> None:
        self.pictures.append(self.decode(state).float().cpu())
