"""``stagevar-probe inspect``: what a file is, or a family."""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import torch

from stagevar_runtime.errors import ProfileError
from stagevar_runtime.families import families
from stagevar_runtime.loading import load
from stagevar_runtime.loop.plan import EXACT, plan_for
from stagevar_runtime.pipeline import Pipeline
from stagevar_runtime.profile import PlanStep, dump_profile, load_profile
from stagevar_runtime.profile.discovery import find_profile
from stagevar_runtime.profile.fingerprint import schedule
from stagevar_runtime.tables import columns

from ..measure.costs import describe_scales
from ..measure.measurements import KIND, load_measurements
from ..measure.memory import PlanMemory, device_memory, plan_memory, text_mb
from .options import Printer, printing
from .parameters import CHECKPOINT, DTYPES, FILE

BATCHES = (1, 4, 8)
Described = tuple[dict[str, Any], str]  # JSON-ready, and text for people


@click.command()
@click.argument("path", type=CHECKPOINT)
@click.option("--tokenizer", type=FILE, help="A checkpoint's image tokenizer (default: beside it).")
@click.option("--dtype", type=click.Choice(list(DTYPES)), help="For memory (default: by device).")
@printing
def inspect(path: Path, tokenizer: Path | None, dtype: str | None, printer: Printer) -> int:
    """Say what PATH is: a profile, measurements, a checkpoint, or the name of a family.

    Of a checkpoint also how much memory each plan needs at batch 1, 4 and 8. Nothing runs.
    """
    if str(path) in families():
        printer.show(*describe_family(str(path)))
    elif path.suffix in (".yaml", ".yml"):
        printer.show(*describe_profile(path))
    elif path.suffix == ".json":
        printer.show(*describe_measurements(path))
    else:
        printer.show(*describe_checkpoint(path, tokenizer, dtype))
    return 0


def describe_family(name: str) -> Described:
    """Of a family: its tokenizer's file names and its options."""
    family = families()[name]
    result = {
        "kind": "family",
        "family": family.family,
        "tokenizer": list(family.tokenizer_patterns),
        "options": list(family.options),
    }
    doc = (family.__doc__ or "").strip()
    return result, f"family {family.family}: {doc}\ntokenizer: {family.tokenizer_patterns}"


def describe_profile(path: Path) -> Described:
    """Of a profile: all of it."""
    profile = load_profile(path)
    result = {"path": str(path), **profile.model_dump(mode="json")}
    return result, dump_profile(profile).rstrip()


def describe_measurements(path: Path) -> Described:
    """Of measurements: what was run."""
    measured = load_measurements(path)
    images, job = len(measured.smooth[EXACT]), measured.job.dump()
    result = {"kind": KIND, "path": str(path), "images": images, "job": job}
    head = f"{KIND}: {images} images, {len(measured.interventions)} interventions"
    return result, f"{head}\n{json.dumps(job, indent=2)}"


def describe_checkpoint(path: Path, tokenizer: Path | None, dtype: str | None) -> Described:
    """Of a checkpoint: family, shape, scales, fingerprint, and the memory of its plans."""
    wanted = DTYPES[dtype] if dtype else torch.bfloat16 if torch.cuda.is_available() else None
    pipeline = load(path, tokenizer, device=torch.device("meta"), dtype=wanted, profile=None)
    info, scales = pipeline.model.info, pipeline.model.scales()
    device, room = device_memory()
    table = memory_table(pipeline)
    result: dict[str, Any] = {
        "kind": "checkpoint",
        "path": str(path),
        "family": info.family,
        "depth": info.depth,
        "width": info.width,
        "heads": info.heads,
        "groups": [[g.start, g.stop] for g in info.groups],
        "scales": schedule(scales),
        "config": dict(info.config),
        "architecture": pipeline.fingerprint.architecture,
        "weights": pipeline.fingerprint.weights,
        "memory": {
            plan: [{**asdict(row), "total": row.total} for row in rows]
            for plan, rows in table.items()
        },
    }
    name = str(pipeline.model.dtype).removeprefix("torch.")
    text = [
        f"{path.name}: {info.family}, depth {info.depth}, width {info.width}, {info.heads} heads",
        describe_scales(scales),
        f"architecture {result['architecture']}",
        f"weights      {result['weights']}",
        "",
        f"memory in MB, {name}; {device} has {room:,.0f} MB. The total is a peak: keys and values",
        "are freed before the decoder runs. An estimate, without PyTorch's own use.",
        memory_text(table),
    ]
    return result, "\n".join(text)


def memory_table(pipeline: Pipeline) -> dict[str, list[PlanMemory]]:
    """Each plan's memory, one row a batch size: the exact path's and the profile's that fit."""
    found = find_profile(pipeline.path, pipeline.fingerprint)
    steps: dict[str, tuple[PlanStep, ...]] = {EXACT: ()}
    steps |= {name: plan.steps for name, plan in found.profile.plans.items()} if found else {}
    device = "cuda" if torch.cuda.is_available() else "cpu"
    text = text_mb(pipeline.model, pipeline.encode, device)
    table = {}
    for name, said in steps.items():
        with contextlib.suppress(ProfileError):  # of another schedule: no plan of this model
            plan = plan_for(pipeline.model, said)
            table[name] = [plan_memory(pipeline.model, plan, batch, text) for batch in BATCHES]
    return table


def memory_text(table: dict[str, list[PlanMemory]]) -> str:
    """The same for people."""
    head = ["plan", "batch", "weights", "text", "keys, values", "blocks", "decoder", "total"]
    rows = [
        [name, str(row.batch)]
        + [
            f"{value:,.0f}"
            for value in (row.weights, row.text, row.cache, row.blocks, row.decoder, row.total)
        ]
        for name, found in table.items()
        for row in found
    ]
    return columns([head, *rows])
