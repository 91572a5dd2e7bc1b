"""The command: python -m training.gpu --minutes 8 --shard FILE --out FOLDER [--resume [FOLDER]]."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import torch

from ..data import DataError
from ..state import Interrupted, stop_on_signals
from . import STARTED
from .clock import EARLY, Clock
from .run import Asked, Run
from .settings import SIZES


def parse(argv: list[str] | None = None) -> Asked:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m training.gpu", description=__doc__)
    parser.add_argument("--minutes", type=float, default=8.0, help="of the whole, at most")
    parser.add_argument("--shard", type=Path, required=True, help="by training.data.shard")
    parser.add_argument("--out", type=Path, required=True, help="folder of what is carried away")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--size", choices=SIZES, default="full", help="default: %(default)s")
    parser.add_argument(
        "--resume",
        type=Path,
        nargs="?",
        const=Path(),
        help="go on from what a run left in this folder (without a name: in --out)",
    )
    parser.add_argument("--no-compile", action="store_true", help="leave the blocks eager")
    parser.add_argument("--work", type=Path, help="folder of what a compiler makes")
    args = parser.parse_args(argv)
    resume = args.out if args.resume == Path() else args.resume
    work = args.work or Path(tempfile.gettempdir()) / "training-gpu"
    return Asked(
        *(args.minutes, args.shard, args.out, args.device, args.size, resume),
        compile=not args.no_compile,
        work=work,
    )


def end_process() -> None:
    """End without a word more: something hangs, and every checkpoint is whole."""
    print("late: ended as it is, the last checkpoint is whole", file=sys.stderr, flush=True)
    os._exit(75)


def main(argv: list[str] | None = None, late: Callable[[], None] | None = None) -> int:
    """Run; return the exit code. ``late`` is called should it still run well past its end."""
    asked = parse(argv)
    clock = Clock(asked.minutes, STARTED)
    grace = min(EARLY, 0.3 * clock.length) / 2
    guard = threading.Timer(clock.left + grace, late or (lambda: None))
    guard.daemon = True
    guard.start()
    try:
        with stop_on_signals() as stop:
            Run(asked, clock, stop).perform()
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except Interrupted:
        print(f"stopped; --resume goes on from {asked.out}", file=sys.stderr)
        return 130
    finally:
        guard.cancel()
    return 0


if __name__ == "__main__":
    sys.exit(main(late=end_process))
