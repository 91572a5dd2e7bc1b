"""The commands. Each gathers its arguments, calls one function, prints people's text or JSON."""

from __future__ import annotations

import json
import logging
import math
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import torch

import stagevar_runtime
from stagevar_runtime.accelerate.modes import MODES
from stagevar_runtime.errors import StagevarError

from .bench.timing import bench as run_bench
from .calibrate.processes import joined
from .commands import verbs as commands
from .commands.compare import compare as compare_all
from .commands.evaluate import evaluate_suite
from .commands.measured import merge as merge_files
from .commands.measured import report as report_again
from .commands.measured import solve as solve_again
from .datasets.archive import MAKE
from .evaluate.suites import SUITES, fault_of
from .metrics.features import CHOICES

F = TypeVar("F", bound=Callable[..., Any])
FILE = click.Path(path_type=Path)
FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
LOSS = click.FloatRange(min=0)
POSITIVE = click.FloatRange(min=0, min_open=True)

METRICS = (
    "agreement, ssim-to-exact, scenes, retrieval=ARCHIVE, clip-score[=FOLDER] or module:function."
)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def measuring(function: F) -> F:
    """Options of every command that scores pictures of what it is told to ask."""
    for option in (
        click.option("--prompts", type=FILE, help="Labels or prompts, .txt or .jsonl."),
        click.option("--metric", help=METRICS),
    ):
        function = option(function)
    return looking(function)


def looking(function: F) -> F:
    """Options of every command that looks at pictures."""
    for option in (
        click.option("--features", help=f"For distribution and semantics: {CHOICES}."),
        click.option("--reference", type=FOLDER, help="Folder of real pictures, for the KID."),
    ):
        function = option(function)
    return function


def model_options(function: F) -> F:
    """Options of every command that runs a model."""
    for option in (
        click.option("--tokenizer", type=FILE, help="Image tokenizer (default: beside it)."),
        click.option("--text-encoder", help="Folder, Hub name or module:function."),
        click.option(
            "--option",
            "said",
            multiple=True,
            metavar="NAME=VALUE",
            help="What tensors cannot tell, such as size=0.25M (see inspect FAMILY).",
        ),
        click.option("--device", help="Where to run (default: cuda if there is one, else cpu)."),
        click.option("--dtype", type=click.Choice(list(DTYPES)), help="Default: by device."),
        click.option(
            "--seed",
            default=0,
            show_default=True,
            type=click.IntRange(0),
            help="Seed of inputs and noise.",
        ),
        click.option("--guidance", type=float, help="Guidance scale (default: the family's)."),
        click.option("--temperature", type=float, help="Sampling temperature."),
        click.option("--top-k", type=int, help="Top-k (0: off)."),
        click.option("--top-p", type=float, help="Top-p (0: off)."),
    ):
        function = option(function)
    return function


def batch_option(function: F) -> F:
    """How many images are made at once."""
    return click.option("--batch", default=16, show_default=True, type=click.IntRange(1))(function)


def targets(function: F) -> F:
    """Options that say what the plans shall reach."""
    for option in (
        click.option("--max-loss", type=LOSS, help="Budget in the metric's units."),
        click.option("--min-speedup", type=POSITIVE, help="Least loss at this end-to-end speed."),
        click.option("--max-ms", type=POSITIVE, help="Least loss within this time an image."),
    ):
        function = option(function)
    return function


def common(function: F) -> F:
    """Options of every command."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout."),
        click.option("-q", "--quiet", is_flag=True, help="Errors only."),
        click.option("-v", "--verbose", is_flag=True, help="Say more."),
    ):
        function = option(function)
    return function


def _say(as_json: bool, quiet: bool, result: dict[str, Any], text: str) -> None:
    if as_json:
        click.echo(json.dumps(result, indent=2))
    elif not quiet:
        click.echo(text)


def _log(as_json: bool, quiet: bool, verbose: bool) -> None:
    level = logging.ERROR if quiet else logging.DEBUG if verbose else logging.INFO
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    for name in ("stagevar_runtime", "stagevar_probe"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(level)


def _options(kwargs: dict[str, Any]) -> commands.ModelOptions:
    names = (
        *("tokenizer", "device", "seed", "batch", "prompts", "text_encoder"),
        *("metric", "features", "reference"),
    )
    sampling = {
        name: kwargs[name]
        for name in ("guidance", "temperature", "top_k", "top_p")
        if kwargs.get(name) is not None
    }
    return commands.ModelOptions(
        **{name: kwargs[name] for name in names if name in kwargs},
        options=commands.parse_options(kwargs.get("said", ())),
        dtype=DTYPES[kwargs["dtype"]] if kwargs.get("dtype") else None,
        sampling=sampling,
    )


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(stagevar_runtime.__version__, prog_name="stagevar-probe")
def cli() -> None:
    """Measure a next-scale image model and write a profile that makes it faster.

    Start with:  stagevar-probe calibrate model.pth
    """


@cli.command()
@click.argument("checkpoint", type=FILE)
@model_options
@batch_option
@measuring
@common
@click.option("--output", "-o", type=FILE, help="The profile (default: beside the checkpoint).")
@click.option("--count", default=None, type=click.IntRange(2), help="Calibration images.")
@click.option("--held-out", default=None, type=click.IntRange(2), help="Held-out images.")
@targets
@click.option("--resume/--no-resume", default=True, help="Go on with an interrupted run.")
@click.option("--dry-run", is_flag=True, help="One image: peak memory and time, writes nothing.")
def calibrate(checkpoint: Path, as_json: bool, quiet: bool, verbose: bool, **kwargs: Any) -> int:
    """Measure CHECKPOINT and write its profile, measurements and report beside it.

    Exit code 5: the profile was written, but its balanced plan misses the target.
    """
    _log(as_json, quiet, verbose)
    names = ("output", "count", "held_out", "max_loss", "min_speedup", "max_ms", "resume")
    try:
        with joined() as ranks:
            if not ranks.first:
                quiet = True
                _log(as_json, quiet, verbose)
            result, text = commands.calibrate(
                checkpoint,
                _options(kwargs),
                quiet=quiet,
                ranks=ranks,
                **{name: kwargs[name] for name in (*names, "dry_run")},
            )
    except KeyboardInterrupt:
        click.echo(
            "\ninterrupted: what was measured is kept. Go on with the same command:\n"
            f"  stagevar-probe {shlex.join(sys.argv[1:])}",
            err=True,
        )
        return 130
    if ranks.first:
        _say(as_json, quiet, result, text)
    return 0 if result.get("satisfied", True) else 5


@cli.command()
@click.argument("path", type=FILE)
@click.option("--tokenizer", type=FILE, help="A checkpoint's image tokenizer (default: beside it).")
@common
def inspect(path: Path, tokenizer: Path | None, as_json: bool, quiet: bool, verbose: bool) -> int:
    """Say what PATH is: a profile, measurements, a checkpoint, or the name of a family."""
    _log(as_json, quiet, verbose)
    _say(as_json, quiet, *commands.inspect(path, tokenizer))
    return 0


@cli.command()
@click.argument("profile", type=FILE)
@click.option("--model", "-m", "checkpoint", type=FILE, required=True, help="The checkpoint.")
@click.option("--plan", "names", multiple=True, help="Plans to run (default: all).")
@click.option("--held-out", default=256, show_default=True, type=click.IntRange(2))
@model_options
@batch_option
@measuring
@common
def validate(
    profile: Path, checkpoint: Path, as_json: bool, quiet: bool, verbose: bool, **kwargs: Any
) -> int:
    """Run the plans of PROFILE on fresh held-out inputs beside the exact path.

    Exit code 5: the default plan loses more than the profile's target.
    """
    _log(as_json, quiet, verbose)
    result, text = commands.validate(
        profile, checkpoint, _options(kwargs), kwargs["names"], kwargs["held_out"], quiet
    )
    _say(as_json, quiet, result, text)
    return 0 if result["satisfied"] else 5


@cli.command()
@click.argument("checkpoint", type=FILE)
@model_options
@batch_option
@measuring
@common
@click.option("--profile", type=FILE, help="Its plans take part (default: found).")
@click.option("--output", "-o", type=FILE, help="The HTML file (default: beside the checkpoint).")
@click.option("--count", default=None, type=click.IntRange(4), help="Images a row.")
@click.option("--keep", multiple=True, type=click.FloatRange(0, 1, True), help="Ratios to try.")
@click.option("--span", default="group", type=click.Choice(["group", "all"]), show_default=True)
@click.option("--grid/--no-grid", default=True, help="Every selector and restorer.")
@click.option("--dry-run", is_flag=True, help="Say the work and the time, run nothing.")
def compare(checkpoint: Path, as_json: bool, quiet: bool, verbose: bool, **kwargs: Any) -> int:
    """Every method side by side on CHECKPOINT: presets, token options, plans, retuned guidance.

    Same seeds and noise in every row. Writes a report and a CSV; --json prints everything.
    """
    _log(as_json, quiet, verbose)
    names = ("profile", "output", "count", "keep", "span", "grid", "dry_run")
    result, text = compare_all(
        checkpoint,
        _options(kwargs),
        quiet=quiet,
        command=f"stagevar-probe {shlex.join(sys.argv[1:])}",
        **{name: kwargs[name] for name in names},
    )
    _say(as_json, quiet, result, text)
    return 0


@cli.command()
@click.argument("checkpoint", type=FILE)
@model_options
@batch_option
@looking
@common
@click.option("--suite", default="scenes", show_default=True, type=click.Choice(SUITES))
@click.option("--pictures", type=FILE, help=f"Archive of real pictures, for emoji: {MAKE}.")
@click.option("--profile", type=FILE, help="Its plans take part (default: found).")
@click.option("--output", "-o", type=FILE, help="The HTML file (default: beside the checkpoint).")
@click.option("--count", default=1050, show_default=True, type=click.IntRange(14), help="Images.")
@click.option("--dry-run", is_flag=True, help="Say the work and the time, run nothing.")
def evaluate(checkpoint: Path, as_json: bool, quiet: bool, verbose: bool, **kwargs: Any) -> int:
    """Score CHECKPOINT by a suite: exact path, presets and plans in one table with time.

    scenes: pass rates by GenEval's kinds, by rule. emoji: is the asked concept the most alike among
    real pictures (R@1, R@5), for held-out pairs, held-out concepts and trained prompts. Intervals,
    distribution, distance to the exact path and to training pictures. Writes a report and a JSON
    file.
    """
    if fault := fault_of(kwargs["suite"], kwargs["pictures"]):
        raise click.UsageError(fault)
    _log(as_json, quiet, verbose)
    names = ("suite", "pictures", "profile", "output", "count", "dry_run")
    result, text = evaluate_suite(
        checkpoint,
        _options(kwargs),
        quiet=quiet,
        command=f"stagevar-probe {shlex.join(sys.argv[1:])}",
        **{name: kwargs[name] for name in names},
    )
    _say(as_json, quiet, result, text)
    return 0


@cli.command()
@click.argument("measurements", type=FILE)
@targets
@click.option("--output", "-o", type=FILE, help="Write a profile with these plans.")
@common
def solve(
    measurements: Path,
    max_loss: float | None,
    min_speedup: float | None,
    max_ms: float | None,
    output: Path | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> int:
    """Choose plans again from MEASUREMENTS for another budget. Runs no model.

    Losses are the predicted sums of single interventions; check with `validate`.
    """
    _log(as_json, quiet, verbose)
    _say(as_json, quiet, *solve_again(measurements, max_loss, output, min_speedup, max_ms))
    return 0


@cli.command()
@click.argument("measurements", type=FILE, nargs=-1, required=True)
@click.option("--output", "-o", type=FILE, required=True, help="The joined file.")
@common
def merge(
    measurements: tuple[Path, ...], output: Path, as_json: bool, quiet: bool, verbose: bool
) -> int:
    """Join MEASUREMENTS of separate jobs: the same model and settings, other inputs or seeds."""
    _log(as_json, quiet, verbose)
    _say(as_json, quiet, *merge_files(measurements, output))
    return 0


@cli.command()
@click.argument("measurements", type=FILE)
@click.option("--profile", type=FILE, help="The profile (default: beside the measurements).")
@click.option("--output", "-o", type=FILE, help="The HTML file (default: beside).")
@common
def report(
    measurements: Path,
    profile: Path | None,
    output: Path | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> int:
    """Write the HTML report of MEASUREMENTS again, without pictures. Runs no model."""
    _log(as_json, quiet, verbose)
    _say(as_json, quiet, *report_again(measurements, profile, output))
    return 0


@cli.command()
@click.argument("checkpoint", type=FILE)
@model_options
@batch_option
@common
@click.option("--labels", help="Class numbers, such as 0,3,7 (default: one of each, up to 16).")
@click.option("--prompt", "texts", multiple=True, help="What to draw (repeat for more).")
@click.option("--plan", help="A plan of the profile, a preset, or exact.")
@click.option("--profile", type=FILE, help="The profile (default: found).")
@click.option("--strict", is_flag=True, help="Refuse a profile of other weights.")
@click.option("--compare", is_flag=True, help="Contact sheet: exact above, accelerated below.")
@click.option("--output", "-o", type=FILE, default=Path("generated.png"), show_default=True)
def generate(checkpoint: Path, as_json: bool, quiet: bool, verbose: bool, **kwargs: Any) -> int:
    """Generate pictures with CHECKPOINT, accelerated by the profile beside it."""
    _log(as_json, quiet, verbose)
    result, text = commands.generate(
        checkpoint,
        _options(kwargs),
        **{
            name: kwargs[name]
            for name in ("labels", "texts", "plan", "profile", "strict", "compare", "output")
        },
    )
    _say(as_json, quiet, result, text)
    return 0


@cli.command()
@click.argument("checkpoint", type=FILE, required=False)
@click.option("--random", metavar="SIZE", help="A published size with random weights: var-d16, …")
@model_options
@common
@click.option(
    "--plan", "plans", multiple=True, help="A plan of the profile, a preset, or exact; repeat."
)
@click.option("--batches", default="1,4,8", show_default=True, help="Batch sizes.")
@click.option("--repeats", default=5, show_default=True, type=click.IntRange(1))
@click.option("--seconds", default=math.inf, type=click.FloatRange(0), help="Time for each batch.")
@click.option("--compile", type=click.Choice(MODES), default="off", show_default=True)
@click.option("--output", "-o", type=FILE, help="The JSON (default: in benchmarks/results).")
def bench(checkpoint: Path | None, as_json: bool, quiet: bool, verbose: bool, **kwargs: Any) -> int:
    """Time CHECKPOINT: the published loop, the exact path and plans, side by side in one run.

    Interleaved after a warm-up that is not counted; medians, spread, and the share of what this
    device does at best. Threads on a CPU: set OMP_NUM_THREADS.
    """
    _log(as_json, quiet, verbose)
    try:
        batches = [int(part) for part in kwargs["batches"].replace(",", " ").split()]
    except ValueError as error:
        raise click.UsageError(
            f"--batches {kwargs['batches']!r}: expected such as 1,4,8"
        ) from error
    if not batches or min(batches) < 1:
        raise click.UsageError(f"--batches {kwargs['batches']!r}: expected numbers from 1 up")
    names = ("random", "plans", "repeats", "output", "compile", "seconds")
    arguments = {name: kwargs[name] for name in names}
    result, text = run_bench(
        checkpoint, options=_options(kwargs), batches=batches, quiet=quiet, **arguments
    )
    _say(as_json, quiet, result, text)
    return 0


__all__ = ["StagevarError", "cli"]
