"""Files are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def partial_path(path: Path) -> Path:
    """Where a file is written before it takes its name: beside it, of this process alone."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def write_whole(path: Path, content: bytes) -> None:
    """Write a file by way of a temporary one beside it, on the disk before it takes its name.

    Raises:
        OSError: it cannot be written; what was there is as it was.
    """
    partial = partial_path(path)
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()
