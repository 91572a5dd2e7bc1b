"""``stagevar-probe compare``: gather what it needs, say what it will cost, run, write."""

from __future__ import annotations

import logging
from dataclasses import asdict, replace
from pathlib import Path

import click

import stagevar_runtime
from stagevar_runtime.profile.fingerprint import schedule_name

from ..compare.comparison import CALM, ComparisonRun, disturbance
from ..compare.grid import Grid
from ..compare.questions import as_json, findings
from ..compare.table import as_csv, as_rows, as_table
from ..files import beside, check_writable, write_whole
from ..measure.costs import describe_scales
from ..measure.hardware import hardware
from ..progress import duration
from ..report.comparison import write_comparison
from .options import (
    BATCH,
    CHECKPOINT,
    FILE,
    MEASURING,
    ModelOptions,
    Printer,
    command_line,
    default_count,
    model_options,
    printing,
)

logger = logging.getLogger("stagevar_probe")


@click.command()
@click.argument("checkpoint", type=CHECKPOINT)
@model_options(*BATCH, *MEASURING)
@printing
@click.option("--profile", type=FILE, help="Its plans take part (default: found).")
@click.option("--output", "-o", type=FILE, help="The HTML file (default: beside the checkpoint).")
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
@click.option("--dry-run", is_flag=True, help="Say the work and the time, run nothing.")
def compare(
    checkpoint: Path,
    options: ModelOptions,
    printer: Printer,
    profile: Path | None,
    output: Path | None,
    count: int | None,
    keep: tuple[float, ...],
    span: str,
    grid: bool,
    dry_run: bool,
) -> int:
    """Every method side by side on CHECKPOINT: presets, token options, plans, retuned guidance.

    Same seeds and noise in every row. Writes a report and a CSV; --json prints everything.
    """
    page = output or beside(checkpoint, "compare.html")
    table = page.with_suffix(".csv")
    if checkpoint.exists() and not dry_run:
        check_writable(page, table)
    pipeline = options.load(checkpoint, "auto" if profile is None else profile)
    model = pipeline.model
    fresh = replace(options, seed=options.seed + 1)  # those of `validate`, which chose no plan
    inputs = fresh.inputs(pipeline, count or default_count(model), held_out=True)
    quality = options.quality(checkpoint, pipeline)
    sampling = pipeline.sampling(**options.sampling)
    contest = ComparisonRun(
        model,
        inputs,
        sampling,
        quality,
        options.batch,
        pipeline.profile,
        Grid(keep=tuple(keep) or Grid.keep, span=span) if grid else None,
        printer.quiet,
    )
    work = contest.work()
    description = (
        f"{checkpoint.name}: {describe_scales(model.scales())}\n"
        f"{work.rows} rows on {work.images} images, metric {quality.name}: "
        f"{work.generations:.1f} generations per image, about {duration(work.seconds)}"
    )
    if dry_run:
        printer.show({"work": asdict(work)}, description)
        return 0
    logger.info(description)
    found = contest.run()
    given = findings(found)
    ratio = disturbance(found)
    if ratio > CALM:
        logger.warning(
            "times are disturbed: the exact path took %.2f times as long at one guidance as at "
            "another, though the work is the same. Compare again on an idle machine",
            ratio,
        )
    job = {
        "checkpoint": checkpoint.name,
        "family": model.info.family,
        "schedule": schedule_name(model.scales()),
        "weights": pipeline.fingerprint.weights,
        "inputs": f"{inputs.name}, sha256:{inputs.sha256}",
        "seed": options.seed,
        "sampling": asdict(sampling),
        "metric": quality.name,
        "features": quality.features.name,
        "likeness": quality.perceptual.likeness,
        "reference": quality.features.source,
        "dtype": str(model.dtype).removeprefix("torch."),
        "hardware": hardware(model),
        "version": stagevar_runtime.__version__,
    }
    write_comparison(page, found, given, job, command_line())
    write_whole(table, as_csv(found).encode())
    result = {
        "job": job,
        "work": asdict(work),
        "rows": as_rows(found),
        "left_out": dict(found.rows.left_out),
        "answers": as_json(given),
        "disturbance": ratio,
        "report": str(page),
        "csv": str(table),
    }
    text = [as_table(found), ""]
    text += [f"{finding.question}\n  {finding.sentence}" for finding in given]
    text += [f"report {page}", f"csv    {table}"]
    printer.show(result, *text)
    return 0
