"""What a run leaves behind: at most seven files of at most 15 MiB, right at any moment.

``state.*`` is what the next run goes on from, ``result.*`` what ships; each is cut into parts. The
parts of a new checkpoint are written beside the old ones; then ``progress.json``, which names the
parts that belong together, takes the place of its predecessor; then the old ones go. So a run that
is killed anywhere leaves a checkpoint that is whole.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data import DataError
from ..state import save_json, write_atomic

PART = 15 * 2**20  # bytes
PROGRESS = "progress.json"
SHEETS = "sheets.webp"
KINDS = ("state", "result")


def halved(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors on the CPU, floating-point ones in half precision."""
    return {
        name: (t.detach().half() if t.is_floating_point() else t.detach()).cpu().contiguous()
        for name, t in state.items()
    }


class Outputs:
    """A folder of parts, and the record that says which belong together."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / PROGRESS
        self.record: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}

    def clear(self) -> None:
        """Forget what an earlier run left."""
        for path in self.folder.iterdir():
            if path.name.split(".")[0] in (*KINDS, "progress", "sheets"):
                path.unlink()
        self.record = {}

    def save(self, payloads: Mapping[str, Any], record: Mapping[str, Any]) -> None:
        """Write payloads of :data:`KINDS`, and the record with them."""
        parts = dict(self.record.get("parts", {}))
        for kind, payload in payloads.items():
            buffer = io.BytesIO()
            torch.save(payload, buffer)
            data = buffer.getvalue()
            turn = 1 - parts.get(kind, {"turn": 1})["turn"]
            names = []
            for i, start in enumerate(range(0, len(data), PART)):
                names.append(f"{kind}.{turn}.{i}")
                write_atomic(self.folder / names[-1], data[start : start + PART])
            parts[kind] = {
                "turn": turn,
                "files": names,
                "bytes": len(data),
                "sha256": hashlib.sha256(data).hexdigest(),
            }
        self.record = {**record, "parts": parts}
        save_json(self.folder / PROGRESS, self.record)
        known = {name for part in parts.values() for name in part["files"]}
        for path in self.folder.iterdir():
            if path.name.split(".")[0] in KINDS and path.name not in known:
                path.unlink()


def read_payload(folder: Path, kind: str) -> dict[str, Any]:
    """Join the parts of a kind and read them.

    Raises:
        DataError: parts are missing or damaged.
    """
    path = folder / PROGRESS
    try:
        part = json.loads(path.read_text())["parts"][kind]
        data = b"".join((folder / name).read_bytes() for name in part["files"])
    except (OSError, KeyError, ValueError) as error:
        raise DataError(
            f"{folder}: no {kind} of a run ({error}); expected {PROGRESS} and the {kind}.* files "
            "that python -m training.gpu wrote"
        ) from error
    if hashlib.sha256(data).hexdigest() != part["sha256"]:
        raise DataError(
            f"{folder}: the {kind}.* files are not those that {PROGRESS} names: {len(data)} bytes, "
            f"expected {part['bytes']}. Copy all of {', '.join(part['files'])} again"
        )
    payload: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    return payload
