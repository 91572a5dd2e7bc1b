"""What training runs share: a folder, a log a stage, stages that stop between two steps."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .state import Interrupted, never, stop_on_signals


class Staged:
    """A training run in a folder; ``stop`` is asked between steps."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.folder: Path = args.runs
        self.device: str = args.device
        self.stop: Callable[[], bool] = never
        self.folder.mkdir(parents=True, exist_ok=True)

    def logger(self, name: str) -> Callable[[dict[str, Any]], None]:
        """A function that appends records to ``name.jsonl`` and shows them."""
        path, start = self.folder / f"{name}.jsonl", time.monotonic()

        def log(record: dict[str, Any]) -> None:
            record = record | {"seconds": round(time.monotonic() - start, 1)}
            with path.open("a") as file:
                file.write(json.dumps(record) + "\n")
            print(name, json.dumps(record), flush=True)

        return log

    def perform(self, actions: Mapping[str, Callable[[], object]]) -> int:
        """Run the asked stages in order; return the exit code."""
        try:
            with stop_on_signals() as self.stop:
                for stage, action in actions.items():
                    if stage in self.args.stages:
                        action()
        except (Interrupted, KeyboardInterrupt):
            print(f"\nstopped; the same command continues from {self.folder}", file=sys.stderr)
            return 130
        return 0


def show_sizes(paths: list[Path]) -> None:
    """Say how large written files are."""
    for path in paths:
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
