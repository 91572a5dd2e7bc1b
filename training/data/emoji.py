"""Captioned emoji in six drawing styles, for training.data.shard.

Fetches the packages with npm, renders every concept that at least four styles have, and writes one
zip: pictures, ``index.jsonl`` (a line a picture) and ``about.json``. The file appears whole or not
at all, and packages that are there already are not fetched again.

Held out of training, by a hash: 5 % of the concepts in all their styles, and 10 % of the other
pairs of concept and style.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from . import DataError
from .packages import PACKAGES
from .styles import STYLES, Art, Concept, concepts

SIDE = 128
MARGIN = 6 / 128  # of the side, around the art
LEVELS = (255, 250, 244, 236)  # of the grey ground
DARKER = 190  # of the ground under white art
CONTRAST = 24  # levels between art and ground that the eye tells apart
MIN_STYLES = 4
HELD_OUT_CONCEPTS = 0.05
HELD_OUT_PAIRS = 0.10
QUALITY = 90
Row = dict[str, str]


def fraction(text: str) -> float:
    """A number in [0, 1) that a text's hash decides."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def split_of(code: str, style: str, seed: int) -> str:
    """``train``, ``held_out_pair`` or ``held_out_concept``; no other picture has a say in it."""
    if fraction(f"{seed} {code}") < HELD_OUT_CONCEPTS:
        return "held_out_concept"
    return "held_out_pair" if fraction(f"{seed} {code} {style}") < HELD_OUT_PAIRS else "train"


def rasterize(data: bytes, side: int) -> Image.Image:
    """Art (SVG or WebP) as an RGBA picture that fits into a square of ``side`` pixels.

    Raises:
        DataError: resvg-py is not installed.
    """
    if data[:4] == b"RIFF":
        with Image.open(io.BytesIO(data)) as picture:
            image = picture.convert("RGBA")
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
        return image
    try:
        import resvg_py
    except ImportError as error:
        raise DataError(
            "resvg-py is not installed, it renders SVG. Install it with: "
            "pip install 'stagevar[training]' (or pip install resvg-py)"
        ) from error
    png = resvg_py.svg_to_bytes(svg_string=data.decode(), width=side, skip_system_fonts=True)
    with Image.open(io.BytesIO(bytes(png))) as picture:
        image = picture.convert("RGBA")
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return image


def draw(data: bytes, level: int, side: int = SIDE) -> Image.Image:
    """Art in the middle of a plain grey ground, RGB; a darker one if most of it would not show."""
    art = rasterize(data, side - 2 * round(MARGIN * side))
    pixels = np.asarray(art)
    opaque = pixels[pixels[..., 3] > 127, :3].astype(int)
    if len(opaque) and (abs(opaque - level).max(-1) > CONTRAST).mean() < 0.5:
        level = DARKER
    ground = Image.new("RGB", (side, side), (level,) * 3)
    ground.paste(art, ((side - art.width) // 2, (side - art.height) // 2), art)
    return ground


def rows_of(wanted: Sequence[Concept], art: dict[str, Art], seed: int) -> Iterator[Row]:
    """A line of the index for every picture, concept by concept."""
    number = 0
    for concept in wanted:
        styles = [style for style in art if concept.code in art[style]]
        if len(styles) < MIN_STYLES:
            continue
        for style in styles:
            number += 1
            yield {
                "file": f"{number:05d}.webp",
                "prompt": f"{concept.label}, {style} style",
                "concept": concept.code,
                "label": concept.label,
                "style": style,
                "group": concept.group,
                "split": split_of(concept.code, style, seed),
            }


def about(rows: Sequence[Row], seed: int, side: int = SIDE) -> dict[str, Any]:
    """What the zip was made of."""
    counts = {key: dict(Counter(row[key] for row in rows)) for key in ("style", "group", "split")}
    return {
        "packages": {p.name: {"version": p.version, "licence": p.licence} for p in PACKAGES},
        "side": side,
        "seed": seed,
        "counts": {"pictures": len(rows), "concepts": len({r["concept"] for r in rows}), **counts},
    }


@dataclass(frozen=True)
class Form:
    """How pictures are kept: side in pixels, WebP quality; concepts at most, evenly from all, 0
    being every one; other files that go into the zip."""

    side: int = SIDE
    quality: int = QUALITY
    concepts: int = 0
    beside: Mapping[str, bytes] = field(default_factory=dict)


def write(
    path: Path,
    rows: Sequence[Row],
    art: dict[str, Art],
    seed: int,
    say: Callable[[str], None],
    form: Form,
) -> None:
    """Draw every row and write the zip."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial, start = path.with_name(path.name + ".partial"), time.monotonic()
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as file:

        def add(name: str, data: bytes) -> None:
            file.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data)  # the same every time

        for done, row in enumerate(rows, 1):
            code, style = row["concept"], row["style"]
            level = LEVELS[int(fraction(f"ground {code} {style}") * len(LEVELS))]
            buffer = io.BytesIO()
            draw(art[style][code], level, form.side).save(buffer, "WEBP", quality=form.quality)
            add(row["file"], buffer.getvalue())
            if done % 500 == 0 or done == len(rows):
                left = (time.monotonic() - start) * (len(rows) / done - 1)
                say(f"{done} of {len(rows)} pictures, {left:.0f} s left")
        add("index.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
        for name, data in form.beside.items():
            add(name, data)
        add("about.json", (json.dumps(about(rows, seed, form.side), indent=2) + "\n").encode())
    partial.replace(path)


def build(
    path: Path,
    packages: Path,
    seed: int = 0,
    say: Callable[[str], None] = lambda text: None,
    form: Form | None = None,
) -> dict[str, Any]:
    """Write the zip of every concept that enough styles have; what it was made of.

    Args:
        packages: folder of the packages' archives, fetched there where they are missing.
        seed: decides what is held out.
        form: :class:`Form`; pictures of 128 pixels alone where none is given.

    Raises:
        DataError: npm or resvg-py is missing, or a package is not as expected.
    """
    form = form or Form()
    wanted = concepts(packages)
    if (few := form.concepts) and few < len(wanted):
        wanted = [wanted[i * len(wanted) // few] for i in range(few)]
    art = {}
    for style, find in STYLES.items():
        art[style] = find(wanted, packages)
        say(f"{style}: {sum(c.code in art[style] for c in wanted)} of {len(wanted)} concepts")
    rows = list(rows_of(wanted, art, seed))
    write(path, rows, art, seed, say, form)
    return about(rows, seed, form.side)
