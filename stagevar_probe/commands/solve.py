"""``stagevar-probe solve``: other plans from the same measurements. Runs no model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import click

from stagevar_runtime.errors import CalibrationError
from stagevar_runtime.options.low_rank import Bases, bases_path
from stagevar_runtime.profile import write_profile

from ..calibrate.profile import build_profile
from ..files import check_writable, stem_of, write_whole
from ..measure.checked import damaged
from ..measure.measurements import Measurements, load_measurements, without_bases
from ..measure.validation import Validation
from ..observe.pca import measured_ranks
from ..solve.build import frontier_point, problem_from, steps_of
from ..solve.isotonic import disagreements
from ..solve.milp import Solution, frontier
from ..solve.target import Target
from ..validate.verdict import UNPROVEN
from .options import Printer, TargetOptions, printing, target_options
from .parameters import CHECKPOINT, FILE


@click.command()
@click.argument("measurements", type=CHECKPOINT)
@target_options
@click.option("--output", "-o", type=FILE, help="Write a profile with these plans.")
@printing
def solve(measurements: Path, asked: TargetOptions, output: Path | None, printer: Printer) -> int:
    """Choose plans again from MEASUREMENTS for another budget. Runs no model.

    Losses are the predicted sums of single interventions; check with `validate`.
    """
    if output is not None:
        check_writable(output)
    whole = load_measurements(measurements)
    if whole.costs is None:
        raise CalibrationError(f"{measurements}: holds no times, expected a finished calibration's")
    with damaged(measurements):
        result, lines = solved(measurements, whole, asked, output)
    printer.show(result, *lines)
    return 0


def solved(
    measurements: Path, whole: Measurements, asked: TargetOptions, output: Path | None
) -> tuple[dict[str, Any], list[str]]:
    """The plans, JSON-ready and for people; written to ``output`` where one is given."""
    job, beside = whole.job, bases_path(measurements.with_name(f"{stem_of(measurements)}.yaml"))
    bases = Bases.load(beside, job.weights) if beside.exists() else None
    measured = without_bases(whole, bases)
    if asked == TargetOptions():
        asked = TargetOptions(None, job.min_speedup, job.max_ms)
    target = asked.target(job.max_loss)
    problem = problem_from(measured, target.max_loss)
    assert measured.costs is not None
    found = target.choose(problem, measured.costs)
    result: dict[str, Any] = {
        "max_loss": target.max_loss,
        "min_speedup": target.min_speedup,
        "max_ms": target.max_ms,
        "feasible": found["balanced"].feasible,
        "predicted": True,
        "plans": {name: frontier_point(s, measured).dump() for name, s in found.items()},
        "frontier": [frontier_point(s, measured).dump() for s in frontier(problem)],
        "not_monotone": disagreements(measured),
    }
    lines = [f"{target.description(job.metric)}; losses are predictions"]
    for name, s in found.items():
        short = "" if s.feasible or not target.by_speed else ", and nothing is fast enough"
        lines.append(f"{name:<9} {s.speedup:.2f}x loop, predicted loss {s.loss:+.4f}{short}")
    lines += result["not_monotone"]
    if len(measured.interventions) < len(whole.interventions):
        lines.append(f"some features cannot be chosen: {beside} does not hold their directions")
    if output is not None:
        write_plans(output, found, measured, target, bases, beside)
        result["profile"] = str(output)
        lines.append(
            f"profile {output} (not validated: stagevar-probe validate {output} --model …)"
        )
    return result, lines


def write_plans(
    output: Path,
    found: Mapping[str, Solution],
    measured: Measurements,
    target: Target,
    bases: Bases | None,
    beside: Path,
) -> None:
    """Write a profile that was not validated, and the directions it needs where they are not in
    ``beside``, where the measurements' own are."""
    profile = build_profile(
        replace(measured, validation=Validation()),
        {name: steps_of(s, measured) for name, s in found.items()},
        target,
        UNPROVEN,
        datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )
    needed = measured_ranks(plan.steps for plan in profile.plans.values())
    if bases is not None and needed and bases_path(output) != beside:
        write_whole(bases_path(output), bases.cut(needed).dump(measured.job.weights))
    write_profile(profile, output)
