"""Fill the report: the figures, the tables, and the sentences that say what they mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from stagevar_runtime.loop.engine import generate
from stagevar_runtime.loop.plan import EXACT, plan_for
from stagevar_runtime.model.sampling import Sampling
from stagevar_runtime.pipeline import Pipeline
from stagevar_runtime.profile import Profile

from ..datasets.inputs import Inputs
from ..measure.figures import Figures
from ..measure.measurements import Measurements
from . import plots
from .calibration_figures import band, figures
from .filmstrip import story
from .html import ReportData, write_report
from .verdict import plan_verdict, sentences, tag_tables

PAIRS = 8


def write_calibration(
    path: Path,
    measured: Measurements,
    profile: Profile,
    pipeline: Pipeline | None = None,
    inputs: Inputs | None = None,
) -> None:
    """Write the HTML report; without a pipeline it has no pictures."""
    write_report(report_data(measured, profile, pipeline, inputs), path)


def report_data(
    measured: Measurements,
    profile: Profile,
    pipeline: Pipeline | None = None,
    inputs: Inputs | None = None,
) -> ReportData:
    """Everything the report shows."""
    job = measured.job
    names = job.scale_names
    best = measured.validation.plans.get("balanced")
    target = profile.target
    assert target is not None
    return ReportData(
        title=job.checkpoint,
        subtitle=f"{job.family}, {len(names)} scales to {names[-1]}, "
        f"{job.hardware['device']} {job.dtype}, batch {job.batch}",
        satisfied=target.satisfied,
        verdict=sentences(best, target, measured.validation.evidence.get("balanced")),
        headlines=_headlines(best),
        facts=_facts(profile),
        loss_name=f"{job.metric} lost",
        plans=_plan_rows(measured, profile),
        figures=[
            *(story(pipeline.model, profile, inputs) if pipeline and inputs else ()),
            *figures(measured, profile),
        ],
        pictures=_pictures(profile, pipeline, inputs),
        pictures_title="",
        pictures_caption="Left: exact. Right: balanced. Same label, same seed.",
        tables=_tables(measured, names),
        notes=_notes(measured),
        provenance=[
            ("weights", str(profile.model.weights)),
            ("inputs", f"{job.inputs.name}, {job.inputs.sha256}"),
            (
                "created",
                f"{profile.created_by.at} by {profile.created_by.tool} "
                f"{profile.created_by.version}",
            ),
        ],
        command=f"stagevar-probe calibrate {job.checkpoint} --seed {job.seed}",
    )


def _headlines(best: Figures | None) -> list[Any]:
    if best is None:
        return []
    network = best.exact_transformer_ms / best.transformer_ms
    total = best.exact_total_ms / best.total_ms
    detail = f"against the exact path, batch {best.batch}"
    return [
        {"value": f"{total:.2f}x", "label": "faster end to end", "detail": detail},
        {"value": f"{network:.2f}x", "label": "faster in the transformer", "detail": detail},
        {
            "value": f"{best.loss[0]:+.4f}",
            "label": f"{best.metric} lost",
            "detail": f"95 % {best.loss[1]:+.4f} to {best.loss[2]:+.4f}",
        },
    ]


def _facts(profile: Profile) -> list[tuple[str, str]]:
    assert profile.stages and profile.stages.structure and profile.stages.refinement
    facts = []
    for name, stage in (
        ("structure", profile.stages.structure),
        ("refinement", profile.stages.refinement),
    ):
        low, high = stage.ci95 or (stage.scale, stage.scale)
        facts.append((f"{name} from scale", f"{stage.scale} [{low}, {high}]"))
        facts.append((f"{name}: evidence", str(stage.evidence)))
    return facts


def _plan_rows(measured: Measurements, profile: Profile) -> list[Any]:
    rows = []
    assert profile.target is not None
    for name, plan in {EXACT: None, **profile.plans}.items():
        figures = measured.validation.plans.get(name)
        if figures is None:
            continue
        rows.append(
            {
                "name": name,
                "ms": figures.total_ms / figures.batch,
                "speedup": figures.exact_total_ms / figures.total_ms,
                "loss": figures.loss[0],
                "low": figures.loss[1],
                "high": figures.loss[2],
                "satisfied": plan_verdict(name, figures, measured, profile.target),
                "summary": f"loop {figures.exact_loop_ms / figures.loop_ms:.2f}x, "
                f"PSNR to exact {figures.psnr[0]:.1f} dB"
                + (f", KID {figures.kid:.2f}" if figures.kid is not None else ""),
                "steps": [_say(step) for step in plan.steps] if plan else ["every scale full"],
            }
        )
    return rows


def _say(step: Any) -> str:
    options = step.model_dump(mode="json", exclude_defaults=True)
    tokens, features = options.pop("tokens", None), options.pop("features", None)
    parts = [f"{key} {value}" for key, value in options.items()]
    if tokens:
        parts.append(f"keep {tokens['keep']} by {tokens['select']}, restore {tokens['restore']}")
    if features:
        parts.append(f"features of rank {features['rank']}, {features['basis']}")
    return ", ".join(parts)


def _pictures(profile: Profile, pipeline: Pipeline | None, inputs: Inputs | None) -> list[Any]:
    if pipeline is None or inputs is None or profile.calibration is None:
        return []
    part = inputs.chunk(0, PAIRS)
    model = pipeline.model
    sampling = Sampling(**profile.calibration.sampling_settings())
    pair = [
        generate(
            model, part.condition(model), plan_for(model, steps, sampling), seed=list(part.seeds)
        )
        .images.float()
        .cpu()
        for steps in ((), profile.plan("balanced").steps)
    ]
    return [
        {"uri": plots.picture_pair(exact, fast), "caption": str(item)}
        for exact, fast, item in zip(*pair, part.items, strict=True)
    ]


def _tables(measured: Measurements, names: list[str]) -> list[Any]:
    images = len(measured.smooth[EXACT])
    rows = []
    for intervention in measured.interventions:
        values = measured.smooth.get(intervention.name, [])
        if not values:
            continue
        mean, low, high = band(measured.losses(intervention.name))
        given_up = f"given up after {len(values)}" if len(values) < images else str(len(values))
        rows.append(
            [
                intervention.name,
                names[intervention.scale],
                f"{mean[0]:+.4f}",
                f"{low[0]:+.4f} to {high[0]:+.4f}",
                f"{np.mean(measured.psnr[intervention.name]):.1f}",
                given_up,
            ]
        )
    return [
        *tag_tables(measured),
        {
            "title": "Every intervention",
            "header": ["what changes", "from", "loss (smooth)", "95 %", "PSNR dB", "images"],
            "rows": rows,
            "caption": "One change at a time, on the calibration inputs, noise coupled to exact.",
        },
    ]


def _notes(measured: Measurements) -> list[str]:
    attempts = measured.validation.attempts
    notes = [
        "Speed-ups are against this project's own exact path on this device, in the same run.",
        "Losses of single changes do not add up exactly: the plan was run on held-out inputs.",
        "Intervals are 95 %, over images; one that holds zero does not show a difference.",
    ]
    if any(attempt.plan for attempt in attempts):
        notes.append(f"{len(attempts)} plans ran side by side on fresh inputs to choose from.")
    elif len(attempts) > 1:
        notes.append(f"The plan was chosen {len(attempts)} times: earlier ones were too slow.")
    notes += [f"Not monotone: {sentence}." for sentence in measured.validation.not_monotone]
    if measured.job.metric == "ssim-to-exact":
        notes.append(
            "No scorer is known for this checkpoint: quality is likeness to the exact picture, "
            "which says nothing about whether the picture is good."
        )
    return notes
