"""The process that does the work of python -m training.gpu."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from ..data import DataError
from ..state import Interrupted, stop_on_signals
from . import STARTED
from .__main__ import AGAIN, FAULT
from .clock import EARLY, Clock
from .outputs import PROGRESS
from .run import Asked, Run
from .settings import SIZES

LATE = 75  # exit code
ENOUGH = 0.1  # of the time must be left to go on after a fault


def parse(argv: list[str] | None = None) -> Asked:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m training.gpu")
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
    parser.add_argument("--since", type=float, default=STARTED, help=argparse.SUPPRESS)
    parser.add_argument(AGAIN, dest="again", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    resume = args.out if args.resume == Path() else args.resume
    if args.again and (args.out / PROGRESS).is_file():
        resume = args.out
    work = args.work or Path(tempfile.gettempdir()) / "training-gpu"
    return Asked(
        *(args.minutes, args.shard, args.out, args.device, args.size, resume),
        compile=not (args.no_compile or args.again),
        work=work,
        since=args.since,
        again=args.again,
    )


def end_process() -> None:
    """End without a word more: something hangs, and every checkpoint is whole."""
    print("late: ended as it is, the last checkpoint is whole", file=sys.stderr, flush=True)
    os._exit(LATE)


def main(argv: list[str] | None = None, late: Callable[[], None] | None = None) -> int:
    """Run; return the exit code. ``late`` is called should it still run well past its end."""
    asked = parse(argv)
    clock = Clock(asked.minutes, asked.since)
    if asked.again and clock.left < ENOUGH * clock.length:
        print("too late to go on, the last checkpoint is whole", file=sys.stderr)
        return LATE
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
    except Exception:
        traceback.print_exc()
        return FAULT
    finally:
        guard.cancel()
    return 0


if __name__ == "__main__":
    sys.exit(main(late=end_process))
