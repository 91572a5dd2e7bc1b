"""From measurements to plans and a profile. Runs no model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

import stagevar_runtime
from stagevar_runtime.profile import PlanStep, Profile, schema

from ..intervals import mean_interval
from ..measure.figures import Figures
from ..measure.interventions import PUBLISHED
from ..measure.measurements import Measurements
from ..measure.validation import Evidence, Verdict
from ..observe.rank import ALPHA, ratio_name
from ..observe.stages import StageEstimates, find_stages
from ..solve.milp import FULL
from ..solve.target import Target


def stages_of(measured: Measurements) -> StageEstimates:
    """Stage boundaries from the curves."""
    return find_stages(
        np.asarray(measured.semantic),
        np.asarray(measured.structural),
        semantic_name=f"semantic similarity ({measured.job.features or 'features'})",
        structural_name=f"structural similarity ({measured.job.likeness or 'SSIM'})",
        seed=measured.job.seed,
    )


def scale_measurements(measured: Measurements) -> tuple[schema.ScaleMeasurement, ...]:
    """The per-scale figures of a profile."""
    assert measured.costs is not None
    rows = max(rows for _, rows, _ in measured.costs.ms)
    out = []
    for k, size in enumerate(measured.job.scales):
        ms = measured.costs.ms[k, rows, FULL]
        spread = measured.costs.spread_ms[k, rows, FULL]
        effect = next(
            (
                measured.losses(intervention.name)
                for intervention in measured.interventions
                if (intervention.scale, intervention.schedule, intervention.variant)
                == (k, PUBLISHED, "cond")
            ),
            None,
        )
        sensitivity = measured.sensitivity.get(k, {}).get("cond")
        out.append(
            schema.ScaleMeasurement(
                scale=k,
                tokens=size.tokens,
                cfg_sensitivity=None if sensitivity is None else estimate(sensitivity),
                cfg_effect=None if effect is None else estimate(effect),
                rank_pca=measured.group_means(k, "pca", ratio_name(ALPHA)),
                rank_svd=measured.group_means(k, "svd", ratio_name(ALPHA)),
                effective_rank=measured.group_means(k, "svd", "effective_rank"),
                stable_rank=measured.group_means(k, "svd", "stable_rank"),
                ms=schema.Estimate(value=ms, ci95=(max(0.0, ms - spread), ms + spread)),
            )
        )
    return tuple(out)


def estimate(values: Any) -> schema.Estimate:
    """Mean with its 95 % bootstrap interval."""
    mean, low, high = mean_interval(values)
    return schema.Estimate(value=mean, ci95=(low, high))


def expected_of(figures: Figures, evidence: Evidence | None = None) -> schema.Expected:
    """A plan's held-out figures in the profile's words."""
    first = evidence.budgets[0].bounds if evidence else None
    return schema.Expected(
        metric=figures.metric,
        loss=figures.loss.mean,
        loss_ci95=(figures.loss.low, figures.loss.high),
        loss_bounds=None if first is None else (first.low, first.high),
        speedup_loop=figures.exact_loop_ms / figures.loop_ms,
        speedup_total=figures.exact_total_ms / figures.total_ms,
        ms_loop=figures.loop_ms,
        ms_total=figures.total_ms,
        batch=figures.batch,
        images=figures.images,
    )


def target_result(
    metric: str, asked: Target, satisfied: Verdict, evidence: Evidence | None
) -> schema.TargetResult:
    """What was asked and whether it is met, with what would settle it where it is not proved."""
    beside = evidence.budgets[1:] if evidence else ()
    return schema.TargetResult(
        metric=metric,
        max_loss=asked.max_loss,
        margin=evidence.budgets[0].margin if evidence else None,
        min_speedup=asked.min_speedup,
        max_ms=asked.max_ms,
        satisfied=satisfied,
        more_inputs=evidence.more if evidence else None,
        losing=evidence.named if evidence else (),
        beside=tuple(
            schema.BudgetResult(
                metric=part.metric,
                max_loss=part.max_loss,
                margin=part.margin,
                tag=part.tag,
                loss=part.bounds.mean,
                loss_bounds=(part.bounds.low, part.bounds.high),
                satisfied=part.verdict,
            )
            for part in beside
        ),
    )


def build_profile(
    measured: Measurements,
    plans: Mapping[str, tuple[PlanStep, ...]],
    asked: Target,
    satisfied: Verdict,
    at: str,
) -> Profile:
    """The profile of these measurements and plans; figures come from ``measured.validation``.

    ``satisfied``: the verdict on the plan ``balanced``. ``at``: when, in ISO 8601.
    """
    job, found_of = measured.job, measured.validation
    found = stages_of(measured)
    return Profile(
        created_by=schema.CreatedBy(
            tool="stagevar-probe", version=stagevar_runtime.__version__, at=at
        ),
        model=schema.ModelRef(
            family=job.family,
            architecture=job.architecture,
            weights=job.weights,
            tokenizer=job.tokenizer,
            classes=job.classes or None,
            schedules={job.schedule_name: tuple((s.height, s.width) for s in job.scales)},
        ),
        provenance="measured",
        calibration=schema.Calibration(
            prompts=schema.PromptSet(
                name=job.inputs.name,
                sha256=job.inputs.sha256,
                count=job.inputs.count,
                held_out=job.inputs.held_out,
            ),
            seeds=(job.seed,),
            dtype=job.dtype,
            guidance=job.sampling.guidance,
            sampling=schema.SamplingSettings(
                temperature=job.sampling.temperature,
                top_k=job.sampling.top_k,
                top_p=job.sampling.top_p,
            ),
            hardware={**job.hardware, "batch": job.batch},
            features=job.features,
            likeness=job.likeness,
        ),
        stages=schema.Stages(
            structure=schema.Boundary(
                scale=found.structure,
                ci95=found.structure_interval,
                evidence=found.semantic_evidence,
            ),
            refinement=schema.Boundary(
                scale=found.refinement,
                ci95=found.refinement_interval,
                evidence=found.structural_evidence,
            ),
        ),
        target=target_result(job.metric, asked, satisfied, found_of.evidence.get("balanced")),
        plans={
            name: schema.PlanEntry(
                steps=steps,
                expected=expected_of(found_of.plans[name], found_of.evidence.get(name))
                if name in found_of.plans
                else None,
            )
            for name, steps in plans.items()
        },
        measurements=scale_measurements(measured),
    )
