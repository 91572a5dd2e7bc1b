"""Tiny packages in the layout of the real ones, with art drawn here."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

from PIL import Image, ImageDraw

from training.data import packages

LABELS = {
    "1F34E": ("red apple", 4),
    "1F34F": ("green apple", 4),
    "2764-FE0F": ("red heart", 0),
    "1F452": ("woman\N{RIGHT SINGLE QUOTATION MARK}s hat", 7),
    "1FA85": ("piñata", 6),
    "0023-FE0F-20E3": ("keycap: #", 8),
    "1F9DD": ("elf", 1),
    "1F1E6": ("regional indicator A", None),
    "1F3FB": ("light skin tone", 2),
}
GROUPS = {
    "0": "smileys-emotion",
    "1": "people-body",
    "2": "component",
    "4": "food-drink",
    "6": "activities",
    "7": "objects",
    "8": "symbols",
}
SHAPE = '<circle cx="{0}" cy="{0}" r="{0}" fill="#d02020"/>'
NAMES = {
    "1F34E": "red-apple",
    "1F34F": "green-apple",
    "2764-FE0F": "red-heart",
    "1F452": "womans-hat",
    "1FA85": "pinata",
    "1F9DD": "elf",
}


def pack(
    folder: Path, package: packages.Package, files: dict[str, bytes], licence: str = ""
) -> None:
    """Write a package's archive as npm pack would."""
    folder.mkdir(parents=True, exist_ok=True)
    stated = {"name": package.name, "license": licence or package.licence}
    with tarfile.open(folder / package.file, "w:gz") as archive:
        for name, data in {"package.json": json.dumps(stated).encode(), **files}.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def webp() -> bytes:
    """A red disc on a transparent ground."""
    image = Image.new("RGBA", (256, 256))
    ImageDraw.Draw(image).ellipse((0, 0, 255, 255), fill=(208, 32, 32, 255))
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", lossless=True)
    return buffer.getvalue()


def fluent() -> bytes:
    """A disc with a gradient, as SVG."""
    return (
        b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><defs>'
        b'<linearGradient id="a" x2="0" y2="1"><stop stop-color="#ff0000"/>'
        b'<stop offset="1" stop-color="#400000"/></linearGradient></defs>'
        b'<circle cx="16" cy="16" r="16" fill="url(#a)"/></svg>'
    )


def iconify(side: int, characters: bool = True) -> dict[str, bytes]:
    """An Iconify set in which the elf goes by another name."""
    icons = {name: {"body": SHAPE.format(side / 2)} for name in NAMES.values()}
    icons["person-elf"] = icons.pop("elf")
    icons["red-heart"]["width"] = 2 * side  # wider than high
    aliases = {"elf": {"parent": "person-elf"}}
    codes = {code.lower(): name for code, name in NAMES.items()} if characters else {}
    document = {"width": side, "height": side, "icons": icons, "aliases": aliases}
    return {"icons.json": json.dumps(document).encode(), "chars.json": json.dumps(codes).encode()}


def fake_packages(folder: Path) -> Path:
    """All six packages: six concepts in all styles, one in the 3-D style only."""
    rows = [
        {"hexcode": code, "label": label, "order": order}
        | ({} if group is None else {"group": group})
        for order, (code, (label, group)) in enumerate(LABELS.items())
    ]
    names = {*NAMES.values(), "person-elf-default"} - {"elf"}
    files = {f"icons/{kind}/{name}.svg": fluent() for kind in ("flat", "modern") for name in names}
    pack(folder, packages.FLUENT, files)
    three = {f"assets/{code.lower()}.webp": webp() for code in LABELS}
    pack(folder, packages.FLUENT_3D, three)
    pack(folder, packages.NOTO, iconify(128))
    pack(folder, packages.NOTO_V1, iconify(128, characters=False))
    pack(folder, packages.TWEMOJI, iconify(36))
    data = json.dumps(rows).encode()
    meta = json.dumps({"groups": GROUPS}).encode()
    pack(folder, packages.LABELS, {"en/data.json": data, "meta/groups.json": meta})
    return folder
