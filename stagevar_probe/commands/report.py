"""``stagevar-probe report``: the page of measurements and profile again. Runs no model."""

from __future__ import annotations

from pathlib import Path

import click

from stagevar_runtime.errors import ProfileError, ProfileMismatchError
from stagevar_runtime.profile import load_profile

from ..files import stem_of
from ..measure.checked import damaged
from ..measure.measurements import load_measurements
from ..report.calibration import write_calibration
from .options import Printer, printing
from .parameters import FILE


@click.command()
@click.argument("measurements", type=FILE)
@click.option("--profile", type=FILE, help="The profile (default: beside the measurements).")
@click.option("--output", "-o", type=FILE, help="The HTML file (default: beside).")
@printing
def report(measurements: Path, profile: Path | None, output: Path | None, printer: Printer) -> int:
    """Write the HTML report of MEASUREMENTS again, without pictures. Runs no model."""
    measured, stem = load_measurements(measurements), stem_of(measurements)
    found = load_profile(profile or measurements.with_name(f"{stem}.yaml"))
    for what, mine, theirs in (
        ("architecture", measured.job.architecture, found.model.architecture),
        ("weights", measured.job.weights, found.model.weights),
    ):
        if mine != theirs:
            raise ProfileMismatchError(
                f"the profile's {what} is {theirs}, the measurements' is {mine}. Name the profile "
                f"that was written with {measurements.name}: --profile",
                field=what,
                expected=mine,
                found=theirs,
            )
    stages = found.stages
    if not (found.target and stages and stages.structure and stages.refinement):
        raise ProfileError("the profile has no target or stages, expected a calibrated one")
    page = output or measurements.with_name(f"{stem}.report.html")
    with damaged(measurements):
        write_calibration(page, measured, found)
    printer.show({"report": str(page)}, f"report {page}")
    return 0
