"""What a case may do: read below its own folder, end in time, and raise errors of ours alone."""

from __future__ import annotations

import os
import resource
import signal
import sys
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import pytest

from stagevar_runtime.errors import StagevarError

SECONDS = 30  # a case takes fractions of one
OURS = (StagevarError, click.ClickException)
RUNS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork")
_ROOT = Path(__file__).resolve().parents[1]
_LIBRARIES = tuple(
    os.path.realpath(path)
    for path in (
        *sysconfig.get_paths().values(),
        sys.prefix,
        sys.base_prefix,
        _ROOT,
        "/proc",
        "/sys",
    )
)
_watched: list[tuple[str, Any]] | None = None


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _watched is not None and (event in RUNS or event == "open"):
        _watched.append((event, arguments[0]))


sys.addaudithook(_hook)


@contextmanager
def confined(folder: Path) -> Iterator[None]:
    """Within, nothing but ``folder`` and installed code is opened, and nothing is run."""
    global _watched
    _watched = seen = []
    try:
        yield
    finally:
        _watched = None
    allowed = (os.path.realpath(folder), *_LIBRARIES)
    for event, what in seen:
        assert event == "open", f"ran {what!r}"
        if isinstance(what, (str, bytes, os.PathLike)):
            path = os.path.realpath(os.fsdecode(what))
            assert path.startswith(allowed), f"opened {path}"


def typed(what: str, case: Callable[[], Any]) -> Any:
    """What ``case`` gives; None where it raised an error of ours. Any other fails the test."""

    def late(*_: object) -> None:
        pytest.fail(f"{what}: took longer than {SECONDS} s")  # which no `except Exception` takes

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        return case()
    except OURS as error:
        assert str(error).strip(), f"{what}: an error without words"
        return None
    except Exception as error:
        raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def peak_mb() -> float:
    """The most memory that this process had so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def resident_mb() -> float:
    """The memory that this process has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20
