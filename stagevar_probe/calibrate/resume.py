"""The folder of an unfinished job: every finished piece is a file, and is never made again."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stagevar_runtime.errors import CalibrationError

from ..measure.measurements import read_json, write_json
from .processes import ALONE, Processes

try:
    import fcntl
except ImportError:  # Windows: two jobs at once are not told
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger("stagevar_probe")

Make = Callable[[], Any]
LOCK = ".lock"


class ResumableWork:
    """Pieces of one job in ``folder``, which all its processes share."""

    def __init__(self, folder: Path, processes: Processes = ALONE) -> None:
        self.folder, self.processes = folder, processes
        self._lock: int | None = None

    def open(self, job: Mapping[str, Any], resume: bool) -> None:
        """Make the folder, or go on with what is in it.

        Raises:
            CalibrationError: it holds another job, and ``resume`` was asked; or another process is
                at work in it.
        """
        digest = hashlib.sha256(json.dumps(job, sort_keys=True).encode()).hexdigest()
        marker = self.folder / "job.json"
        if self.processes.first:
            self._hold()
            for path in () if resume else self.folder.iterdir():
                if path.name != LOCK:
                    path.unlink()
            if marker.exists():
                logger.info("resuming the calibration in %s", self.folder)
            else:
                write_json(marker, {"job": digest})
        self.processes.wait()
        if not marker.exists():
            raise CalibrationError(
                f"{self.folder} is not seen by process {self.processes.rank}: the processes of one "
                "job share a folder. Run separate jobs and join them with stagevar-probe merge"
            )
        if read_json(marker)["job"] != digest:
            raise CalibrationError(
                f"{self.folder} holds an unfinished calibration with other settings: finish it "
                "with those settings, or start afresh with --no-resume"
            )

    def _hold(self) -> None:
        """Keep other processes out of the folder for as long as this one lives."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT)
        if fcntl is None:
            return
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise CalibrationError(
                f"{self.folder}: another calibration is at work in it. Wait until it is done, or "
                "name another --output"
            ) from error

    def once(self, name: str, make: Make) -> Any:
        """A piece that one process makes for all, from its file if it is there."""
        return self.each([(name, make)])[0]

    def each(
        self,
        pieces: Sequence[tuple[str, Make]],
        first: int = 0,
        tick: Callable[[int], None] = lambda images: None,
        images: int = 1,
    ) -> list[Any]:
        """Every piece, in order; process r makes ``first`` + 0, 1, ... where that modulo N is r.

        ``tick(images)`` counts a piece that is done; those of other processes count at the end.
        """
        for i, (name, make) in enumerate(pieces):
            path = self.folder / name
            if self.processes.own(first + i):
                if not path.exists():
                    write_json(path, make())
                tick(images)
        self.processes.wait()
        tick(images * sum(not self.processes.own(first + i) for i in range(len(pieces))))
        return [read_json(self.folder / name) for name, _ in pieces]

    def close(self) -> None:
        """The job is finished and written: forget the pieces."""
        if self.processes.first:
            shutil.rmtree(self.folder, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        self.processes.wait()
