"""Which pictures show a concept: six drawing styles, each a reader of one package.

A style gives the art (SVG or WebP bytes) of the concepts it has, by code point. Packages that go by
names are matched by the label, written as a name.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stagevar_runtime.text.words import split_words

from .packages import FLUENT, FLUENT_3D, LABELS, NOTO, NOTO_V1, TWEMOJI, Package, read, read_json

Art = dict[str, bytes]
_SIGNS = {"#": "number sign", "*": "asterisk", "&": "and", "\N{RIGHT SINGLE QUOTATION MARK}": "'"}


@dataclass(frozen=True)
class Concept:
    """What an emoji shows. ``code``: its code points, without variation selectors."""

    code: str
    label: str
    group: str


def plain_code(code: str) -> str:
    """Code points without variation selectors, in lower case: ``2764-FE0F`` → ``2764``."""
    return "-".join(part for part in code.lower().split("-") if part != "fe0f")


def plain_label(label: str) -> str:
    """A label in words that the word encoder reads: ``piñata`` → ``pinata``."""
    for sign, word in _SIGNS.items():
        label = label.replace(sign, word)
    letters = unicodedata.normalize("NFKD", label).encode("ascii", "ignore").decode().lower()
    return " ".join(split_words(letters))


def name_of(label: str) -> str:
    """A plain label as packages name files: ``woman's hat`` → ``womans-hat``."""
    return re.sub(r"[^a-z0-9]+", "-", label.replace("'", ""))


def concepts(folder: Path) -> list[Concept]:
    """Every untoned emoji that has a group, in the order of Unicode's list."""
    rows, meta = read_json(LABELS, folder, "en/data.json", "meta/groups.json")
    groups = meta["groups"]
    rows = [row for row in rows if groups.get(str(row.get("group")), "component") != "component"]
    return [
        Concept(plain_code(row["hexcode"]), plain_label(row["label"]), groups[str(row["group"])])
        for row in sorted(rows, key=lambda row: row["order"])
    ]


def _rendered(wanted: Sequence[Concept], folder: Path) -> Art:
    files = read(FLUENT_3D, folder, lambda name: name.endswith(".webp"))
    return {plain_code(Path(name).stem): data for name, data in sorted(files.items())}


def _fluent(kind: str) -> Callable[[Sequence[Concept], Path], Art]:
    def find(wanted: Sequence[Concept], folder: Path) -> Art:
        files = read(FLUENT, folder, lambda name: name.startswith(f"icons/{kind}/"))
        by_name = {Path(name).stem: data for name, data in files.items()}
        found = {}
        for concept in wanted:
            name = name_of(concept.label)
            names = (name, f"{name}-default", f"person-{name}", f"person-{name}-default")
            if data := next((by_name[n] for n in names if n in by_name), None):
                found[concept.code] = data
        return found

    return find


def svg_of(icons: Mapping[str, Any], name: str) -> bytes:
    """An icon of an Iconify set, or of the icon it is another name for, as SVG."""
    while name not in icons["icons"]:
        name = icons["aliases"][name]["parent"]
    icon = {"width": icons.get("width", 16), "height": icons.get("height", 16)}
    icon |= icons["icons"][name]
    box = f"{icon.get('left', 0)} {icon.get('top', 0)} {icon['width']} {icon['height']}"
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f'<svg {spaces} viewBox="{box}">{icon["body"]}</svg>'.encode()


def _by_character(package: Package) -> Callable[[Sequence[Concept], Path], Art]:
    def find(wanted: Sequence[Concept], folder: Path) -> Art:
        icons, characters = read_json(package, folder, "icons.json", "chars.json")
        names = {plain_code(code): name for code, name in characters.items()}
        return {c.code: svg_of(icons, names[c.code]) for c in wanted if c.code in names}

    return find


def _blobs(wanted: Sequence[Concept], folder: Path) -> Art:
    """This set has no list of characters: its names are the labels, or the newer set's names."""
    (icons,) = read_json(NOTO_V1, folder, "icons.json")
    (characters,) = read_json(NOTO, folder, "chars.json")
    newer = {plain_code(code): name for code, name in characters.items()}
    known = {*icons["icons"], *icons.get("aliases", {})}
    found = {}
    for concept in wanted:
        names = (name_of(concept.label), newer.get(concept.code))
        if name := next((n for n in names if n in known), None):
            found[concept.code] = svg_of(icons, name)
    return found


STYLES: dict[str, Callable[[Sequence[Concept], Path], Art]] = {
    "3d": _rendered,
    "flat": _fluent("flat"),
    "gradient": _fluent("modern"),
    "noto": _by_character(NOTO),
    "blob": _blobs,
    "twemoji": _by_character(TWEMOJI),
}
