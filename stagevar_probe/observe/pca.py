"""Measure the directions that a model's layers use: PCA of what enters them, scale by scale."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from stagevar_runtime.errors import CalibrationError
from stagevar_runtime.loop.engine import Observer, advance, start
from stagevar_runtime.loop.plan import Plan, ScaleStep, plan_for
from stagevar_runtime.model.protocol import ScaleModel, State
from stagevar_runtime.model.sampling import Sampling
from stagevar_runtime.options.low_rank import Bases, LowRank, Place, low_rank_of
from stagevar_runtime.profile import PlanStep

from ..datasets.inputs import Inputs

Hook = Callable[[nn.Module, tuple[Tensor, ...]], None]
BASIS_IMAGES = 32  # images whose inputs the directions are measured on


class Moments(Observer):
    """Sums and second moments of what enters every layer at some scales, in float64.

    Both guidance branches count. Memory: d² numbers a scale, group and layer.
    """

    def __init__(self, features: LowRank, scales: Iterable[int]) -> None:
        self.features, self.scales = features, set(scales)
        self.scale = -1
        self.count: dict[Place, int] = {}  # tokens seen by each block
        self.sums: dict[Place, list[Tensor]] = {}
        self.squares: dict[Place, Tensor] = {}

    def group(self, state: State, step: ScaleStep, number: int, x: Tensor) -> None:
        self.scale = step.scale.index

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look at every layer until the end of the block."""
        handles = [
            self.features.layers[i][name].module.register_forward_pre_hook(
                self._watcher(group, i - blocks.start, len(blocks), name)
            )
            for group, blocks in enumerate(self.features.groups)
            for i in blocks
            for name in self.features.layers[i]
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _watcher(self, group: int, block: int, blocks: int, name: str) -> Hook:
        def watch(module: nn.Module, given: tuple[Tensor, ...]) -> None:
            if self.scale in self.scales:
                self.add((self.scale, group, name), block, blocks, given[0])

        return watch

    def add(self, place: Place, block: int, blocks: int, x: Tensor) -> None:
        """Count what enters one of ``blocks`` blocks of a group, ``(rows, n, d)``."""
        x = x.flatten(0, 1).float()
        d = x.shape[1]
        if place not in self.squares:
            self.sums[place] = [x.new_zeros(d, dtype=torch.float64) for _ in range(blocks)]
            self.squares[place] = x.new_zeros(d, d, dtype=torch.float64)
        self.sums[place][block] += x.sum(0, dtype=torch.float64)
        self.squares[place] += x.T @ x
        if block == 0:
            self.count[place] = self.count.get(place, 0) + x.shape[0]

    def bases(self, ranks: Mapping[int, int]) -> Bases:
        """The leading ``ranks[scale]`` directions around each block's own mean.

        Raises:
            CalibrationError: nothing was seen at a scale.
        """
        vectors, means = {}, {}
        for place, squares in self.squares.items():
            mean = torch.stack(self.sums[place]) / self.count[place]
            spread = squares - self.count[place] * mean.T @ mean
            leading = torch.linalg.eigh(spread).eigenvectors.flip(1)[:, : ranks[place[0]]]
            vectors[place], means[place] = leading.float().cpu(), mean.float().cpu()
        missing = sorted(ranks.keys() - {place[0] for place in vectors})
        if missing:
            raise CalibrationError(f"nothing entered a layer at scale {missing[0]}")
        return Bases(vectors, means)


@torch.inference_mode()
def measure_bases(
    model: ScaleModel,
    inputs: Inputs,
    sampling: Sampling,
    ranks: Mapping[int, int],
    batch: int,
) -> Bases:
    """Directions of the exact path on at most ``BASIS_IMAGES`` of the inputs.

    ``ranks``: how many are kept at each scale (:func:`measured_ranks`).
    """
    moments = Moments(low_rank_of(model), ranks)
    plan = plan_for(model, (), sampling)
    inputs = inputs.chunk(0, BASIS_IMAGES)
    with moments.watching():
        for begin in range(0, len(inputs), batch):
            part = inputs.chunk(begin, batch)
            state = start(model, part.condition(model), plan, list(part.seeds))
            for step in plan[: 1 + max(ranks)]:
                advance(model, state, step, observer=moments)
    return moments.bases(ranks)


def measured_ranks(plans: Iterable[Plan | Sequence[PlanStep]]) -> dict[int, int]:
    """How many measured directions these plans need at most, by scale."""
    ranks: dict[int, int] = {}
    for step in (step for plan in plans for step in plan):
        scale = step.scale if isinstance(step, PlanStep) else step.scale.index
        low_rank = step.features if isinstance(step, PlanStep) else step.low_rank
        if low_rank is not None and low_rank.basis == "pca":
            ranks[scale] = max(ranks.get(scale, 0), low_rank.rank)
    return ranks
