"""Rows of one table: plans with names, run side by side on the same inputs."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from stagevar_runtime.errors import ProfileError
from stagevar_runtime.loop.plan import Plan, compile_plan
from stagevar_runtime.model.protocol import ModelInfo, ScaleModel, ScaleSpec
from stagevar_runtime.model.sampling import Sampling
from stagevar_runtime.profile import PlanStep, Profile
from stagevar_runtime.profile.presets import PRESETS, Ranks, preset

from ..datasets.inputs import Inputs
from ..measure.figures import Figures
from ..metrics.protocol import Quality
from ..progress import meter
from .run import Batch, observe_batch, summarise, warm_up

LOOKED = 128  # images at most whose perceptual distance to exact is measured: it is slow


@dataclass(frozen=True)
class Row:
    """One row: a plan with a name.

    ``kind``: exact, guidance, temperature, preset, plan, drop, tokens, features, skip or joint.
    ``guidance``: the exact path's own, where it is not the one that was asked for. ``change``: what
    the row does, for questions to find it by. ``parts``: the changes of rows that it joins.
    """

    name: str
    kind: str
    steps: tuple[PlanStep, ...] = ()
    guidance: float | tuple[float, ...] | None = None
    change: Hashable = None
    parts: tuple[Hashable, ...] = ()

    def compile(self, info: ModelInfo, scales: tuple[ScaleSpec, ...], sampling: Sampling) -> Plan:
        """The plan it stands for. Raises ProfileError where the model cannot run it."""
        if self.guidance is not None:
            sampling = replace(sampling, guidance=self.guidance)
        return compile_plan(self.steps, info, scales, sampling)


@dataclass(frozen=True)
class Rows:
    """The rows that can be run, in order, with their plans, and why the others cannot.

    ``same``: rows whose plan is that of an earlier one, which is run for both.
    """

    rows: tuple[Row, ...]
    plans: Mapping[str, Plan]
    same: Mapping[str, str]
    left_out: Mapping[str, str]

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)


def compiled(
    rows: Sequence[Row],
    left_out: Mapping[str, str],
    info: ModelInfo,
    scales: tuple[ScaleSpec, ...],
    sampling: Sampling,
) -> Rows:
    """Rows with their plans; those the model cannot run join ``left_out``, equal plans run once."""
    left_out = dict(left_out)
    plans: dict[str, Plan] = {}
    same: dict[str, str] = {}
    known: dict[Plan, str] = {}
    kept = []
    for row in rows:
        try:
            plan = row.compile(info, scales, sampling)
        except ProfileError as error:
            left_out[row.name] = str(error)
            continue
        kept.append(row)
        first = known.setdefault(tuple(replace(step, asked=None) for step in plan), row.name)
        if first == row.name:
            plans[row.name] = plan
        else:
            same[row.name] = first
    return Rows(tuple(kept), plans, same, left_out)


def presets_and_plans(
    info: ModelInfo, scales: tuple[ScaleSpec, ...], profile: Profile | None, ranks: Ranks | None
) -> tuple[list[Row], dict[str, str]]:
    """Every preset and every plan of a profile; the presets that do not fit, with the reason."""
    rows, left_out = [], {}
    for name in PRESETS:
        try:
            rows.append(Row(name, "preset", tuple(preset(name, info, scales, ranks))))
        except ProfileError as error:
            left_out[name] = str(error)
    if profile is not None:
        rows += [
            Row(f"profile: {name}", "plan", tuple(plan.steps))
            for name, plan in profile.plans.items()
        ]
    return rows, left_out


def ranks_of(profile: Profile | None) -> Ranks | None:
    """Feature ranks by scale that a profile's measurements hold, for presets that follow them."""
    measured = profile.measurements if profile else ()
    return {m.scale: m.rank_pca for m in measured if m.rank_pca} or None


@dataclass
class Ran:
    """What was seen of rows, by name. ``pictures``: (n, 3, H, W), of the first inputs."""

    figures: dict[str, Figures]
    seen: list[Batch]
    pictures: dict[str, Tensor] = field(default_factory=dict)


def run_rows(
    model: ScaleModel,
    inputs: Inputs,
    rows: Rows,
    sampling: Sampling,
    quality: Quality,
    batch: int,
    label: str,
    kept: int = 0,
    looked: int = 0,
    quiet: bool = False,
) -> Ran:
    """Run every row on every input: same seeds, coupled noise, interleaved batches.

    ``label``: of the progress bar. ``kept``: pictures to keep of each row. ``looked``: the
    perceptual distance to exact is measured on so many images, or up to a batch more.
    """
    plans = rows.plans
    warm_up(model, inputs.chunk(0, batch), plans, sampling)
    pictures: dict[str, Tensor] = {}

    def visit(name: str, images: Tensor) -> None:
        before = pictures.get(name, images[:0])
        if len(before) < kept:
            pictures[name] = torch.cat([before, images[: kept - len(before)]])

    seen = []
    with meter(label, len(inputs), quiet) as tick:
        for begin in range(0, len(inputs), batch):
            part = inputs.chunk(begin, batch)
            close = begin < looked
            seen.append(observe_batch(model, part, plans, sampling, quality, visit, close))
            tick(len(part))
    figures = summarise(model, plans, seen, quality)
    for name, first in rows.same.items():
        figures[name] = figures[first]
        if first in pictures:
            pictures[name] = pictures[first]
        for batch_seen in seen:
            batch_seen[name] = batch_seen[first]
    return Ran(figures, seen, pictures)
