"""``stagevar-probe merge``: measurements of separate jobs as one file. Runs no model."""

from __future__ import annotations

from pathlib import Path

import click

from stagevar_runtime.errors import CalibrationError
from stagevar_runtime.loop.plan import EXACT

from ..files import check_writable
from ..measure.checked import damaged
from ..measure.measurements import load_measurements, merged, write_json
from .options import Printer, printing
from .parameters import CHECKPOINT, FILE


@click.command()
@click.argument("measurements", type=CHECKPOINT, nargs=-1, required=True)
@click.option("--output", "-o", type=FILE, required=True, help="The joined file.")
@printing
def merge(measurements: tuple[Path, ...], output: Path, printer: Printer) -> int:
    """Join MEASUREMENTS of separate jobs: the same model and settings, other inputs or seeds."""
    if len(measurements) < 2:
        raise CalibrationError(f"got {len(measurements)} measurement files, expected 2 or more")
    check_writable(output)
    files = [str(path) for path in measurements]
    parts = [load_measurements(path) for path in measurements]
    with damaged(" or ".join(files)):
        joined = merged(parts, files)
    write_json(output, joined.dump())
    images = len(joined.smooth[EXACT])
    given_up = sum(
        len(joined.smooth.get(intervention.name, ())) < images
        for intervention in joined.interventions
    )
    printer.show(
        {"output": str(output), "images": images, "files": files, "given_up": given_up},
        f"{images} images from {len(files)} files in {output}; {given_up} of "
        f"{len(joined.interventions)} interventions were not run on all of them",
        f"next: stagevar-probe solve {output}",
    )
    return 0
