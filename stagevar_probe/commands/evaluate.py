"""``stagevar-probe evaluate``: gather what it needs, say what it will cost, run, write."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import stagevar_runtime
from stagevar_runtime.errors import CalibrationError
from stagevar_runtime.pipeline import GPU_TILE, Pipeline
from stagevar_runtime.profile.fingerprint import schedule_name
from stagevar_runtime.text.words import WordEncoder

from ..evaluate.evaluation import (
    Evaluation,
    as_table,
    evaluate,
    evaluation_lineup,
    suite_inputs,
    table,
)
from ..evaluate.suites import Suite, find_suite
from ..files import beside, check_writable
from ..measure.costs import describe_scales
from ..measure.hardware import hardware
from ..measure.measurements import write_json
from ..metrics.features import find_features
from ..metrics.quality import find_quality
from ..progress import duration
from ..report import plots
from ..report.html import ReportData, TableData, write_report
from ..tables import ranged
from ..validate.rows import EXACT
from ..validate.run import forecast
from .verbs import ModelOptions, Said

logger = logging.getLogger("stagevar_probe")


def evaluate_suite(
    checkpoint: Path,
    options: ModelOptions,
    suite: str = "scenes",
    pictures: Path | None = None,
    profile: Path | None = None,
    output: Path | None = None,
    count: int = 1050,
    dry_run: bool = False,
    quiet: bool = False,
    command: str = "stagevar-probe evaluate",
) -> Said:
    """Score the exact path, every preset and every plan of the profile by a suite.

    ``pictures``: the archive of a suite that needs one. Writes ``model.evaluation.json`` and
    ``.html`` beside the checkpoint, or by the name ``output``.

    Raises:
        CalibrationError: an unknown suite, an archive that it cannot use, or a model that takes no
            prompts.
        StagevarError: the model does not know a word of the prompts.
    """
    asked = find_suite(suite, pictures)
    page = output or beside(checkpoint, "evaluation.html")
    if checkpoint.exists() and not dry_run:
        check_writable(page, page.with_suffix(".json"))
    pipeline = options.load(checkpoint, "auto" if profile is None else profile)
    model = pipeline.model
    inputs, kinds = suite_inputs(asked, count, options.seed, pipeline.read_condition)
    check_prompts(pipeline, asked, inputs.items)
    sampling = pipeline.sampling(**options.sampling)
    tile = GPU_TILE if model.device.type == "cuda" else 1
    made = evaluation_lineup(model, sampling, pipeline.profile, tile)
    batch = min(options.batch, count)
    _, seconds, _ = forecast(model, inputs, made.plans, sampling, batch)
    said = (
        f"{checkpoint.name}: {describe_scales(model.scales())}\n"
        f"suite {suite}, {count} images, {len(made.plans)} different rows, metric "
        f"{asked.metric.name}, features {find_features(options.features).name}: "
        f"about {duration(seconds)}"
    )
    work = {"rows": len(made.plans), "images": count, "seconds": seconds}
    if dry_run:
        return {"work": work}, said
    logger.info(said)
    quality = find_quality(asked.metric, checkpoint, 0, options.features, options.reference)
    found = evaluate(model, asked, inputs, kinds, made, sampling, quality, batch, quiet)
    facts = {
        "inputs": f"{inputs.name}, sha256:{inputs.sha256}",
        "seed": options.seed,
        "sampling": asdict(sampling),
    }
    return _written(found, _job(pipeline, found, facts), page, command)


def check_prompts(pipeline: Pipeline, suite: Suite, prompts: Sequence[int | str]) -> None:
    """Raise, before the work, for a model that cannot read the prompts of a suite."""
    if pipeline.model.info.classes:
        raise CalibrationError(
            f"suite {suite.name} asks with prompts, {pipeline.path.name} draws from class labels: "
            "use stagevar-probe validate"
        )
    encoder = getattr(pipeline.encode, "__self__", None)
    if isinstance(encoder, WordEncoder):
        encoder.numbered([str(prompt) for prompt in prompts])


def _job(pipeline: Pipeline, found: Evaluation, facts: dict[str, Any]) -> dict[str, Any]:
    """What was run, for the record."""
    model, suite = pipeline.model, found.suite
    return {
        "suite": suite.name,
        "checkpoint": pipeline.path.name,
        "family": model.info.family,
        "schedule": schedule_name(model.scales()),
        "weights": pipeline.fingerprint.weights,
        "profile": pipeline.profile_source if pipeline.profile is None else "beside it",
        **facts,
        **({"pictures": suite.source} if suite.source else {}),
        "metric": found.quality.name,
        "features": found.quality.features.name,
        "dtype": str(model.dtype).removeprefix("torch."),
        "hardware": hardware(model),
        "version": stagevar_runtime.__version__,
    }


def _written(found: Evaluation, job: dict[str, Any], page: Path, command: str) -> Said:
    """Write JSON and page, and say what is in them."""
    result: dict[str, Any] = {
        "job": job,
        "ceiling": found.ceiling,
        "rows": [
            {"name": entry.name, "kind": entry.kind, **found.figures[entry.name]}
            for entry in found.lineup.entries
        ],
        "left_out": dict(found.lineup.left_out),
    }
    data = page.with_suffix(".json")
    write_json(data, result)
    write_report(_page(found, job, command), page)
    result |= {"report": str(page), "json": str(data)}
    lines = [as_table(found), "", *ceiling_lines(found), f"report {page}", f"json   {data}"]
    return result, "\n".join(lines)


def ceiling_lines(found: Evaluation) -> list[str]:
    """What the suite and the tokenizer allow at most."""
    suite, ceiling, lines = found.suite, found.ceiling, []
    said = {
        "real": f"{suite.made} pictures pass {{}}",
        "rebuilt": "encoded and decoded by the tokenizer they pass {}: the ceiling",
        **suite.description,
    }
    for name in (name for name in said if name in ceiling):
        rates = [ranged(ceiling[name])]
        rates += [f"{head} {ranged(ceiling[f'{name} {head}'])}" for head in suite.beside]
        lines.append(said[name].format(", ".join(rates)))
    if "nearest_real" in ceiling:
        made = found.figures[EXACT]["nearest"][0]
        lines.append(
            f"nearest training picture: {made:.3f} away from a generated one, "
            f"{ceiling['nearest_real'][0]:.3f} from a {suite.made} one never trained on"
        )
    return lines


def _page(found: Evaluation, job: dict[str, Any], command: str) -> ReportData:
    head, *rows = table(found)
    exact = found.figures[EXACT]
    best: dict[bool, list[plots.Point]] = {True: [], False: []}
    for entry in found.lineup.entries:
        f = found.figures[entry.name]
        lost, low, high = f["passed_loss"]
        plan = entry.kind in ("plan", EXACT)
        point = plots.Point(f["total_ms"] / f["batch"], lost, low, high, entry.name[:28])
        best[plan].append(point)
    cells = TableData(
        title="Every row",
        header=[head[0] or "row", *head[1:]],
        rows=rows,
        caption=f"Milliseconds an image, end to end. {found.suite.caption} Lost: paired with the "
        "exact path. Brackets: 95 %.",
    )
    return ReportData(
        title=f"{job['checkpoint']}: {job['suite']}",
        subtitle=f"{exact['images']} images, batch {exact['batch']}, "
        f"{job['hardware']['device']} {job['dtype']}",
        satisfied=None,
        verdict=f"The exact path passes {ranged(exact['passed'])}.",
        headlines=[],
        facts=[(name, reason) for name, reason in found.lineup.left_out.items()],
        loss_name="pass rate lost",
        plans=[],
        figures=[
            {
                "title": "Time and pass rate lost",
                "svg": plots.frontier(best[True], None, "pass rate lost", best[False]),
                "caption": "Joined: exact and the profile's plans. Light: presets. Bars: 95 %.",
            }
        ],
        pictures=[
            {"uri": plots.picture_row(found.strips[entry.name]), "caption": entry.name}
            for entry in found.lineup.entries
        ],
        pictures_title="Pictures: the same seeds in every row",
        pictures_caption="; ".join(found.prompts),
        tables=[cells],
        notes=ceiling_lines(found),
        provenance=[(name, str(value)) for name, value in job.items()],
        command=command,
    )
