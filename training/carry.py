"""Puts what a lent machine needs into one folder:

    python -m training.carry --shard runs/pictures.zip --out runs/carried

The code that training.gpu imports, the shard, the state of an earlier run if there is one to go on
from, and a script. Nothing is installed there: the machine needs Python, PyTorch, NumPy, SciPy and
Pillow. pydantic, which the runtime's profiles ask for, is not needed to train (see training.bare).
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

from .data import DataError
from .gpu.outputs import PROGRESS, read_payload

ROOT = Path(__file__).resolve().parents[1]
CODE = ("training", "stagevar_runtime", "stagevar_probe")
LARGEST = 60_000_000  # bytes
SHARD, EARLIER = "pictures.zip", "earlier"
ABSENT = ("pydantic", "yaml", "safetensors", "click")  # that a lent machine may not have
PROOF = f"""import sys
sys.modules |= dict.fromkeys({ABSENT})
from training.gpu.__main__ import parse
parse(["--shard", "a", "--out", "b"])
"""
RUN = """#!/bin/sh
# python -m training.gpu with what lies beside this script; $OUT is where the results go
set -eu
cd "$(dirname "$0")"
export PYTHONUNBUFFERED=1
exec "${PYTHON:-python3}" -m training.gpu --shard pictures.zip --out "${OUT:-out}" \\
    --minutes "${MINUTES:-8}" RESUME"$@"
"""


def prove(folder: Path) -> None:
    """Import what was copied, and nothing beside it, as on a machine without :data:`ABSENT`.

    Raises:
        DataError: something of it asks for one of them, or was not copied.
    """
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", PROOF], cwd=folder, env=environment, capture_output=True, text=True
    )
    if done.returncode != 0:
        raise DataError(f"{folder} does not run by itself: {done.stderr.splitlines()[-1:]}")


def carry(shard: Path, folder: Path, earlier: Path | None = None) -> int:
    """Fill ``folder``; the bytes in it.

    Raises:
        DataError: it would be more than fits or does not run by itself, or ``earlier`` holds no
            state to go on from.
    """
    if folder.exists():
        raise DataError(f"{folder} is there already; delete it or name another with --out")
    for package in CODE:
        shutil.copytree(
            ROOT / package,
            folder / package,
            ignore=shutil.ignore_patterns("__pycache__", "*.pyc"),
        )
    shutil.copy(shard, folder / SHARD)
    script = RUN.replace("RESUME", "")
    if earlier is not None:
        read_payload(earlier, "state")
        (folder / EARLIER).mkdir()
        for path in (earlier / PROGRESS, *earlier.glob("state.*")):
            shutil.copy(path, folder / EARLIER)
        script = RUN.replace("RESUME", f"--resume {EARLIER} ")
    (folder / "run.sh").write_text(script)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if size > LARGEST:
        raise DataError(f"{folder} holds {size} bytes, more than {LARGEST}")
    prove(folder)
    return size


def main(argv: list[str] | None = None) -> int:
    """Fill the folder; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m training.carry", description=__doc__)
    parser.add_argument("--shard", type=Path, default=Path("runs/pictures.zip"))
    parser.add_argument("--out", type=Path, default=Path("runs/carried"))
    parser.add_argument("--resume", type=Path, help="what an earlier run left, to go on from")
    args = parser.parse_args(argv)
    try:
        size = carry(args.shard, args.out, args.resume)
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{args.out}: {size / 1e6:.1f} MB; there: sh run.sh")
    return 0


if __name__ == "__main__":
    sys.exit(main())
