"""Joins what training.gpu left into a checkpoint: python -m training.join FOLDER

Writes pictures.safetensors with its tokenizer and words, the prompts to calibrate with, the loss
curves and the sheets of samples.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

from .data import DataError
from .gpu.outputs import PROGRESS, SHEETS, read_payload
from .gpu.settings import SIZES
from .scenes.export import export
from .stages import show_sizes

NAME = "pictures"
LARGEST = 32_000_000  # bytes: transformer, tokenizer and words together


def join(parts: Path, output: Path, name: str = NAME) -> list[Path]:
    """Write the checkpoint in ``parts`` to the folder ``output``; the paths written.

    Raises:
        DataError: parts are missing or damaged.
    """
    result = read_payload(parts, "result")
    size = SIZES[result["size"]]
    written = export(
        result["model"], result["tokenizer"], output, result["vocabulary"], name, size.sizes
    )
    record = json.loads((parts / PROGRESS).read_text())
    record.pop("parts")
    curves = output / f"{name}.training.json"
    curves.write_text(json.dumps(record) + "\n")
    if (parts / SHEETS).is_file():
        shutil.copy(parts / SHEETS, output / f"{name}.samples.webp")
    return [*written, curves]


def main(argv: list[str] | None = None) -> int:
    """Join; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m training.join", description=__doc__)
    parser.add_argument("parts", type=Path, help="the folder that training.gpu wrote to")
    parser.add_argument("--output", type=Path, default=Path("checkpoints/pictures"))
    args = parser.parse_args(argv)
    try:
        paths = join(args.parts, args.output)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    show_sizes(paths)
    if (total := sum(path.stat().st_size for path in paths[:3])) > LARGEST:
        print(f"error: {total} bytes to ship, more than {LARGEST}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
