"""Every method side by side: same seeds, coupled noise, interleaved batches, one table."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from stagevar_runtime.model.protocol import ScaleModel
from stagevar_runtime.model.sampling import Sampling
from stagevar_runtime.options.low_rank import low_rank_of
from stagevar_runtime.profile import Profile

from ..calibrate.profile import ALPHA, group_means
from ..datasets.inputs import Inputs
from ..measure.chunk import measure_chunk
from ..measure.figures import Figures
from ..measure.interventions import default_space
from ..measure.measurements import Measurements
from ..metrics.perceptual import UNLIKENESS
from ..metrics.protocol import Quality
from ..observe.pca import BASIS_IMAGES, measure_bases, measured_ranks
from ..observe.rank import ratio_name
from ..progress import meter
from ..tables import columns
from ..validate.rows import EXACT, Row, Rows
from ..validate.run import Batch, forecast, observe_batch, summarise, warm_up
from .grid import Grid, assemble

logger = logging.getLogger("stagevar_probe")

STABLE_IMAGES = 32  # images on which boundaries and ranks are measured, at each guidance
OTHER_GUIDANCE = 1.5  # of the asked one
OTHER_SEEDS = 20_000_003  # from those of the compared images
LOOKED = 128  # images at most whose perceptual distance to exact is measured: it is slow
STRIP = 8  # pictures kept of every row
CALM = 1.15  # ratio between times of equal work above which they are called disturbed


@dataclass(frozen=True)
class Work:
    """What will be run, before it is: ``generations`` (loop FLOPs) an image, and the time."""

    rows: int
    images: int
    generations: float
    seconds: float


@dataclass
class Comparison:
    """What a comparison found. ``figures`` as of :func:`~stagevar_probe.validate.run.summarise`;
    ``curves``: measurements of the exact path at the asked guidance and at another."""

    lineup: Rows
    figures: dict[str, Figures]
    seen: list[Batch]
    quality: Quality
    curves: dict[str, Measurements]
    strips: dict[str, Tensor] = field(default_factory=dict)


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
        self.lineup = self._assemble(_measured_ranks(profile))

    def _assemble(self, ranks: Mapping[int, Sequence[float]] | None) -> Rows:
        model = self.model
        return assemble(model.info, model.scales(), self.sampling, self.profile, ranks, self.grid)

    def work(self) -> Work:
        """Count the model work and time one exact batch to say how long it will take."""
        plans = self.lineup.plans
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
        self.lineup = self._assemble(ranks)
        plans = self.lineup.plans
        self._measure_bases()
        warm_up(self.model, self.inputs.chunk(0, self.batch), plans, self.sampling)
        strips: dict[str, Tensor] = {}

        def visit(name: str, images: Tensor) -> None:
            strips.setdefault(name, images[:STRIP].clone())

        seen = []
        with meter("comparing", len(self.inputs), self.quiet) as tick:
            for begin in range(0, len(self.inputs), self.batch):
                part = self.inputs.chunk(begin, self.batch)
                close = begin < LOOKED and self.quality.perceptual is not UNLIKENESS
                seen.append(
                    observe_batch(
                        self.model, part, plans, self.sampling, self.quality, visit, close
                    )
                )
                tick(len(part))
        figures = summarise(self.model, plans, seen, self.quality)
        for name, first in self.lineup.same.items():
            figures[name], strips[name] = figures[first], strips[first]
            for batch in seen:
                batch[name] = batch[first]
        return Comparison(self.lineup, figures, seen, self.quality, curves, strips)

    def _measure_bases(self) -> None:
        """Directions that the profile does not bring, on other images than are compared."""
        ranks = measured_ranks(self.lineup.plans.values())
        if not ranks:
            return
        seeds = tuple(seed + OTHER_SEEDS for seed in self.inputs.seeds)
        others = replace(self.inputs, seeds=seeds)
        bases = measure_bases(self.model, others, self.sampling, ranks, self.batch)
        features = low_rank_of(self.model)
        features.use(*features.bases, bases)

    def _curves(self) -> dict[str, Measurements]:
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
            measured = Measurements({"seed": 0}, space, [])
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


def _measured_ranks(profile: Profile | None) -> dict[int, Sequence[float]] | None:
    if profile is None:
        return None
    return {m.scale: m.rank_pca for m in profile.measurements if m.rank_pca} or None


def _mean_ranks(measured: Measurements) -> dict[int, Sequence[float]]:
    """Keep ratios for presets that follow the rank: at most 1, at least one part in a thousand."""
    ranks: dict[int, Sequence[float]] = {}
    for scale in {row["scale"] for row in measured.ranks}:
        means = group_means(measured, scale, "pca", ratio_name(ALPHA))
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
    same = [e.name for e in found.lineup.entries if e.kind in (EXACT, "guidance")]
    times = [found.figures[name].loop_ms for name in same]
    return max(times) / max(min(times), 1e-9)


def rows(found: Comparison) -> list[dict[str, Any]]:
    """One JSON-ready dict a row, the exact path first."""
    front = pareto(found.figures)
    return [
        {
            "name": entry.name,
            "kind": entry.kind,
            "guidance": entry.guidance,
            "steps": [step.model_dump(mode="json", exclude_defaults=True) for step in entry.steps],
            "pareto": entry.name in front,
            **found.figures[entry.name].dump(),
        }
        for entry in found.lineup.entries
    ]


TRIPLES = ("score", "loss", "smooth_loss", "psnr", "ssim", "speedup_loop", "speedup_total")
SINGLES = ("loop_ms", "decode_ms", "total_ms")


def as_csv(found: Comparison) -> str:
    """All figures as CSV: a value and its interval each in a column."""
    table = []
    for row in rows(found):
        line = {key: row[key] for key in ("name", "kind", "pareto", "images", "batch", "flops")}
        for key in TRIPLES:
            line |= dict(zip((key, f"{key}_low", f"{key}_high"), row[key], strict=True))
        line |= {key: row[key] for key in SINGLES}
        for key, base in (("loop_ci95", "loop_ms"), ("total_ci95", "total_ms")):
            line |= {f"{base}_low": row[key][0], f"{base}_high": row[key][1]}
        if "kid" in row:
            line |= {"kid": row["kid"], "kid_low": row["kid_ci95"][0]}
            line |= {"kid_high": row["kid_ci95"][1], "kid_loss": row["kid_loss"][0]}
            line |= {"kid_loss_low": row["kid_loss"][1], "kid_loss_high": row["kid_loss"][2]}
            line["kid_name"] = row["kid_name"]
        if "perceptual" in row:
            names = ("perceptual", "perceptual_low", "perceptual_high")
            line |= dict(zip(names, row["perceptual"], strict=True))
            line["perceptual_name"] = row["perceptual_name"]
        table.append(line)
    out = io.StringIO()
    writer = csv.DictWriter(out, list(table[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return out.getvalue()


HEAD = ("", "total", "x", "loop", "x", "GFLOP", "score", "loss")


def head(f: Figures) -> list[str]:
    """Names of the columns of :func:`cells`, for these figures."""
    names = [*HEAD, f.kid_name or "KID", "PSNR", "SSIM"]
    return [*names, f.perceptual_name] if f.perceptual_name else names


def cells(entry: Row, f: Figures, best: bool) -> list[str]:
    """One row of figures as text: values with half widths of their intervals."""

    def half(triple: Sequence[float]) -> float:
        return (triple[-1] - triple[-2]) / 2

    same = entry.kind == EXACT
    out = [
        ("* " if best else "  ") + entry.name,
        f"{f.total_ms:.1f} ±{half(f.total_ci95):.1f}",
        f"{f.speedup_total[0]:.2f} ±{half(f.speedup_total):.2f}",
        f"{f.loop_ms:.1f} ±{half(f.loop_ci95):.1f}",
        f"{f.speedup_loop[0]:.2f} ±{half(f.speedup_loop):.2f}",
        f"{f.flops / 1e9:.3g}",
        f"{f.score[0]:.4f} ±{half(f.score):.4f}",
        "-" if same else "{:+.4f} [{:+.4f}, {:+.4f}]".format(*f.loss),
        f"{f.kid:.2f} ±{half(f.kid_ci95):.2f}" if f.kid_ci95 else "-",
        "-" if same else f"{f.psnr[0]:.2f} ±{half(f.psnr):.2f}",
        "-" if same else f"{f.ssim[0]:.4f} ±{half(f.ssim):.4f}",
    ]
    if f.perceptual is not None:
        out.append("-" if same else f"{f.perceptual[0]:.4f} ±{half(f.perceptual):.4f}")
    return out


def as_table(found: Comparison) -> str:
    """The figures as text, with intervals; ``*`` marks what nothing beats in time and loss."""
    front = pareto(found.figures)
    rows = [
        cells(entry, found.figures[entry.name], entry.name in front)
        for entry in found.lineup.entries
    ]
    return columns([head(found.figures[EXACT]), *rows])
