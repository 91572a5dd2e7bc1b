"""``stagevar-probe calibrate``: measure a checkpoint, write its profile."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import click

from stagevar_runtime.loop.plan import EXACT

from ..calibrate.job import CalibrationJob, Outputs, Settings
from ..calibrate.processes import ALONE, Processes, joined
from ..files import check_writable
from ..measure.costs import describe_scales
from ..measure.measurements import load_measurements
from ..progress import duration
from ..validate.table import figures_table
from .options import (
    BATCH,
    CHECKPOINT,
    FILE,
    MEASURING,
    ModelOptions,
    Printer,
    TargetOptions,
    command_line,
    default_count,
    model_options,
    printing,
    target_options,
)

logger = logging.getLogger("stagevar_probe")

NOTHING_FASTER = (
    "no faster plan kept the budget, so balanced is the exact path: "
    "allow more (--max-loss), or measure more images (--count)"
)
FILES = ("profile", "measurements", "report", "bases")


@click.command()
@click.argument("checkpoint", type=CHECKPOINT)
@model_options(*BATCH, *MEASURING)
@printing
@click.option("--output", "-o", type=FILE, help="The profile (default: beside the checkpoint).")
@click.option("--count", default=None, type=click.IntRange(2), help="Calibration images.")
@click.option("--held-out", default=None, type=click.IntRange(2), help="Held-out images.")
@target_options
@click.option("--resume/--no-resume", default=True, help="Go on with an interrupted run.")
@click.option("--dry-run", is_flag=True, help="One image: peak memory and time, writes nothing.")
def calibrate(
    checkpoint: Path,
    options: ModelOptions,
    printer: Printer,
    asked: TargetOptions,
    output: Path | None,
    count: int | None,
    held_out: int | None,
    resume: bool,
    dry_run: bool,
) -> int:
    """Measure CHECKPOINT and write its profile, measurements and report beside it.

    Exit code 5: the profile was written, but its balanced plan misses the target.
    """
    try:
        with joined() as processes:
            if not processes.first:
                printer.hush()
            outputs = Outputs.beside(checkpoint, output)
            if checkpoint.exists() and not dry_run:
                check_writable(outputs.profile, outputs.measurements, outputs.report, outputs.bases)
            counts = (count, held_out)
            job = prepare(
                checkpoint, options, asked, outputs, counts, processes, quiet=printer.quiet
            )
            result, text = trial(checkpoint, job) if dry_run else run(checkpoint, job, resume)
    except KeyboardInterrupt:
        click.echo(
            "\ninterrupted: what was measured is kept. Go on with the same command:\n"
            f"  {command_line()}",
            err=True,
        )
        return 130
    if processes.first:
        printer.show(result, text)
    return 0 if result.get("satisfied", True) else 5


def prepare(
    checkpoint: Path,
    options: ModelOptions,
    asked: TargetOptions,
    outputs: Outputs,
    counts: tuple[int | None, int | None] = (None, None),
    processes: Processes = ALONE,
    quiet: bool = False,
) -> CalibrationJob:
    """The job: the model is loaded, its inputs are drawn. ``counts``: of images, then held out."""
    pipeline = options.load(checkpoint)
    model, quality = pipeline.model, options.quality(checkpoint, pipeline)
    count, held_out = counts
    target = asked.target(quality.default_loss)
    return CalibrationJob(
        pipeline,
        options.inputs(pipeline, count or default_count(model), held_out=False),
        options.inputs(pipeline, held_out or default_count(model, True), held_out=True),
        pipeline.sampling(**options.sampling),
        quality,
        Settings(
            max_loss=target.max_loss,
            min_speedup=target.min_speedup,
            max_ms=target.max_ms,
            loss_asked=target.loss_asked,
            seed=options.seed,
            batch=options.batch,
            quiet=quiet,
        ),
        outputs,
        processes,
    )


def trial(checkpoint: Path, job: CalibrationJob) -> tuple[dict[str, Any], str]:
    """One image: how much memory and time the whole calibration would take."""
    work = job.work()
    found = job.dry_run()
    return found, (
        f"{checkpoint.name}: {describe_scales(job.pipeline.model.scales())}\n"
        f"one image: {found['seconds_one_image']:.2f} s, "
        f"peak memory {found['peak_memory_mb']:.0f} MB\n"
        f"{work['interventions']:.0f} interventions, at most {work['generations']:.1f} "
        f"generations per image; the whole calibration: "
        f"about {found['seconds_estimate'] / 60:.1f} minutes"
    )


def run(checkpoint: Path, job: CalibrationJob, resume: bool) -> tuple[dict[str, Any], str]:
    """Measure, choose, validate and write; the held-out figures of every plan."""
    work = job.work()
    metric = job.quality.name
    logger.info(
        "%s: %s\n%s; %d interventions on %d images, at most %.1f generations "
        "per image, then %d held-out images: at most about %s",
        checkpoint.name,
        describe_scales(job.pipeline.model.scales()),
        job.target.description(metric),
        work["interventions"],
        len(job.inputs),
        work["generations"],
        len(job.held_out),
        duration(job.seconds(work)),
    )
    profile = job.run(resume)
    assert profile.target is not None
    figures = load_measurements(job.outputs.measurements).validation.plans
    shown = {name: figures[name] for name in (EXACT, *profile.plans)}
    result = {
        "profile": str(job.outputs.profile),
        "measurements": str(job.outputs.measurements),
        "report": str(job.outputs.report),
        **({"bases": str(job.outputs.bases)} if job.outputs.bases.exists() else {}),
        "satisfied": profile.target.satisfied,
        "max_loss": profile.target.max_loss,
        "plans": {name: found.dump() for name, found in shown.items()},
    }
    verdict = "met" if profile.target.satisfied else "NOT met"
    text = [
        figures_table(shown),
        f"target: {job.target.description(metric)}: {verdict}",
        *([] if profile.plan("balanced").steps else [NOTHING_FASTER]),
        *(f"{name:<13}{result[name]}" for name in FILES if name in result),
    ]
    return result, "\n".join(text)
