"""One file with everything that training.gpu reads:

    python -m training.data.shard --output runs/pictures.zip

Emoji in six drawing styles as 256-pixel WebP with their captions and splits, as training.data.emoji
makes them, and the layouts of scenes with theirs, which are painted where they are trained on. No
tokens: the tokenizer is trained, too. The file is also what evaluate --suite emoji compares with.
"""

from __future__ import annotations

import argparse
import sys
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

from stagevar_probe.datasets.archive import Archive, open_archive
from stagevar_runtime.errors import CalibrationError
from stagevar_runtime.text.words import split_words

from . import DataError
from .emoji import Form, build
from .layouts import FILES, Layouts, draw_layouts

LARGEST = 55_000_000  # bytes: what a run on a lent machine may carry, with room for the code


@dataclass(frozen=True)
class Shard:
    """What the file holds: captioned emoji, and the layouts of scenes."""

    emoji: Archive
    scenes: Layouts

    def words(self) -> list[str]:
        """Every word of an emoji's caption, of held-out ones too, sorted."""
        return sorted({word for p in self.emoji.pictures for word in split_words(p.prompt)})


def read_shard(path: Path) -> Shard:
    """Open and check what :func:`main` wrote.

    Raises:
        DataError: it is none.
    """
    try:
        archive = open_archive(path)
        with zipfile.ZipFile(path) as file:
            scenes = Layouts.read({name: file.read(name) for name in FILES})
    except (CalibrationError, KeyError, ValueError, OSError) as error:
        raise DataError(
            f"{path}: no shard to train on ({error}); "
            "make it with: python -m training.data.shard --output runs/pictures.zip"
        ) from error
    return Shard(archive, scenes)


def main(argv: list[str] | None = None) -> int:
    """Make the shard and check it; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m training.data.shard", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("runs/pictures.zip"))
    parser.add_argument("--packages", type=Path, default=Path("runs/npm"), help="archives by npm")
    parser.add_argument("--scenes", type=int, default=60_000, help="default: %(default)s")
    parser.add_argument("--concepts", type=int, default=0, help="at most, to try things; 0: all")
    parser.add_argument("--side", type=int, default=256, help="pixels of an emoji")
    parser.add_argument("--quality", type=int, default=75, help="WebP's, 0 to 100")
    parser.add_argument("--seed", type=int, default=0, help="decides what is held out")
    args = parser.parse_args(argv)
    start = time.monotonic()
    try:
        scenes = draw_layouts(args.scenes).files()
        form = Form(args.side, args.quality, args.concepts, scenes)
        print(f"{args.scenes} scenes in {time.monotonic() - start:.0f} s", flush=True)
        build(args.output, args.packages, args.seed, lambda text: print(text, flush=True), form)
        shard = read_shard(args.output)
        if (size := args.output.stat().st_size) > LARGEST:
            raise DataError(f"{args.output} is {size} bytes, more than {LARGEST}: lower --quality")
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    pictures = shard.emoji.pictures
    splits = {split: len(shard.emoji.of(split)) for split in sorted({p.split for p in pictures})}
    print(
        f"{args.output}: {size / 1e6:.1f} MB, {len(pictures)} emoji {splits}, "
        f"{len(shard.scenes)} scenes of {len(shard.scenes.captions)} captions, "
        f"{len(shard.words())} words, in {time.monotonic() - start:.0f} s"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
