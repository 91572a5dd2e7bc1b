"""Every method side by side: same seeds, coupled noise, interleaved batches, one table."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from stagevar_runtime.loop.plan import EXACT
from stagevar_runtime.model.protocol import ScaleModel
from stagevar_runtime.model.sampling import Sampling
from stagevar_runtime.options.low_rank import low_rank_of
from stagevar_runtime.profile import Profile

from ..datasets.inputs import Inputs
from ..measure.chunk import measure_chunk
from ..measure.figures import Figures
from ..measure.interventions import default_space
from ..measure.per_image import PerImage
from ..metrics.perceptual import UNLIKENESS
from ..metrics.protocol import Quality
from ..observe.pca import BASIS_IMAGES, measure_bases, measured_ranks
from ..observe.rank import ALPHA, ratio_name
from ..progress import meter
from ..validate.rows import LOOKED, Rows, ranks_of, run_rows
from ..validate.run import Batch, forecast
from .grid import Grid, assemble

logger = logging.getLogger("stagevar_probe")

STABLE_IMAGES = 32  # images on which boundaries and ranks are measured, at each guidance
OTHER_GUIDANCE = 1.5  # of the asked one
OTHER_SEEDS = 20_000_003  # from those of the compared images
STRIP = 8  # pictures kept of every row
CALM = 1.15  # ratio between times of equal work above which they are called disturbed


@dataclass(frozen=True)
class Work:
    """What will be run, before it is: ``generations`` (loop FLOPs) per image, and the time."""

    rows: int
    images: int
    generations: float
    seconds: float


@dataclass
class Comparison:
    """What a comparison found. ``figures`` as of :func:`~stagevar_probe.validate.run.summarise`;
    ``curves``: measurements of the exact path at the asked guidance and at another."""

    rows: Rows
    figures: dict[str, Figures]
    seen: list[Batch]
    quality: Quality
    curves: dict[str, PerImage]
    pictures: dict[str, Tensor] = field(default_factory=dict)


class ComparisonRun:
    """One comparison of one model."""

    def __init__(
        self,
        model: ScaleModel,
        inputs: Inputs,
        sampling: Sampling,
        quality: Quality,
        batch: int,
        profile: Profile | None = None,
        grid: Grid | None = None,
        quiet: bool = False,
    ) -> None:
        self.model, self.inputs, self.sampling = model, inputs, sampling
        self.quality, self.batch, self.quiet = quality, min(batch, len(inputs)), quiet
        self.profile, self.grid = profile, grid
        self.rows = self._assemble(ranks_of(profile))

    def _assemble(self, ranks: Mapping[int, Sequence[float]] | None) -> Rows:
        model = self.model
        return assemble(model.info, model.scales(), self.sampling, self.profile, ranks, self.grid)

    def work(self) -> Work:
        """Count the model work and time one exact batch to say how long it will take."""
        plans = self.rows.plans
        relative, seconds, made = forecast(
            self.model, self.inputs, plans, self.sampling, self.batch
        )
        if measured_ranks(plans.values()):
            seconds += made.loop_ms * min(BASIS_IMAGES, len(self.inputs)) / self.batch / 1000
        stable = 2 * min(STABLE_IMAGES, len(self.inputs)) / self.batch
        seconds += stable * (made.loop_ms * 2 + made.decode_ms * len(plans[EXACT])) / 1000
        return Work(len(plans), len(self.inputs), relative, seconds)

    def run(self) -> Comparison:
        """Measure everything."""
        curves = self._curves()
        ranks = _mean_ranks(next(iter(curves.values())))
        self.rows = self._assemble(ranks)
        self._measure_bases()
        looked = 0 if self.quality.perceptual is UNLIKENESS else LOOKED
        ran = run_rows(
            self.model,
            self.inputs,
            self.rows,
            self.sampling,
            self.quality,
            self.batch,
            "comparing",
            kept=STRIP,
            looked=looked,
            quiet=self.quiet,
        )
        return Comparison(self.rows, ran.figures, ran.seen, self.quality, curves, ran.pictures)

    def _measure_bases(self) -> None:
        """Directions that the profile does not bring, on other images than are compared."""
        ranks = measured_ranks(self.rows.plans.values())
        if not ranks:
            return
        seeds = tuple(seed + OTHER_SEEDS for seed in self.inputs.seeds)
        others = replace(self.inputs, seeds=seeds)
        bases = measure_bases(self.model, others, self.sampling, ranks, self.batch)
        features = low_rank_of(self.model)
        features.use(*features.bases, bases)

    def _curves(self) -> dict[str, PerImage]:
        """Stages and ranks of the exact path, at the asked guidance and at a stronger one."""
        guidance = self.sampling.guidance
        other = (
            tuple(OTHER_GUIDANCE * g for g in guidance)
            if isinstance(guidance, tuple)
            else OTHER_GUIDANCE * guidance
        )
        out = {}
        count = min(STABLE_IMAGES, len(self.inputs))
        for name, sampling in (
            ("asked", self.sampling),
            ("stronger", replace(self.sampling, guidance=other)),
        ):
            space = default_space(self.model.info, sampling)
            measured = PerImage()
            with meter(f"stages, {name} guidance", count, self.quiet) as tick:
                for begin in range(0, count, self.batch):
                    part = self.inputs.chunk(begin, min(self.batch, count - begin))
                    measured.add(
                        measure_chunk(
                            self.model, part, space, (), sampling, self.quality, len(part)
                        )
                    )
                    tick(len(part))
            out[name] = measured
        return out


def _mean_ranks(measured: PerImage) -> dict[int, Sequence[float]]:
    """Keep ratios for presets that follow the rank: at most 1, at least one part in a thousand."""
    ranks: dict[int, Sequence[float]] = {}
    for scale in {key.scale for key in measured.ranks}:
        means = measured.group_means(scale, "pca", ratio_name(ALPHA))
        if means is not None:
            ranks[scale] = tuple(min(1.0, max(0.001, mean)) for mean in means)
    return ranks


def pareto(figures: Mapping[str, Figures]) -> set[str]:
    """Names that nothing beats in both total time and mean loss."""
    ordered = sorted(figures, key=lambda n: (figures[n].total_ms, figures[n].loss.mean))
    best, out = float("inf"), set()
    for name in ordered:
        if figures[name].loss.mean < best:
            best = figures[name].loss.mean
            out.add(name)
    return out


def disturbance(found: Comparison) -> float:
    """How far times can be trusted: the largest ratio between rows that do the same work.

    The exact path takes as long at any guidance; 1.0 is perfect.
    """
    same = [row.name for row in found.rows if row.kind in (EXACT, "guidance")]
    times = [found.figures[name].loop_ms for name in same]
    return max(times) / max(min(times), 1e-9)
