"""Files are read where they are plain and of a sane size, and written whole or not at all."""

from __future__ import annotations

import contextlib
import glob
import os
import stat
import threading
import time
from itertools import count
from pathlib import Path

STALE_S = 600.0  # a write takes less
_writes = count()


def partial_path(path: Path) -> Path:
    """Where a file is written before it takes its name: beside it, of this write alone."""
    own = f"{os.getpid()}-{threading.get_ident()}-{next(_writes)}"
    return path.with_name(f".{path.name}.{own}.tmp")


def sweep(path: Path) -> None:
    """Remove what writes of ``path`` left that were killed :data:`STALE_S` ago or earlier."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with contextlib.suppress(OSError, ValueError):
            process = int(left.name.removesuffix(".tmp").rpartition(".")[2].partition("-")[0])
            if time.time() - left.stat().st_mtime > STALE_S and not _alive(process):
                left.unlink()


def _alive(process: int) -> bool:
    if os.name == "nt":  # where asking is killing
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # somebody else's
        return True
    return True


def write_whole(path: Path, content: bytes) -> None:
    """Write a file by way of a temporary one beside it, on the disk before it takes its name.

    A link is followed; a device or a pipe is written to as it is, never replaced.

    Raises:
        OSError: it cannot be written; what was there is as it was.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file() and not path.is_dir():
        with path.open("wb") as special:
            special.write(content)
        return
    partial = partial_path(path)
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        _sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def _sync_folder(folder: Path) -> None:
    """Have the new name on the disk too, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def fault_of_file(path: Path, limit: int | None = None) -> str | None:
    """Why ``path`` is no plain file of at most ``limit`` bytes; None where it is one.

    A pipe or a device would be waited for or read for ever.
    """
    try:
        found = path.stat()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        return f"cannot be opened ({getattr(error, 'strerror', None) or error})"
    if stat.S_ISDIR(found.st_mode):
        return "is a directory"
    if not stat.S_ISREG(found.st_mode):
        return "is no plain file but a device, pipe or socket"
    if limit is not None and found.st_size > limit:
        return f"is larger than {limit >> 20} MB"
    return None


def read_plain(path: Path, limit: int) -> bytes:
    """The content of a plain file of at most ``limit`` bytes.

    Raises:
        OSError: it is none, or cannot be read; the text says what is wrong with it.
    """
    fault = fault_of_file(path, limit)
    if fault is not None:
        raise OSError(fault)
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise OSError(f"is larger than {limit >> 20} MB")
    return content
