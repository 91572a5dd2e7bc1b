"""From measurements to plans and a profile. Runs no model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from stagevar_runtime.errors import CalibrationError
from stagevar_runtime.profile import (
    Boundary,
    Calibration,
    CreatedBy,
    Estimate,
    Expected,
    ModelRef,
    Plan,
    PlanStep,
    Profile,
    PromptSet,
    SamplingSettings,
    ScaleMeasurement,
    Stages,
    Target,
)

from .arms import PUBLISHED
from .goal import Goal
from .measurements import Measurements
from .monotone import smoothed
from .solve import FULL, Problem, Solution
from .spectrum import ratio_name
from .stages import Stages as FoundStages
from .stages import find_stages
from .statistics import mean_interval

ALPHA = 0.96


def problem_from(measured: Measurements, budget: float, caution: float = 0.0) -> Problem:
    """The solver's problem: measured costs, and the mean loss of every arm that was run to the end.

    ``caution`` standard errors are added to every mean, so that options that only seem free (or a
    gain) by the luck of few images are left. Losses that cannot fall with an earlier start are
    smoothed (:mod:`.monotone`). Arms that were given up early (hopeless after the first images)
    cannot be chosen.
    """
    if measured.costs is None:
        raise CalibrationError("the measurements hold no costs: calibrate again")
    images = len(measured.smooth["exact"])
    schedules = {PUBLISHED: 0.0}
    drop: dict[tuple[int, str], float] = {}
    joint: dict[tuple[str, int, str], float] = {}
    tokens: dict[tuple[int, str], float] = {}
    skip: dict[tuple[int, int], float] = {}
    part: dict[str, float] = {}
    count = len(measured.job["scales"])
    smooth = smoothed(measured)
    for arm in measured.arms:
        if len(measured.smooth.get(arm.name, ())) < images:
            continue
        losses = measured.losses(arm.name)
        loss = smooth.get(arm.name, float(losses.mean()))
        loss += caution * float(losses.std() / np.sqrt(len(losses)))
        if arm.skip:
            skip[arm.scale, arm.until or count] = loss
        elif arm.part:
            part[arm.part] = loss
        elif option := arm.option:
            tokens[arm.scale, option] = loss
        elif arm.variant and arm.schedule == PUBLISHED:
            drop[arm.scale, arm.variant] = loss
        elif arm.variant:
            joint[arm.schedule, arm.scale, arm.variant] = loss
        else:
            schedules[arm.schedule] = loss
    joint = {key: loss for key, loss in joint.items() if key[0] in schedules}
    return Problem(
        scales=count,
        ms=measured.costs.ms,
        drop_loss=drop,
        token_loss=tokens,
        skip_loss=skip,
        schedules=schedules,
        joint_loss=joint,
        part_loss=part,
        apart=frozenset(n for n, (branch, _) in measured.menu.variants.items() if branch == "null"),
        budget=budget,
    )


def steps_of(solution: Solution, measured: Measurements) -> tuple[PlanStep, ...]:
    """The plan steps a solution stands for."""
    menu, count = measured.menu, len(solution.choices)
    until = solution.drop[0] if solution.drop else count
    fields: dict[int, dict[str, Any]] = {
        step.scale: step.model_dump(exclude_defaults=True)
        for step in menu.strengths(solution.schedule, until)
    }
    for choice in solution.choices:
        own = fields.setdefault(choice.scale, {"scale": choice.scale})
        if choice.run == "skip":
            fields[choice.scale] = {"scale": choice.scale, "run": "skip"}
            continue
        if choice.guidance != FULL:
            guidance, temperature = menu.variants[choice.guidance]
            own |= {"guidance": guidance, "temperature": temperature}
            if guidance == "delta":
                own["guidance_scale"] = menu.schedules[solution.schedule]
        if choice.tokens != FULL:
            own |= menu.option(choice.tokens, choice.scale)
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


def stages_of(measured: Measurements) -> FoundStages:
    """Stage boundaries from the curves."""
    return find_stages(
        np.asarray(measured.semantic),
        np.asarray(measured.structural),
        semantic_name=f"semantic similarity ({measured.job.get('features', 'features')})",
        structural_name=f"structural similarity ({measured.job.get('likeness', 'SSIM')})",
        seed=measured.job["seed"],
    )


def scale_measurements(measured: Measurements) -> tuple[ScaleMeasurement, ...]:
    """The per-scale figures of a profile."""
    assert measured.costs is not None
    rows = max(rows for _, rows, _ in measured.costs.ms)
    out = []
    for k, (_, _, tokens) in enumerate(measured.job["scales"]):
        ms = measured.costs.ms[k, rows, FULL]
        spread = measured.costs.spread_ms[k, rows, FULL]
        effect = next(
            (
                measured.losses(arm.name)
                for arm in measured.arms
                if (arm.scale, arm.schedule, arm.variant) == (k, PUBLISHED, "cond")
            ),
            None,
        )
        sensitivity = measured.sensitivity.get(k, {}).get("cond")
        out.append(
            ScaleMeasurement(
                scale=k,
                tokens=tokens,
                cfg_sensitivity=None if sensitivity is None else estimate(sensitivity),
                cfg_effect=None if effect is None else estimate(effect),
                rank_pca=group_means(measured, k, "pca", ratio_name(ALPHA)),
                rank_svd=group_means(measured, k, "svd", ratio_name(ALPHA)),
                effective_rank=group_means(measured, k, "svd", "effective_rank"),
                stable_rank=group_means(measured, k, "svd", "stable_rank"),
                ms=Estimate(value=ms, ci95=(max(0.0, ms - spread), ms + spread)),
            )
        )
    return tuple(out)


def group_means(
    measured: Measurements, scale: int, centring: str, measure: str, branch: str = "cond"
) -> tuple[float, ...] | None:
    """Mean over images of a rank measure, one value a group; None where it was not measured."""
    rows = sorted(
        (
            row
            for row in measured.ranks
            if (row["scale"], row["branch"], row["centring"]) == (scale, branch, centring)
        ),
        key=lambda row: row["group"],
    )
    return tuple(float(np.mean(row["values"][measure])) for row in rows) or None


def estimate(values: Any) -> Estimate:
    """Mean with its 95 % bootstrap interval."""
    mean, low, high = mean_interval(values)
    return Estimate(value=mean, ci95=(low, high))


def expected_of(figures: Mapping[str, Any]) -> Expected:
    """A plan's held-out figures in the profile's words."""
    return Expected(
        metric=figures["metric"],
        loss=figures["loss"][0],
        loss_ci95=(figures["loss"][1], figures["loss"][2]),
        speedup_loop=figures["exact_loop_ms"] / figures["loop_ms"],
        speedup_total=figures["exact_total_ms"] / figures["total_ms"],
        ms_loop=figures["loop_ms"],
        ms_total=figures["total_ms"],
        batch=figures["batch"],
        images=figures["images"],
    )


def build_profile(
    measured: Measurements,
    plans: Mapping[str, tuple[PlanStep, ...]],
    max_loss: float,
    satisfied: bool,
    version: str,
    at: str,
    goal: Goal | None = None,
) -> Profile:
    """The profile of these measurements and plans; figures come from ``measured.validation``.

    ``goal``: where a speed was asked for.
    """
    job = measured.job
    found = stages_of(measured)
    guidance = job["sampling"]["guidance"]
    return Profile(
        created_by=CreatedBy(tool="stagevar-probe", version=version, at=at),
        model=ModelRef(
            family=job["family"],
            architecture=job["architecture"],
            weights=job["weights"],
            schedules={job["schedule_name"]: tuple((h, w) for h, w, _ in job["scales"])},
        ),
        provenance="measured",
        calibration=Calibration(
            prompts=PromptSet(
                name=job["inputs"]["name"],
                sha256=job["inputs"]["sha256"],
                count=job["inputs"]["count"],
                held_out=job["inputs"]["held_out"],
            ),
            seeds=(job["seed"],),
            dtype=job["dtype"],
            guidance=tuple(guidance) if isinstance(guidance, list) else guidance,
            sampling=SamplingSettings(
                temperature=job["sampling"]["temperature"],
                top_k=job["sampling"]["top_k"],
                top_p=job["sampling"]["top_p"],
            ),
            hardware=job["hardware"] | {"batch": job["batch"]},
            features=job.get("features"),
            likeness=job.get("likeness"),
        ),
        stages=Stages(
            structure=Boundary(
                scale=found.structure,
                ci95=found.structure_interval,
                evidence=found.semantic_evidence,
            ),
            refinement=Boundary(
                scale=found.refinement,
                ci95=found.refinement_interval,
                evidence=found.structural_evidence,
            ),
        ),
        target=Target(
            metric=job["metric"],
            max_loss=max_loss,
            min_speedup=goal.min_speedup if goal else None,
            max_ms=goal.max_ms if goal else None,
            satisfied=satisfied,
        ),
        plans={
            name: Plan(
                steps=steps,
                expected=expected_of(measured.validation[name])
                if name in measured.validation
                else None,
            )
            for name, steps in plans.items()
        },
        measurements=scale_measurements(measured),
    )
