"""``stagevar-probe generate``: pictures, accelerated by the profile beside the checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import torch

from stagevar_runtime.errors import StagevarError
from stagevar_runtime.loop.engine import Generation
from stagevar_runtime.loop.plan import EXACT
from stagevar_runtime.pipeline import Pipeline

from ..files import check_writable
from ..report.contact_sheet import check_format, contact_sheet, save_picture
from .options import ModelOptions, Printer, model_options, printing
from .parameters import BATCH, CHECKPOINT, FILE


@click.command()
@click.argument("checkpoint", type=CHECKPOINT)
@model_options(*BATCH)
@printing
@click.option("--labels", help="Class numbers, such as 0,3,7 (default: one of each, up to 16).")
@click.option("--prompt", "texts", multiple=True, help="What to draw (repeat for more).")
@click.option("--plan", help="A plan of the profile, a preset, or exact.")
@click.option("--profile", type=FILE, help="The profile (default: found).")
@click.option(
    "--strict", is_flag=True, help="Refuse a profile of other weights or another tokenizer."
)
@click.option("--compare", is_flag=True, help="Contact sheet: exact above, accelerated below.")
@click.option(
    "--output",
    "-o",
    type=FILE,
    default=Path("generated.png"),
    show_default=True,
    help="The PNG file.",
)
def generate(
    checkpoint: Path,
    options: ModelOptions,
    printer: Printer,
    labels: str | None,
    texts: tuple[str, ...],
    plan: str | None,
    profile: Path | None,
    strict: bool,
    compare: bool,
    output: Path,
) -> int:
    """Generate pictures with CHECKPOINT, accelerated by the profile beside it."""
    check_writable(output)
    check_format(output)
    wanted = "auto" if profile is None else profile
    pipeline = options.load(checkpoint, None if plan == EXACT else wanted, strict)
    if plan not in (None, EXACT):
        pipeline.enable(plan)
    inputs = chosen_inputs(pipeline, options, labels, texts)
    made = drawn(pipeline, options, inputs)
    summary = pipeline.summary()
    rows = [torch.cat([m.images for m in made])]
    if compare and summary.plan != EXACT:
        pipeline.disable()
        rows.insert(0, torch.cat([m.images for m in drawn(pipeline, options, inputs)]))
    save_picture(contact_sheet(rows), output)
    result = {
        "output": str(output),
        "images": len(inputs),
        "profile": pipeline.profile_source,
        "plan": summary.plan,
        "loop_ms": sum(m.loop_ms for m in made),
        "decode_ms": sum(m.decode_ms for m in made),
        "notes": list(summary.notes),
    }
    printer.show(result, str(summary), f"{len(inputs)} images in {output}")
    return 0


def drawn(pipeline: Pipeline, options: ModelOptions, inputs: Sequence[Any]) -> list[Generation]:
    """Every input drawn with a seed of its own, in batches."""
    kind = "labels" if pipeline.model.info.classes else "prompts"
    seeds = [options.seed + i for i in range(len(inputs))]
    made = []
    size = options.at_once(pipeline.model)
    for i in range(0, len(inputs), size):
        part: dict[str, Any] = {**options.sampling, kind: inputs[i : i + size]}
        made.append(pipeline.generate(seed=seeds[i : i + size], **part))
    return made


def chosen_inputs(
    pipeline: Pipeline, options: ModelOptions, labels: str | None, texts: Sequence[str]
) -> list[Any]:
    """What to draw: labels or prompts, as the family needs; by default a few of its own.

    Raises:
        StagevarError: labels for a family that draws from prompts, or the reverse, or labels that
            are no numbers.
    """
    info = pipeline.model.info
    if bool(info.classes) == bool(texts) or (labels is not None and not info.classes):
        got, takes = ("prompts", "labels") if info.classes else ("labels", "prompts")
        if texts or labels is not None:
            raise StagevarError(f"got {got}, but the {info.family} family draws from {takes}")
    if not info.classes:
        lines, _ = options.lines(pipeline, held_out=True)
        return list(texts) or (lines if options.prompts else lines[:8])
    if labels is None:
        return list(range(min(16, info.classes)))
    try:
        numbers = [int(part) for part in labels.replace(",", " ").split()]
    except ValueError as error:
        raise StagevarError(f"labels {labels!r}: {error}; expected numbers like 0,3,7") from error
    pipeline.condition(labels=numbers)
    return numbers
