"""The command: python -m training.gpu --minutes 8 --shard FILE --out FOLDER [--resume [FOLDER]].

A child does the work, since some faults of a device end with the process only. Should it crash,
another goes on from the last checkpoint, with eager blocks, until the same end.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence

from . import STARTED

WORKER = (sys.executable, "-m", "training.gpu.work")
AGAIN = "--after-fault"
FAULT = 70  # how a worker ends after an error that nobody foresaw; a signal is below 0
ATTEMPTS = 3


def waited(child: subprocess.Popen[bytes]) -> int:
    """The child's exit code; a wish to end is passed on (a terminal's Ctrl-C reaches both)."""
    handlers = {signal.SIGTERM: lambda number, _: child.send_signal(number)}
    handlers[signal.SIGINT] = lambda *_: None
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        return child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main(argv: Sequence[str], worker: Sequence[str] = WORKER) -> int:
    """Have it done; return the exit code."""
    more, code = ("--since", f"{STARTED}"), FAULT
    for attempt in range(ATTEMPTS):
        child = subprocess.Popen([*worker, *argv, *more])
        code = waited(child)
        if code >= 0 and code != FAULT:
            break
        print(f"attempt {attempt + 1} of {ATTEMPTS} ended with {code}", file=sys.stderr, flush=True)
        more = (*more[:2], AGAIN)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
