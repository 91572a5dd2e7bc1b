"""``stagevar-probe calibrate``: measure a checkpoint, write its profile."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from stagevar_runtime.errors import StagevarError
from stagevar_runtime.loop.plan import EXACT

from ..calibrate.job import CalibrationJob
from ..calibrate.processes import ALONE, Processes, joined
from ..calibrate.settings import Materials, Outputs, Settings, Tools
from ..files import check_writable
from ..measure.costs import describe_scales
from ..measure.measurements import load_measurements
from ..progress import duration
from ..validate.table import evidence_lines, figures_table
from ..validate.verdict import Budget, said
from .options import (
    ModelOptions,
    Printer,
    TargetOptions,
    command_line,
    default_count,
    model_options,
    printing,
    target_options,
)
from .parameters import ALSO, BATCH, CHECKPOINT, FILE, MEASURING, TIME

logger = logging.getLogger("stagevar_probe")

NOTHING_FASTER = (
    "every faster plan is shown, or seems, to break the budget, so balanced is the exact path: "
    "allow more (--max-loss), or more time (--time)"
)
FILES = ("profile", "measurements", "report", "bases")


@click.command()
@click.argument("checkpoint", type=CHECKPOINT)
@model_options(*BATCH, *MEASURING)
@printing
@click.option("--output", "-o", type=FILE, help="The profile (default: beside the checkpoint).")
@click.option("--time", "seconds", type=TIME, help="Time for everything, such as 10m.")
@click.option("--count", type=click.IntRange(2), help="Images to measure with at most.")
@click.option("--held-out", type=click.IntRange(2), help="Images to prove with at most.")
@click.option("--also", type=ALSO, metavar="TAG=LOSS", help="A budget for prompts of one kind.")
@target_options
@click.option("--resume/--no-resume", default=True, help="Go on with an interrupted run.")
@click.option("--dry-run", is_flag=True, help="One image: peak memory and time, writes nothing.")
def calibrate(
    checkpoint: Path,
    options: ModelOptions,
    printer: Printer,
    asked: TargetOptions,
    output: Path | None,
    seconds: float | None,
    count: int | None,
    held_out: int | None,
    also: tuple[str, float] | None,
    resume: bool,
    dry_run: bool,
) -> int:
    """Measure CHECKPOINT and write its profile, measurements and report beside it.

    Takes the time that is announced (--time). Exit code 5: the profile was written, but its
    balanced plan misses the target, or is not proved to meet it.
    """
    try:
        with joined() as processes:
            if not processes.first:
                printer.hush()
            outputs = Outputs.beside(checkpoint, output)
            if checkpoint.exists() and not dry_run:
                check_writable(outputs.profile, outputs.measurements, outputs.report, outputs.bases)
            effort = Effort(seconds, count, held_out, also, printer.quiet)
            job = prepare(checkpoint, options, asked, outputs, effort, processes)
            result, text = trial(checkpoint, job) if dry_run else run(checkpoint, job, resume)
    except KeyboardInterrupt:
        click.echo(
            "\ninterrupted: what was measured is kept, and the best plan so far is written, where "
            "there is one. Go on with the same command:\n"
            f"  {command_line()}",
            err=True,
        )
        return 130
    if processes.first:
        printer.show(result, text)
    return 0 if result.get("satisfied", True) is True else 5


@dataclass(frozen=True)
class Effort:
    """How much is done: the time, images at most, and a second budget for prompts of a kind."""

    seconds: float | None = None
    count: int | None = None
    held_out: int | None = None
    also: tuple[str, float] | None = None
    quiet: bool = False


def prepare(
    checkpoint: Path,
    options: ModelOptions,
    asked: TargetOptions,
    outputs: Outputs,
    effort: Effort | None = None,
    processes: Processes = ALONE,
    tools: Tools | None = None,
) -> CalibrationJob:
    """The job: the model is loaded, its inputs are drawn."""
    effort = effort or Effort()
    pipeline = options.load(checkpoint)
    losses = asked.max_loss or ()
    quality = options.quality(checkpoint, pipeline, losses)
    target = asked.target(quality.default_loss)
    beside = [*losses[1:], *(metric.default_loss for metric in quality.others[len(losses[1:]) :])]
    settings = Settings(
        max_loss=target.max_loss,
        min_speedup=target.min_speedup,
        max_ms=target.max_ms,
        loss_asked=target.loss_asked,
        seed=options.seed,
        batch=options.at_once(pipeline.model),
        quiet=effort.quiet,
        seconds=effort.seconds,
        held_out=effort.held_out,
        others=tuple(Budget(q.name, x) for q, x in zip(quality.others, beside, strict=True)),
        also=Budget(quality.name, effort.also[1], effort.also[0]) if effort.also else None,
    )
    proof = options.supply(pipeline, "proof")
    kinds = sorted(set(proof.tags.values()))
    if effort.also and effort.also[0] not in kinds:
        raise StagevarError(
            f"--also {effort.also[0]}: no prompt of {proof.name} is of that kind, expected "
            f"{', '.join(kinds) or 'prompts that say their kind (tag)'}"
        )
    count = effort.count or default_count(pipeline.model)
    materials = Materials(
        options.inputs(pipeline, count, held_out=False),
        options.supply(pipeline, "race"),
        proof,
        pipeline.sampling(**options.sampling),
        quality,
    )
    return CalibrationJob(pipeline, materials, settings, outputs, processes, tools)


def trial(checkpoint: Path, job: CalibrationJob) -> tuple[dict[str, Any], str]:
    """One image: how much memory and time the whole calibration would take."""
    found = job.trial()
    return found, (
        f"{checkpoint.name}: {describe_scales(job.pipeline.model.scales())}\n"
        f"one image: {found['seconds_one_image']:.2f} s, "
        f"peak memory {found['peak_memory_mb']:.0f} MB\n"
        f"{found['interventions']:.0f} interventions, at most {found['generations']:.1f} "
        f"generations per image; the whole calibration: at most "
        f"{duration(found['seconds_estimate'])}"
    )


def run(checkpoint: Path, job: CalibrationJob, resume: bool) -> tuple[dict[str, Any], str]:
    """Measure, choose, prove and write; the figures of every plan on held-out inputs."""
    logger.info("%s: %s", checkpoint.name, describe_scales(job.pipeline.model.scales()))
    profile = job.run(resume)
    assert profile.target is not None
    found = load_measurements(job.outputs.measurements).validation
    shown = {name: found.plans[name] for name in (EXACT, *profile.plans) if name in found.plans}
    evidence = found.evidence.get("balanced")
    result = {
        "profile": str(job.outputs.profile),
        "measurements": str(job.outputs.measurements),
        "report": str(job.outputs.report),
        **({"bases": str(job.outputs.bases)} if job.outputs.bases.exists() else {}),
        "satisfied": profile.target.satisfied,
        "max_loss": profile.target.max_loss,
        "evidence": None if evidence is None else evidence.dump(),
        "seconds": dict(found.seconds),
        "plans": {name: figures.dump() for name, figures in shown.items()},
    }
    metric = job.materials.quality.name
    text = [
        figures_table(shown),
        f"target: {job.target.description(metric)}: {said(profile.target.satisfied)}",
        *([] if evidence is None else evidence_lines(evidence)),
        *([] if profile.plan("balanced").steps else [NOTHING_FASTER]),
        *(f"{name:<13}{result[name]}" for name in FILES if name in result),
    ]
    return result, "\n".join(text)
