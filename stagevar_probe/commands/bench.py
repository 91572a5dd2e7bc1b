"""``stagevar-probe bench``: time a model, a document of JSON that grows by every batch size."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import click

from stagevar_runtime.accelerate.modes import MODES, accelerate
from stagevar_runtime.errors import StagevarError
from stagevar_runtime.loop.plan import plan_for
from stagevar_runtime.model.protocol import Conditioning, ScaleModel
from stagevar_runtime.model.sampling import Sampling
from stagevar_runtime.profile import Profile

from ..bench.document import PUBLISHED, document, slug, table
from ..bench.machine import decode_flops
from ..bench.random_models import random_conditioning, random_model
from ..bench.timing import DEFAULT_PLANS, contenders, measure, warm_up_rounds
from ..files import check_writable, write_whole
from ..progress import meter
from .options import ModelOptions, Printer, model_options, printing
from .parameters import CHECKPOINT, FILE

RESULTS = Path("benchmarks/results")


def _batches(ctx: click.Context, param: click.Parameter, text: str) -> list[int]:
    try:
        sizes = [int(part) for part in text.replace(",", " ").split()]
    except ValueError as error:
        raise click.UsageError(f"--batches {text!r}: expected such as 1,4,8") from error
    if not sizes or min(sizes) < 1:
        raise click.UsageError(f"--batches {text!r}: expected numbers from 1 up")
    return sizes


@click.command()
@click.argument("checkpoint", type=CHECKPOINT, required=False)
@click.option("--random", metavar="SIZE", help="A published size with random weights: var-d16, …")
@model_options()
@printing
@click.option(
    "--plan",
    "plans",
    multiple=True,
    help="A plan of the profile, a preset, or exact; repeat.",
)
@click.option(
    "--batches", default="1,4,8", show_default=True, callback=_batches, help="Batch sizes."
)
@click.option(
    "--repeats",
    default=5,
    show_default=True,
    type=click.IntRange(1),
    help="Rounds that count.",
)
@click.option("--seconds", default=math.inf, type=click.FloatRange(0), help="Time for each batch.")
@click.option(
    "--compile",
    "mode",
    type=click.Choice(MODES),
    default="auto",
    show_default=True,
    help="How the exact path and the plans are accelerated.",
)
@click.option("--output", "-o", type=FILE, help="The JSON (default: in benchmarks/results).")
def bench(
    checkpoint: Path | None,
    random: str | None,
    options: ModelOptions,
    printer: Printer,
    plans: tuple[str, ...],
    batches: list[int],
    repeats: int,
    seconds: float,
    mode: str,
    output: Path | None,
) -> int:
    """Time CHECKPOINT: the published loop, the exact path and plans, side by side in one run.

    Interleaved after a warm-up that is not counted; medians, spread, and the share of what this
    device does at best. Threads on a CPU: set OMP_NUM_THREADS.
    """
    if (checkpoint is None) == (random is None):
        raise StagevarError("got neither or both of CHECKPOINT and --random, expected one of them")
    if output is not None:
        check_writable(output)
    timed = from_checkpoint(checkpoint, options) if checkpoint else from_size(str(random), options)
    model, sampling, profile = timed.model, timed.sampling, timed.profile
    chosen = list(plans) or [*(profile.plans if profile else ()), *DEFAULT_PLANS]
    exact = plan_for(model, (), sampling)
    decode = decode_flops(model, timed.conditioning(1), exact)
    fast = accelerate(model, mode)
    named = contenders(model, sampling, chosen, options.seed, profile, fast)
    rounds = repeats + warm_up_rounds(fast)
    parts: list[dict[str, Any]] = []
    now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    settings = {"repeats": repeats, "seed": options.seed, "compile": fast.description}
    with meter(timed.name, len(batches) * len(named) * rounds, printer.quiet) as tick:
        for batch in batches:
            condition = partial(timed.conditioning, batch)
            parts.append(measure(model, condition, named, repeats, tick, decode, fast, seconds))
            found = document(timed.name, model, sampling, parts, settings, now, PUBLISHED in named)
            target = output or RESULTS / f"{slug(found)}.json"
            if output is None:
                RESULTS.mkdir(parents=True, exist_ok=True)
            write_whole(target, (json.dumps(found, indent=1) + "\n").encode())
    printer.show(found, table(found), f"written to {target}")
    return 0


@dataclass(frozen=True)
class Timed:
    """What is timed. ``conditioning``: of a batch of so many images."""

    name: str
    model: ScaleModel
    sampling: Sampling
    conditioning: Callable[[int], Conditioning]
    profile: Profile | None = None


def from_checkpoint(checkpoint: Path, options: ModelOptions) -> Timed:
    """A checkpoint with the profile beside it."""
    pipeline = options.load(checkpoint, "auto")

    def conditioning(batch: int) -> Conditioning:
        return options.inputs(pipeline, batch, held_out=False).condition(pipeline.model)

    sampling = pipeline.sampling(**options.sampling)
    return Timed(checkpoint.stem, pipeline.model, sampling, conditioning, pipeline.profile)


def from_size(size: str, options: ModelOptions) -> Timed:
    """A published size with random weights."""
    model = random_model(size, options.device, options.dtype)

    def conditioning(batch: int) -> Conditioning:
        return random_conditioning(model, batch, options.seed)

    sampling = replace(model.default_sampling, **options.sampling)
    return Timed(f"{size}-random", model, sampling, conditioning)
