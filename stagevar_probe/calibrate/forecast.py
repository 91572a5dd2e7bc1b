"""How much work a calibration is before it starts, and how long it will take."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from stagevar_runtime.loop.engine import generate

from ..measure.flops import plan_flops
from ..measure.interventions import Intervention, SearchSpace
from .runner import Runner

TIMED = 8  # images of the batch that the exact path is timed with, at most
LOOKED_AT = 0.15  # of a generation: what decoding and scoring a picture take


@dataclass(frozen=True)
class Work:
    """Work per image: ``generations`` of the exact path (loop FLOPs), and pictures to look at."""

    interventions: int
    generations: float
    pictures: int

    def seconds(self, per_image: float) -> float:
        """About how long, from the seconds of one image by the exact path."""
        return per_image * (self.generations + LOOKED_AT * self.pictures)


def interventions_work(
    runner: Runner, space: SearchSpace, interventions: Sequence[Intervention]
) -> Work:
    """What measuring these interventions on one image takes."""
    model, count = runner.model, len(runner.model.scales())
    whole = plan_flops(model.info, runner.compiled(()))
    schedules = {intervention.schedule for intervention in interventions}
    total = whole * max(1, len(schedules))
    for intervention in interventions:
        if intervention.scale:
            plan = runner.compiled(space.steps(intervention, count))
            total += plan_flops(model.info, plan) - plan_flops(
                model.info, plan[: intervention.scale]
            )
    return Work(len(interventions), total / whole, 1 + len(interventions) + count)


def exact_seconds(runner: Runner) -> float:
    """Seconds of one image by the exact path: one batch to warm up, one that is timed."""
    part = runner.materials.inputs.chunk(0, min(TIMED, runner.settings.batch))
    conditioning = part.condition(runner.model)
    plan, seeds, begun = runner.compiled(()), list(range(len(part))), 0.0
    for _ in range(2):
        begun = time.perf_counter()
        generate(runner.model, conditioning, plan, seed=seeds)
    return (time.perf_counter() - begun) / len(part)
