"""What to train on which machine: sizes, pictures and times, each an option of the command."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

from ..data import DataError
from ..state import save_json
from .fit import FitPlan
from .tokenizer import DECODER, TokenizerPlan


@dataclass(frozen=True)
class Preset:
    """Defaults of the options, and plans that have none.

    ``pictures``: rendered scenes; ``emoji_share``: of all training pictures, where there are emoji.
    """

    runs: Path
    output: Path
    width: int
    depth: int
    tokenizer: TokenizerPlan
    decoder: TokenizerPlan
    fit: FitPlan
    pictures: int = 36000
    emoji: Path | None = None
    emoji_share: float = 0.5

    def options(self) -> dict[str, object]:
        """The options' defaults by name."""
        names = ("runs", "output", "width", "depth", "pictures", "emoji", "emoji_share")
        return {name: getattr(self, name) for name in names} | {
            "tokenizer_minutes": self.tokenizer.minutes,
            "decoder_minutes": self.decoder.minutes,
            "minutes": self.fit.minutes,
            "learning_rate": self.fit.learning_rate,
            "wrong_captions": self.fit.wrong_captions,
        }


PRESETS = {
    "cpu": Preset(
        runs=Path("runs/scenes"),
        output=Path("checkpoints/scenes"),
        width=192,
        depth=6,
        tokenizer=TokenizerPlan(11.0),
        decoder=replace(DECODER, minutes=9.0),
        fit=FitPlan(76.0),
    ),
    # 22 minutes of training, and 2 that render and encode, on a card of the H100's class;
    # the largest batch keeps about 30 GB of activations
    "gpu": Preset(
        runs=Path("runs/scenes-emoji"),
        output=Path("checkpoints/scenes-emoji"),
        width=256,
        depth=8,
        tokenizer=TokenizerPlan(5.0, batch=128),
        decoder=replace(DECODER, minutes=4.0, batch=32),
        fit=replace(
            FitPlan(13.0),
            prefixes=((5, 1024, 0.1), (7, 512, 0.3), (9, 256, 0.15), (10, 192, 0.45)),
            warmup=300,
        ),
        emoji=Path("runs/emoji.zip"),
    ),
}


def in_presets(name: str) -> str:
    """An option's defaults, for its help: ``cpu 192, gpu 256``."""
    return ", ".join(f"{preset} {p.options()[name]}" for preset, p in PRESETS.items())


def fill(args: argparse.Namespace) -> argparse.Namespace:
    """Give options that were not said the preset's values."""
    for name, value in PRESETS[args.preset].options().items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if not 0 <= args.emoji_share < 1:
        raise DataError(f"--emoji-share {args.emoji_share:g} is no share: expected 0 to below 1")
    if not 0 <= args.wrong_captions < 1:
        raise DataError(
            f"--wrong-captions {args.wrong_captions:g} is no share: expected 0 to below 1"
        )
    if args.emoji_share == 0:
        args.emoji = None
    return args


def emoji_beside(scenes: int, share: float) -> int:
    """How many emoji make ``share`` of the pictures, beside so many scenes."""
    return round(scenes * share / (1 - share))


def same_recipe(folder: Path, recipe: dict[str, object]) -> None:
    """Refuse to go on in a folder that was begun with other pictures or another size.

    Raises:
        DataError: it was.
    """
    path = folder / "recipe.json"
    if not path.is_file():
        if os.environ.get("RANK", "0") == "0":
            save_json(path, recipe)
        return
    begun = json.loads(path.read_text())
    for name, value in recipe.items():
        if begun.get(name) != value:
            raise DataError(
                f"{folder} was begun with {name} {begun.get(name)}, not {value}. "
                "Name another folder with --runs, or delete this one"
            )
