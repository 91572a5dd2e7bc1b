"""Open checkpoints of any layout the families publish, without running code from them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import CheckpointError, one_line
from .finite import check_finite
from .folders import HUB_NAMES, SUFFIXES, is_index, read_folder, read_shards, refuse_shards
from .formats import read_file, read_json
from .parts import SELECT, choose, collect, pick

__all__ = ["OWN", "SELECT", "SUFFIXES", "Checkpoint", "check_finite", "open_checkpoint"]

OWN = "stagevar."
"""What a safetensors header's keys begin with where they mean something to us."""

Stamp = tuple[int, int, int]


@dataclass(frozen=True)
class Checkpoint:
    """Tensors of a checkpoint, in memory.

    ``tensors`` is the main state dict, without what wrappers put into its names.
    ``parts`` holds every state dict of the file by its dotted key (``trainer.vae_local``; the top
    level is ``""``), the main one included. ``metadata`` holds the plain values found around
    them, by dotted key: what a training run left there, which decides nothing. ``settings`` are
    those a safetensors header gives under our own prefix (:data:`OWN`), without it. ``config`` is
    ``config.json`` of a directory. ``files`` were opened, ``stamps`` tell whether they changed
    since. ``note`` says which of several state dicts was taken.
    """

    path: Path
    tensors: dict[str, Tensor]
    parts: dict[str, dict[str, Tensor]]
    metadata: dict[str, Any]
    config: dict[str, Any] | None
    files: tuple[Path, ...]
    settings: dict[str, str] = field(default_factory=dict)
    stamps: tuple[Stamp, ...] = ()
    note: str | None = None

    def select(self, *names: str) -> dict[str, Tensor]:
        """The first part whose dotted key, or its last component, is one of ``names``.

        Raises CheckpointError when there is none, listing the parts there are.
        """
        return self.parts[pick(self.path, self.parts, names)]

    def check_unchanged(self) -> None:
        """Raise CheckpointError when a file was written since it was opened."""
        for file, stamp in zip(self.files, self.stamps, strict=False):
            if _stamp(file) != stamp:
                raise CheckpointError(
                    f"{file}: was changed since it was loaded, and is needed again. Load it again"
                )


def open_checkpoint(
    path: str | Path, select: Sequence[str] = SELECT, asked: str | None = None
) -> Checkpoint:
    """Open a file, an index of shards or a directory, and read it.

    ``select`` orders the state dicts to prefer when there are several (see :data:`SELECT`);
    ``asked`` is the one to take.

    Raises CheckpointError, with the file named, for what is missing, truncated, mislabelled,
    without tensors, or in need of unpickling.
    """
    path = Path(path)
    try:
        folder = path.is_dir()
    except (ValueError, OSError) as error:  # a NUL in the name, or one too long
        raise CheckpointError(f"{str(path)[:80]!r}: {one_line(error)}, expected a path") from error
    config = None
    if folder:
        tree, metadata, files = read_folder(path)
        config = read_json(path / "config.json") if (path / "config.json").exists() else None
    elif is_index(path) and path.exists():
        tree, metadata, files = read_shards(path)
    else:
        refuse_shards(path, [path], distributed=False)
        stamp = _stamp(path)
        tree, metadata = read_file(path)
        files = (path,)
        if stamp != _stamp(path):
            raise CheckpointError(f"{path}: was written while it was read. Load it again")
        beside = path.with_name("config.json")
        known = path.name in (*HUB_NAMES, "ema_model.bin") and beside.exists()
        config = read_json(beside) if known else None
    settings = {k.removeprefix(OWN): str(v) for k, v in metadata.items() if k.startswith(OWN)}
    parts, values = collect(tree, path)
    if not parts:
        kinds = sorted({type(v).__name__ for v in tree.values()})
        holds = f"a dict of {', '.join(kinds)}" if kinds else "an empty dict"
        raise CheckpointError(f"{path}: holds {holds}, expected tensors by name")
    main, note = choose(parts, path, asked, select)
    stamps = tuple(map(_stamp, files))
    every = {**metadata, **values}
    return Checkpoint(path, parts[main], parts, every, config, files, settings, stamps, note)


def _stamp(path: Path) -> Stamp:
    """What changes when a file is written: size, time, and which file it is."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return 0, 0, 0
    return found.st_size, found.st_mtime_ns, found.st_ino
