"""``stagevar-probe evaluate``: gather what it needs, say what it will cost, run, write."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from stagevar_runtime.errors import CalibrationError
from stagevar_runtime.pipeline import Pipeline
from stagevar_runtime.text import TextEncoder

from ..datasets.archive import MAKE
from ..evaluate.evaluation import (
    Evaluation,
    as_table,
    run_suite,
    suite_inputs,
    suite_rows,
)
from ..evaluate.suites import SUITES, Suite, fault_of, find_suite
from ..measure.costs import describe_scales
from ..measure.description import RunDescription
from ..measure.measurements import write_json
from ..metrics.features import find_features
from ..metrics.quality import find_quality
from ..progress import duration
from ..report.evaluation import ceiling_lines, write_evaluation
from ..validate.run import forecast
from .options import ModelOptions, PageOptions, Printer, command_line, running_rows
from .parameters import FILE, LOOKING

logger = logging.getLogger("stagevar_probe")


@click.command()
@running_rows(*LOOKING)
@click.option(
    "--suite",
    default="scenes",
    show_default=True,
    type=click.Choice(SUITES),
    help="What is asked and how answers are judged.",
)
@click.option("--pictures", type=FILE, help=f"Archive of real pictures, for emoji: {MAKE}.")
@click.option("--count", default=1050, show_default=True, type=click.IntRange(14), help="Images.")
def evaluate(
    checkpoint: Path,
    options: ModelOptions,
    printer: Printer,
    suite: str,
    pictures: Path | None,
    paper: PageOptions,
    count: int,
) -> int:
    """Score CHECKPOINT by a suite: exact path, presets and plans in one table with time.

    scenes: pass rates by GenEval's kinds, by rule. emoji: is the asked concept the most alike among
    real pictures (R@1, R@5), for held-out pairs, held-out concepts and trained prompts. Intervals,
    distribution, distance to the exact path and to training pictures. Writes a report and a JSON
    file.
    """
    if fault := fault_of(suite, pictures):
        raise click.UsageError(fault)
    asked = find_suite(suite, pictures)
    page, _ = paper.paths(checkpoint, "evaluation.html", ".json")
    pipeline = paper.load(checkpoint, options)
    model = pipeline.model
    inputs, kinds = suite_inputs(asked, count, options.seed, pipeline.read_condition)
    check_prompts(pipeline, asked, inputs.items)
    sampling = pipeline.sampling(**options.sampling)
    rows = suite_rows(model, sampling, pipeline.profile)
    batch = min(options.at_once(model), count)
    _, seconds, _ = forecast(model, inputs, rows.plans, sampling, batch)
    work = {"rows": len(rows.plans), "images": count, "seconds": seconds}
    description = (
        f"{checkpoint.name}: {describe_scales(model.scales())}\n"
        f"suite {suite}, {count} images, {len(rows.plans)} different rows, metric "
        f"{asked.metric.name}, features {find_features(options.features).name}: "
        f"about {duration(seconds)}"
    )
    if paper.dry_run:
        printer.show({"work": work}, description)
        return 0
    logger.info(description)
    quality = find_quality(asked.metric, checkpoint, 0, options.features, options.reference)
    found = run_suite(model, asked, inputs, kinds, rows, sampling, quality, batch, printer.quiet)
    own = facts_of(asked, pipeline)
    job = RunDescription.of(pipeline, inputs, options.seed, sampling, quality, **own)
    write(found, job, page, printer)
    return 0


def facts_of(suite: Suite, pipeline: Pipeline) -> dict[str, str]:
    """What is asked, of which pictures, and whose plans take part."""
    profile = pipeline.profile_source if pipeline.profile is None else "beside it"
    pictures = {} if suite.source is None else {"pictures": suite.source}
    return {"suite": suite.name, "profile": profile, **pictures}


def check_prompts(pipeline: Pipeline, suite: Suite, prompts: Sequence[int | str]) -> None:
    """Raise, before the work, for a model that cannot read the prompts of a suite.

    Raises:
        CalibrationError: it takes no prompts.
        StagevarError: it does not know a word of them.
    """
    if pipeline.model.info.classes:
        raise CalibrationError(
            f"suite {suite.name} asks with prompts, {pipeline.path.name} draws from class labels: "
            "use stagevar-probe validate"
        )
    if isinstance(pipeline.encode, TextEncoder):
        pipeline.encode.check([str(prompt) for prompt in prompts])


def write(found: Evaluation, job: RunDescription, page: Path, printer: Printer) -> None:
    """Write JSON and page, and say what is in them."""
    result: dict[str, Any] = {
        "job": job.dump(),
        "ceiling": found.ceiling,
        "rows": [
            {"name": row.name, "kind": row.kind, **found.figures[row.name].dump()}
            for row in found.rows
        ],
        "left_out": dict(found.rows.left_out),
    }
    data = page.with_suffix(".json")
    write_json(data, result)
    write_evaluation(page, found, job, command_line())
    result |= {"report": str(page), "json": str(data)}
    lines = [as_table(found), "", *ceiling_lines(found), f"report {page}", f"json   {data}"]
    printer.show(result, *lines)
