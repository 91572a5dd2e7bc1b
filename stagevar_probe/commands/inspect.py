"""``stagevar-probe inspect``: what a file is, or a family."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from stagevar_runtime.families import families
from stagevar_runtime.loading import load
from stagevar_runtime.profile import dump_profile, load_profile
from stagevar_runtime.profile.fingerprint import schedule

from ..measure.costs import describe_scales
from ..measure.measurements import KIND, load_measurements
from .options import CHECKPOINT, FILE, Printer, printing

Described = tuple[dict[str, Any], str]  # JSON-ready, and text for people


@click.command()
@click.argument("path", type=CHECKPOINT)
@click.option("--tokenizer", type=FILE, help="A checkpoint's image tokenizer (default: beside it).")
@printing
def inspect(path: Path, tokenizer: Path | None, printer: Printer) -> int:
    """Say what PATH is: a profile, measurements, a checkpoint, or the name of a family."""
    if str(path) in families():
        printer.show(*describe_family(str(path)))
    elif path.suffix in (".yaml", ".yml"):
        printer.show(*describe_profile(path))
    elif path.suffix == ".json":
        printer.show(*describe_measurements(path))
    else:
        printer.show(*describe_checkpoint(path, tokenizer))
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
    images = len(measured.smooth["exact"])
    result = {"kind": KIND, "path": str(path), "images": images, "job": measured.job}
    head = f"{KIND}: {images} images, {len(measured.interventions)} interventions"
    return result, f"{head}\n{json.dumps(measured.job, indent=2)}"


def describe_checkpoint(path: Path, tokenizer: Path | None) -> Described:
    """Of a checkpoint: family, shape, scales and fingerprint."""
    pipeline = load(path, tokenizer, profile=None, device="cpu")
    info, scales = pipeline.model.info, pipeline.model.scales()
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
    }
    text = [
        f"{path.name}: {info.family}, depth {info.depth}, width {info.width}, {info.heads} heads",
        describe_scales(scales),
        f"architecture {result['architecture']}",
        f"weights      {result['weights']}",
    ]
    return result, "\n".join(text)
