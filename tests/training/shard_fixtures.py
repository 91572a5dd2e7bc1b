"""A shard of nine flat pictures and a few scenes, that needs no renderer."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

from PIL import Image

from training.data.layouts import draw_layouts

STYLES = ("noto", "flat", "3d")
LABELS = {"red apple": (220, 30, 30), "green apple": (30, 200, 30), "blue hat": (30, 30, 220)}


def write_shard(path: Path, side: int = 64, scenes: int = 40) -> Path:
    """Nine pictures of three labels in three styles, one of them held out; and scenes."""
    rows = []
    with zipfile.ZipFile(path, "w") as file:
        for label, color in LABELS.items():
            for style in STYLES:
                name, buffer = f"{len(rows) + 1:05d}.webp", io.BytesIO()
                picture = Image.new("RGB", (side, side), (240, 240, 240))
                quarter = side // 4
                picture.paste(color, (quarter, quarter, side - quarter, side - quarter))
                picture.save(buffer, "WEBP", quality=90)
                file.writestr(name, buffer.getvalue())
                split = "held_out_pair" if (label, style) == ("blue hat", "3d") else "train"
                prompt = f"{label}, {style} style"
                row = {"file": name, "prompt": prompt, "split": split, "style": style}
                rows.append(row | {"concept": label, "label": label, "group": "objects"})
        file.writestr("index.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        for name, data in draw_layouts(scenes).files().items():
            file.writestr(name, data)
        file.writestr("about.json", json.dumps({"side": side}))
    return path
