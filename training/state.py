"""Resumable state of one training stage: written whole or not at all."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch


def write_atomic(path: Path, data: bytes) -> None:
    """Write ``data`` to a file beside ``path``, then move it there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def save_torch(path: Path, value: Any) -> None:
    """``torch.save`` that leaves either the old or the new file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    torch.save(value, partial)
    partial.replace(path)


def load_torch(path: Path) -> Any:
    """Load what :func:`save_torch` wrote, or None when there is no such file."""
    return torch.load(path, map_location="cpu", weights_only=True) if path.is_file() else None


def save_json(path: Path, value: Any) -> None:
    """Write a JSON document with sorted keys."""
    write_atomic(path, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())


class Interrupted(Exception):
    """Training stopped between two steps because it was asked to; its state is saved."""


def never() -> bool:
    """A stop condition that does not stop."""
    return False


@contextmanager
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """Turn Ctrl-C and termination into a question that is asked between steps.

    A state saved in the middle of a step could not be continued exactly. A second Ctrl-C stops at
    once; the previous checkpoint is then still whole.
    """
    asked = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    before = {n: signal.signal(n, handle) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
