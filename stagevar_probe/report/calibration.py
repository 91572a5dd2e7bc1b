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
from ..intervals import bootstrap_mean
from ..measure.figures import Figures
from ..measure.interventions import PUBLISHED
from ..measure.measurements import Measurements
from ..observe.rank import ALPHA, ratio_name
from . import plots
from .html import ReportData, write_report
from .verdict import plan_verdict, sentences

PAIRS = 8


def write_story(
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
    names = [f"{h}x{w}" for h, w, _ in job["scales"]]
    best = measured.validation.plans.get("balanced")
    target = profile.target
    assert target is not None
    return ReportData(
        title=job["checkpoint"],
        subtitle=f"{job['family']}, {len(names)} scales to {names[-1]}, "
        f"{job['hardware']['device']} {job['dtype']}, batch {job['batch']}",
        satisfied=target.satisfied,
        verdict=sentences(best, target, measured.validation.evidence.get("balanced")),
        headlines=_headlines(best),
        facts=_facts(profile),
        loss_name=f"{job['metric']} lost",
        plans=_plan_rows(measured, profile),
        figures=_figures(measured, profile, names),
        pictures=_pictures(profile, pipeline, inputs),
        pictures_title="",
        pictures_caption="Left: exact. Right: balanced. Same label, same seed.",
        tables=_tables(measured, names),
        notes=_notes(measured),
        provenance=[
            ("weights", str(profile.model.weights)),
            ("inputs", f"{job['inputs']['name']}, {job['inputs']['sha256']}"),
            (
                "created",
                f"{profile.created_by.at} by {profile.created_by.tool} "
                f"{profile.created_by.version}",
            ),
        ],
        command=f"stagevar-probe calibrate {job['checkpoint']} --seed {job['seed']}",
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
    said = step.model_dump(mode="json", exclude_defaults=True)
    tokens, features = said.pop("tokens", None), said.pop("features", None)
    parts = [f"{key} {value}" for key, value in said.items()]
    if tokens:
        parts.append(f"keep {tokens['keep']} by {tokens['select']}, restore {tokens['restore']}")
    if features:
        parts.append(f"features of rank {features['rank']}, {features['basis']}")
    return ", ".join(parts)


def _band(values: Any) -> plots.Band:
    mean, low, high = bootstrap_mean(np.asarray(values))
    return plots.Band(*(list(np.atleast_1d(x)) for x in (mean, low, high)))


def _shares(values: Any) -> Any:
    array = np.asarray(values)
    return array / np.maximum(array.sum(1, keepdims=True), 1e-12)


def _figures(measured: Measurements, profile: Profile, names: list[str]) -> list[Any]:
    assert measured.costs and profile.stages
    job = measured.job
    scales = sorted(measured.sensitivity)
    figures = []
    if scales:
        series = {
            f"{branch} alone": _band(np.array([measured.sensitivity[k][branch] for k in scales]).T)
            for branch in ("cond", "null")
        }
        figures.append(
            (
                "Guidance sensitivity",
                plots.curves(
                    [names[k] for k in scales], series, "divergence (nats)", "Guidance sensitivity"
                ),
                "Jensen-Shannon divergence between guided and one-branch token distributions.",
            )
        )
    effects = {
        variant: [
            a for a in measured.interventions if a.variant == variant and a.schedule == PUBLISHED
        ]
        for variant in measured.space.variants
    }
    images = len(measured.smooth[EXACT])
    whole = {
        variant: {a.scale: a for a in interventions}
        for variant, interventions in effects.items()
        if interventions
        and all(len(measured.smooth.get(a.name, ())) == images for a in interventions)
    }
    shared = sorted(set.intersection(*map(set, whole.values()))) if whole else []
    if shared:  # a variant may begin later than another: what all of them have is drawn
        series = {
            variant: _band(np.array([measured.losses(interventions[k].name) for k in shared]).T)
            for variant, interventions in whole.items()
        }
        at = [names[k] for k in shared]
        figures.append(
            (
                "What dropping guidance costs",
                plots.curves(
                    at, series, f"{measured.job['metric']} lost", "Loss when guidance is dropped"
                ),
                "Interventional: guidance dropped from this scale on, the rest run again.",
            )
        )
    figures.append(
        (
            "Feature rank",
            plots.ranks(
                names,
                {
                    label: np.array(
                        [
                            measured.group_means(k, centring, ratio_name(ALPHA))
                            for k in range(len(names))
                        ]
                    ).T
                    for label, centring in (("centred (pca)", "pca"), ("plain (svd)", "svd"))
                },
            ),
            f"Smallest rank with {ALPHA:.0%} of the energy, over the tokens, by group of blocks.",
        )
    )
    structure, refinement = profile.stages.structure, profile.stages.refinement
    assert structure and refinement
    ran, batch = _ran(measured, profile), measured.costs.batch
    figures.append(
        (
            "Stages",
            plots.stages(
                names,
                {
                    "semantic": _band(measured.semantic),
                    "structural": _band(measured.structural),
                },
                structure.scale,
                refinement.scale,
                structure.ci95,
                refinement.ci95,
            ),
            "Likeness of the picture after each scale to the final one: cosine of features "
            f"({job.get('features', 'of the metric')}), {job.get('likeness', 'SSIM')}.",
        )
    )
    change = {"low": _band(_shares(measured.low)), "high": _band(_shares(measured.high))}
    figures.append(
        (
            "Frequency change",
            plots.curves(names[1:], change, "share of all its change", "Frequency change"),
            "Of all that the low (below a quarter of Nyquist) and the high spatial frequencies of "
            "the decoded picture change, how much changes at each scale (mean squares).",
        )
    )
    figures.append(
        (
            "Where the time goes",
            plots.time_bars(
                names,
                {name: [ms / batch for ms in f.scale_ms] for name, f in ran.items()},
                {name: {"decode": f.decode_ms / batch} for name, f in ran.items()},
            ),
            f"Milliseconds an image, in batches of {batch}, on the held-out inputs.",
        )
    )
    figures.append(
        ("Frontier", _frontier(measured, profile), "Named: held out, 95 %. Others: predicted.")
    )
    return [{"title": t, "svg": s, "caption": c} for t, s, c in figures]


def _frontier(measured: Measurements, profile: Profile) -> str:
    assert measured.costs and profile.target
    batch, decode = measured.costs.batch, measured.costs.decode_ms
    points = [
        plots.Point((point.ms + decode) / batch, point.loss, point.loss, point.loss)
        for point in measured.validation.frontier
    ]
    points += [
        plots.Point(f.total_ms / f.batch, f.loss[0], f.loss[1], f.loss[2], name)
        for name, f in _ran(measured, profile).items()
    ]
    return plots.frontier(points, profile.target.max_loss, f"{measured.job['metric']} lost")


def _ran(measured: Measurements, profile: Profile) -> dict[str, Figures]:
    found = measured.validation.plans
    return {name: found[name] for name in (EXACT, *profile.plans) if name in found}


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
        mean, low, high = _band(measured.losses(intervention.name))
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
        {
            "title": "Every intervention",
            "header": ["what changes", "from", "loss (smooth)", "95 %", "PSNR dB", "images"],
            "rows": rows,
            "caption": "One change at a time, on the calibration inputs, noise coupled to exact.",
        }
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
    notes += [f"Not monotone: {said}." for said in measured.validation.not_monotone]
    if measured.job["metric"] == "ssim-to-exact":
        notes.append(
            "No scorer is known for this checkpoint: quality is likeness to the exact picture, "
            "which says nothing about whether the picture is good."
        )
    return notes
