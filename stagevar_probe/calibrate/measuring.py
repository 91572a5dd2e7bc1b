"""Interventions on calibration inputs: rounds of batches, in which hopeless ones are given up."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from ..datasets.inputs import Inputs
from ..measure.chunk import measure_chunk
from ..measure.costs import Costs, measure_costs
from ..measure.interventions import PUBLISHED, Intervention, SearchSpace
from ..measure.measurements import Measurements
from ..measure.per_image import PerImage, parse_tables
from ..solve.target import BUDGETS
from .clock import MEASURED
from .forecast import interventions_work
from .runner import Runner

logger = logging.getLogger("stagevar_probe")

SURE = 1.64  # standard errors beyond the loosest budget that make an intervention hopeless
CLEAR = 0.5  # of the budget: half an interval that says enough of an intervention
ENOUGH = 24  # images before any interval is believed to be narrow
SMALLEST = 2  # images of a batch at least, where the time is short
COSTS = 0.06  # share of the time that timing every option may take


class Measuring:
    """Measures a search space on the calibration inputs, for as long as the clock allows."""

    def __init__(
        self,
        runner: Runner,
        space: SearchSpace,
        every: list[Intervention],
        timed: Callable[..., Costs] = measure_costs,
    ) -> None:
        self.runner, self.space, self.every, self.timed = runner, space, every, timed

    def chunk(
        self, part: Inputs, interventions: Sequence[Intervention], ranked: int = 1
    ) -> dict[str, Any]:
        """What is measured of one batch, with the seconds that took."""
        runner, clock = self.runner, self.runner.clock
        begun = clock.spent
        found = measure_chunk(
            runner.model,
            part,
            self.space,
            interventions,
            runner.materials.sampling,
            runner.materials.quality,
            ranked,
        )
        return {**found.tables(), "seconds": clock.spent - begun}

    def size(self, per_image: float) -> int:
        """Images of a batch, so that three rounds of everything fit into the time for measuring."""
        work = interventions_work(self.runner, self.space, self.every)
        wanted = self.runner.clock.left(MEASURED) / 3 / max(work.seconds(per_image), 1e-9)
        return int(min(self.runner.settings.batch, max(SMALLEST, wanted)))

    def run(self, measured: Measurements, per_image: float) -> None:
        """Fill the measurements. At least one round is measured, whatever the clock says."""
        runner, inputs = self.runner, self.runner.materials.inputs
        size = runner.decide("measuring", lambda: {"size": self.size(per_image)})["size"]
        arms, begin, number, expected = self.every, 0, 0, 0.0
        while begin < len(inputs) and not self._clear(measured, arms):
            expect = expected
            go = runner.decide(
                f"measuring-{begin:05d}",
                lambda begin=begin, expect=expect: {  # type: ignore[misc]
                    "go": begin == 0 or runner.clock.left(MEASURED) > expect
                },
            )["go"]
            if not go:
                break
            starts = [begin + i * size for i in range(runner.count)]
            parts = [inputs.chunk(start, size) for start in starts if start < len(inputs)]
            ranked = [max(0, min(size, runner.settings.rank_images - s)) for s in starts]
            pieces = [
                (f"chunk-{number + i:05d}.json", partial(self.chunk, part, arms, count))
                for i, (part, count) in enumerate(zip(parts, ranked, strict=False))
            ]
            found = runner.work.each(pieces)
            for chunk in found:
                measured.add(PerImage(**parse_tables(chunk)))
            begin, number = begin + size * runner.count, number + len(pieces)
            before = interventions_work(runner, self.space, arms)
            arms = self._survivors(measured, arms)
            after = interventions_work(runner, self.space, arms)
            seconds = max(chunk["seconds"] for chunk in found)
            expected = seconds * after.seconds(per_image) / max(before.seconds(per_image), 1e-9)
            runner.say(f"{len(arms)} of {len(self.every)} interventions on {begin} inputs")
        counted = replace(measured.job.inputs, count=min(begin, len(inputs)))
        measured.job = replace(measured.job, inputs=counted)

    def _survivors(self, measured: Measurements, arms: list[Intervention]) -> list[Intervention]:
        """Interventions that could still fit the loosest budget, and those that the curves need."""
        limit = max(BUDGETS.values()) * self.runner.settings.max_loss
        if self.runner.settings.target.by_speed:  # a fast enough plan may need what loses most
            return arms
        kept = []
        for arm in arms:
            losses = measured.losses(arm.name)
            lower = losses.mean() - SURE * losses.std() / np.sqrt(len(losses))
            curve = arm.schedule == PUBLISHED and arm.variant == "cond"
            if lower <= limit or curve:
                kept.append(arm)
        return kept

    def _clear(self, measured: Measurements, arms: Sequence[Intervention]) -> bool:
        """Whether more inputs would tell nothing that matters of any intervention."""
        if not measured.smooth:
            return False
        half = CLEAR * self.runner.settings.max_loss
        count = len(measured.smooth["exact"])
        spread = (measured.losses(arm.name).std() for arm in arms)
        return count >= ENOUGH and all(SURE * x / np.sqrt(count) <= half for x in spread)

    def costs(self, per_image: float) -> Costs:
        """What every option costs, timed once for all processes on as many images as fit."""
        runner, settings = self.runner, self.runner.settings

        def measure() -> dict[str, Any]:
            plans = 1 + 2 * len(self.space.options)
            allowed = COSTS * runner.clock.seconds / (settings.repeats + 1) / plans
            size = int(min(settings.batch, max(2, allowed / max(0.75 * per_image, 1e-9))))
            part = runner.materials.inputs.chunk(0, size)
            return self.timed(
                runner.model,
                part.condition(runner.model),
                runner.materials.sampling,
                self.space.options,
                settings.repeats,
            ).dump()

        return Costs.parse(runner.work.once("costs.json", measure))
