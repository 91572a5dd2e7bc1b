"""From measurements to the solver's problem, and from its solution to plan steps."""

from __future__ import annotations

from typing import Any

import numpy as np

from stagevar_runtime.errors import CalibrationError
from stagevar_runtime.loop.plan import EXACT
from stagevar_runtime.profile import PlanStep

from ..measure.costs import Cell
from ..measure.interventions import PUBLISHED
from ..measure.measurements import Measurements
from ..measure.validation import FrontierPoint
from .isotonic import smoothed
from .milp import FULL, Problem, Solution
from .problem import FEWER_BITS

WORSE = 2.5  # standard errors of distribution lost that rule an option out


def problem_from(measured: Measurements, budget: float, caution: float = 0.0) -> Problem:
    """The solver's problem: measured costs, and the mean loss of every intervention that was run to
    the end.

    ``caution`` standard errors are added to every mean, so that options that only seem free (or a
    gain) by the luck of few images are left. Losses that cannot fall with an earlier start are
    smoothed (:mod:`.isotonic`). Interventions that are seen to make the distribution worse
    cannot be chosen. Interventions that were given up early (hopeless after the first
    images) cannot be chosen.
    """
    if measured.costs is None:
        raise CalibrationError("the measurements hold no costs: calibrate again")
    images = len(measured.smooth[EXACT])
    schedules = {PUBLISHED: 0.0}
    drop: dict[tuple[int, str], float] = {}
    joint: dict[tuple[str, int, str], float] = {}
    tokens: dict[tuple[int, str], float] = {}
    skip: dict[tuple[int, int], float] = {}
    part: dict[str, float] = {}
    bits: dict[int, float] = {}
    count = len(measured.job.scales)
    smooth = smoothed(measured)
    for intervention in measured.interventions:
        if len(measured.smooth.get(intervention.name, ())) < images:
            continue
        if measured.distribution_worse(intervention.name) > WORSE:
            continue
        losses = measured.losses(intervention.name)
        loss = smooth.get(intervention.name, float(losses.mean()))
        loss += caution * float(losses.std() / np.sqrt(len(losses)))
        if intervention.skip:
            skip[intervention.scale, intervention.until or count] = loss
        elif intervention.precision:
            bits[intervention.scale] = loss
        elif intervention.part:
            part[intervention.part] = loss
        elif option := intervention.option:
            tokens[intervention.scale, option] = loss
        elif intervention.variant and intervention.schedule == PUBLISHED:
            drop[intervention.scale, intervention.variant] = loss
        elif intervention.variant:
            joint[intervention.schedule, intervention.scale, intervention.variant] = loss
        else:
            schedules[intervention.schedule] = loss
    joint = {key: loss for key, loss in joint.items() if key[0] in schedules}
    return Problem(
        scales=count,
        ms=measured.costs.ms | (with_fewer_bits(measured) if bits else {}),
        drop_loss=drop,
        token_loss=tokens,
        skip_loss=skip,
        schedules=schedules,
        joint_loss=joint,
        part_loss=part,
        bits_loss=bits,
        apart=frozenset(
            n for n, (branch, _) in measured.space.variants.items() if branch == "null"
        ),
        budget=budget,
    )


def with_fewer_bits(measured: Measurements) -> dict[Cell, float]:
    """What every option costs with its products in fewer bits: measured for whole scales, from
    which the others are taken to gain by the same factor."""
    kind, costs = measured.space.precision, measured.costs
    assert kind is not None and costs is not None
    return {
        (k, rows, name + FEWER_BITS): ms * costs.ms[k, rows, kind] / costs.ms[k, rows, FULL]
        for (k, rows, name), ms in costs.ms.items()
        if name != kind and (k, rows, kind) in costs.ms
    }


def steps_of(solution: Solution, measured: Measurements) -> tuple[PlanStep, ...]:
    """The plan steps a solution stands for."""
    space, count = measured.space, len(solution.choices)
    until = solution.drop[0] if solution.drop else count
    fields: dict[int, dict[str, Any]] = {
        step.scale: step.model_dump(exclude_defaults=True)
        for step in space.strengths(solution.schedule, until)
    }
    for choice in solution.choices:
        own = fields.setdefault(choice.scale, {"scale": choice.scale})
        if choice.run == "skip":
            fields[choice.scale] = {"scale": choice.scale, "run": "skip"}
            continue
        if choice.guidance != FULL:
            guidance, temperature = space.variants[choice.guidance]
            own |= {"guidance": guidance, "temperature": temperature}
            if guidance == "delta":
                own["guidance_scale"] = space.schedules[solution.schedule]
        if choice.option != FULL:
            own |= space.option(choice.option, choice.scale)
        if choice.fewer_bits:
            own["precision"] = space.precision
    steps = [PlanStep(**own) for _, own in sorted(fields.items()) if len(own) > 1]
    return _without_repeats(steps)


def _without_repeats(steps: list[PlanStep]) -> tuple[PlanStep, ...]:
    """Leave out what still holds from the scale before (the branch), and steps that say nothing."""
    said: list[PlanStep] = []
    branch: str | None = None
    for step in steps:
        if step.guidance is not None and step.guidance == branch:
            step = step.model_copy(update={"guidance": None})
        branch = step.guidance or branch
        if step != PlanStep(scale=step.scale):
            said.append(step)
    return tuple(said)


def frontier_point(solution: Solution, measured: Measurements) -> FrontierPoint:
    """What a solution promises, with the steps it stands for."""
    steps = steps_of(solution, measured)
    return FrontierPoint(solution.ms, solution.loss, solution.speedup, steps)
