"""``stagevar-probe compare``: gather what it needs, say what it will cost, run, write."""

from __future__ import annotations

import logging
from dataclasses import asdict, replace
from pathlib import Path

import click

from stagevar_runtime.pipeline import Pipeline

from ..compare.comparison import CALM, Comparison, ComparisonRun, disturbance
from ..compare.grid import Grid
from ..compare.questions import as_json, findings
from ..compare.table import as_csv, as_rows, as_table
from ..files import write_whole
from ..measure.costs import describe_scales
from ..measure.description import RunDescription
from ..progress import duration
from ..report.comparison import write_comparison
from .options import ModelOptions, PageOptions, Printer, command_line, default_count, running_rows
from .parameters import MEASURING

logger = logging.getLogger("stagevar_probe")


@click.command()
@running_rows(*MEASURING)
@click.option("--count", default=None, type=click.IntRange(4), help="Images per row.")
@click.option("--keep", multiple=True, type=click.FloatRange(0, 1, True), help="Ratios to try.")
@click.option(
    "--span",
    default="group",
    type=click.Choice(["group", "all"]),
    show_default=True,
    help="Tokens are chosen again at each group of blocks, or once for all.",
)
@click.option("--grid/--no-grid", default=True, help="Every selector and restorer.")
def compare(
    checkpoint: Path,
    options: ModelOptions,
    printer: Printer,
    paper: PageOptions,
    count: int | None,
    keep: tuple[float, ...],
    span: str,
    grid: bool,
) -> int:
    """Every method side by side on CHECKPOINT: presets, token options, plans, retuned guidance.

    Same seeds and noise in every row. Writes a report and a CSV; --json prints everything.
    """
    page, table = paper.paths(checkpoint, "compare.html", ".csv")
    pipeline = paper.load(checkpoint, options)
    tried = Grid(keep=tuple(keep) or Grid.keep, span=span) if grid else None
    run = prepare(checkpoint, pipeline, options, count, tried, printer.quiet)
    work = run.work()
    description = (
        f"{checkpoint.name}: {describe_scales(run.model.scales())}\n"
        f"{work.rows} rows on {work.images} images, metric {run.quality.name}: "
        f"{work.generations:.1f} generations per image, about {duration(work.seconds)}"
    )
    if paper.dry_run:
        printer.show({"work": asdict(work)}, description)
        return 0
    logger.info(description)
    found = run.run()
    given = findings(found)
    job = RunDescription.of(pipeline, run.inputs, options.seed, run.sampling, run.quality)
    write_comparison(page, found, given, job, command_line())
    write_whole(table, as_csv(found).encode())
    result = {
        "job": job.dump(),
        "work": asdict(work),
        "rows": as_rows(found),
        "left_out": dict(found.rows.left_out),
        "answers": as_json(given),
        "disturbance": trusted(found),
        "report": str(page),
        "csv": str(table),
    }
    said = [f"{finding.question}\n  {finding.sentence}" for finding in given]
    printer.show(result, as_table(found), "", *said, f"report {page}", f"csv    {table}")
    return 0


def prepare(
    checkpoint: Path,
    pipeline: Pipeline,
    options: ModelOptions,
    count: int | None,
    grid: Grid | None,
    quiet: bool,
) -> ComparisonRun:
    """What will be run, on inputs of its own."""
    fresh = replace(options, seed=options.seed + 1)  # those of `validate`, which chose no plan
    return ComparisonRun(
        pipeline.model,
        fresh.inputs(pipeline, count or default_count(pipeline.model), held_out=True),
        pipeline.sampling(**options.sampling),
        options.quality(checkpoint, pipeline),
        options.at_once(pipeline.model),
        pipeline.profile,
        grid,
        quiet,
    )


def trusted(found: Comparison) -> float:
    """How far times are disturbed; a warning where it is too far."""
    ratio = disturbance(found)
    if ratio > CALM:
        logger.warning(
            "times are disturbed: the exact path took %.2f times as long at one guidance as at "
            "another, though the work is the same. Compare again on an idle machine",
            ratio,
        )
    return ratio
