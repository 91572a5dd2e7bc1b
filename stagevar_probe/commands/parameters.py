"""What commands declare to click: types of arguments, and options in groups."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import torch

from stagevar_runtime.hub import local_checkpoint

from ..metrics.features import CHOICES

Option = Callable[[Any], Any]

FILE = click.Path(path_type=Path)


class Finite(click.FloatRange):
    """A number: NaN and infinity are none. Asked before hours of work."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number."""
        found = super().convert(value, param, ctx)
        if not math.isfinite(found):
            self.fail(f"{value!r} is no number to aim at", param, ctx)
        return found


class HubPath(click.Path):
    """A path or, where no such path exists, ``owner/name[@revision][:file]``: fetched."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path on this machine. Raises CheckpointError where the Hub has no such thing."""
        return super().convert(local_checkpoint(value), param, ctx)


CHECKPOINT = HubPath(path_type=Path)
FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
POSITIVE = Finite(min=0, min_open=True)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
COUNTS = {"labels": 192, "prompts": 192}  # images to measure with, at most
TEMPLATES = 4000  # prompts to race and prove with, where a model has none of its own
METRICS = (
    "agreement, ssim-to-exact, scenes, retrieval=ARCHIVE, clip-score[=FOLDER] or module:function; "
    "several are joined by +."
)
SAMPLING = ("guidance", "temperature", "top_k", "top_p")

MODEL: tuple[Option, ...] = (
    click.option("--tokenizer", type=FILE, help="Image tokenizer (default: beside it)."),
    click.option("--select", help="Which state dict of a file that holds several, such as ema."),
    click.option("--text-encoder", help="Folder, Hub name or module:function."),
    click.option(
        "--option",
        "pairs",
        multiple=True,
        metavar="NAME=VALUE",
        help="What tensors cannot tell, such as size=0.25M (see inspect FAMILY).",
    ),
    click.option("--device", help="Where to run (default: cuda if there is one, else cpu)."),
    click.option("--dtype", type=click.Choice(list(DTYPES)), help="Default: by device."),
    click.option(
        "--emulate",
        is_flag=True,
        help="Products in fewer bits by definition, at no gain: what they lose, without a kernel.",
    ),
    click.option(
        "--seed",
        default=0,
        show_default=True,
        type=click.IntRange(0),
        help="Seed of inputs and noise.",
    ),
    click.option("--guidance", type=Finite(), help="Guidance scale (default: the family's)."),
    click.option("--temperature", type=Finite(), help="Sampling temperature."),
    click.option("--top-k", type=int, help="Top-k (0: off)."),
    click.option("--top-p", type=Finite(), help="Top-p (0: off)."),
)
BATCH: tuple[Option, ...] = (
    click.option(
        "--batch",
        type=click.IntRange(1),
        help="Images that are made at once (default: 16; on CUDA what half of its memory holds).",
    ),
)
LOOKING: tuple[Option, ...] = (
    click.option("--features", help=f"For distribution and semantics: {CHOICES}."),
    click.option("--reference", type=FOLDER, help="Folder of real pictures, for the KID."),
)
MEASURING: tuple[Option, ...] = (
    *LOOKING,
    click.option("--prompts", type=FILE, help="Labels or prompts, .txt or .jsonl."),
    click.option("--metric", help=METRICS),
)


class Several(click.ParamType):
    """Numbers of at least 0, joined by ``+``."""

    name = "losses"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[float, ...]:
        """The numbers."""
        try:
            found = tuple(float(part) for part in str(value).split("+"))
        except ValueError:
            found = ()
        if not found or min(found) < 0 or not all(map(math.isfinite, found)):
            self.fail(f"got {value!r}, expected numbers of at least 0, joined by +", param, ctx)
        return found


class Duration(click.ParamType):
    """A time: ``90s``, ``10m`` or ``1.5h``; minutes where no unit is given. In seconds."""

    name = "time"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        """Seconds."""
        text = str(value).strip()
        unit = {"s": 1.0, "m": 60.0, "h": 3600.0}.get(text[-1:], None)
        try:
            seconds = float(text[:-1] if unit else text) * (unit or 60.0)
        except ValueError:
            seconds = 0.0
        if not 0 < seconds < math.inf:
            self.fail(f"got {value!r}, expected a time such as 90s, 10m or 1h", param, ctx)
        return seconds


class Also(click.ParamType):
    """A budget for one kind of prompts: ``TAG=LOSS``."""

    name = "also"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, float]:
        """Tag and budget."""
        tag, _, loss = str(value).partition("=")
        try:
            found = float(loss)
        except ValueError:
            found = -1.0
        if not tag or not 0 <= found < math.inf:
            self.fail(f"got {value!r}, expected TAG=LOSS, such as counting=.02", param, ctx)
        return tag, found


LOSSES, TIME, ALSO = Several(), Duration(), Also()

TARGETS: tuple[Option, ...] = (
    click.option("--max-loss", type=LOSSES, help="Budget in the metric's units (several: by +)."),
    click.option("--min-speedup", type=POSITIVE, help="Least loss at this end-to-end speed."),
    click.option("--max-ms", type=POSITIVE, help="Least loss within this time per image."),
)
PAGE: tuple[Option, ...] = (
    click.option("--profile", type=FILE, help="Its plans take part (default: found)."),
    click.option(
        "--output", "-o", type=FILE, help="The HTML file (default: beside the checkpoint)."
    ),
    click.option("--dry-run", is_flag=True, help="Say the work and the time, run nothing."),
)
PRINTING: tuple[Option, ...] = (
    click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout."),
    click.option("-q", "--quiet", is_flag=True, help="Errors only."),
    click.option("-v", "--verbose", is_flag=True, help="Say more."),
)
