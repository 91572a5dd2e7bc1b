"""Progress with time left, on stderr, and only where somebody looks."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Meter(Protocol):
    """Counts steps of one task."""

    def __call__(self, steps: int = 1) -> None:
        """``steps`` more are done."""


@contextmanager
def meter(label: str, total: int, quiet: bool = False, done: int = 0) -> Iterator[Meter]:
    """A progress bar for ``total`` steps of which ``done`` were done before."""
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=quiet or not sys.stderr.isatty(),
    )
    with bar:
        task = bar.add_task(label, total=total, completed=done)

        def tick(steps: int = 1) -> None:
            bar.advance(task, steps)

        yield tick


class Show(Protocol):
    """Says what is known so far, ``spent`` seconds into the time that was announced."""

    def __call__(self, text: str, spent: float) -> None:
        """Show it."""


@contextmanager
def timed(seconds: float, quiet: bool = False) -> Iterator[Show]:
    """A bar over a time, with what is known beside it: ``2.1x at .004 ± .012``."""
    console = Console(stderr=True)
    bar = Progress(
        BarColumn(),
        TextColumn("{task.description}"),
        console=console,
        disable=quiet or not sys.stderr.isatty(),
    )
    with bar:
        task = bar.add_task("measuring", total=seconds)

        def show(text: str, spent: float) -> None:
            left = duration(max(0.0, seconds - spent))
            bar.update(task, completed=min(spent, seconds), description=f"{text}, {left} left")

        yield show


def duration(seconds: float) -> str:
    """``40 s`` or ``3.5 minutes``."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} minutes"
