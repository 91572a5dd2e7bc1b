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

from ..measure.measurements import as_written, read_json, write_json
from .processes import ALONE, Processes

try:
    import fcntl
except ImportError:  # Windows: two jobs at once are not told
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger("stagevar_probe")

Make = Callable[[], Any]
LOCK = ".lock"
NOTHING = object()  # a piece that is not there


class ResumableWork:
    """Pieces of one job in ``folder``, which all its processes share."""

    def __init__(self, folder: Path, processes: Processes = ALONE) -> None:
        self.folder, self.processes = folder, processes
        self._lock: int | None = None
        self.job = ""

    def open(self, job: Mapping[str, Any], resume: bool) -> None:
        """Make the folder, or go on with what is in it.

        Raises:
            CalibrationError: it holds another job, and ``resume`` was asked; or another process is
                at work in it.
        """
        self.job = _digest(job)
        marker = self.folder / "job.json"
        if self.processes.first:
            self._hold()
            for path in () if resume else self.folder.iterdir():
                if path.name != LOCK:
                    _remove(path)
            if marker.exists():
                logger.info("resuming the calibration in %s", self.folder)
            else:
                write_json(marker, {"job": self.job, "settings": json.loads(json.dumps(job))})
        self.processes.wait()
        if not marker.exists():
            raise CalibrationError(
                f"{self.folder} is not seen by process {self.processes.rank}: the processes of one "
                "job share a folder. Run separate jobs and join them with stagevar-probe merge"
            )
        self._check_marker(marker, job)

    def _check_marker(self, marker: Path, job: Mapping[str, Any]) -> None:
        """Raise CalibrationError unless the folder is this job's; names what differs."""
        try:
            found = read_json(marker)
        except CalibrationError as error:
            raise CalibrationError(f"{error}. Start afresh with --no-resume") from error
        if not isinstance(found, dict) or not isinstance(found.get("job"), str):
            raise CalibrationError(
                f"{marker}: holds no job, expected one. Start afresh with --no-resume"
            )
        if found["job"] == self.job:
            return
        before = found.get("settings")
        now = json.loads(json.dumps(job))
        keys = [
            key
            for key in sorted({*now, *(before if isinstance(before, dict) else ())})
            if not isinstance(before, dict) or before.get(key) != now.get(key)
        ]
        differs = f" ({', '.join(keys[:5])} differ{'s' if len(keys) == 1 else ''})"
        raise CalibrationError(
            f"{self.folder} holds an unfinished calibration with other settings"
            f"{differs if isinstance(before, dict) else ''}: finish it with those settings, or "
            "start afresh with --no-resume"
        )

    def _hold(self) -> None:
        """Keep other processes out of the folder for as long as this one lives."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT)
        except OSError as error:
            raise CalibrationError(
                f"{self.folder}: cannot hold an unfinished calibration ({error.strerror}). Remove "
                "what is there, or name another --output"
            ) from error
        if fcntl is None:
            return
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise CalibrationError(
                f"{self.folder}: another calibration is at work in it. Wait until it is done, or "
                "name another --output"
            ) from error
        except OSError as error:  # NFS, Lustre without locks
            logger.warning(
                "%s: this file system has no locks (%s): see that no other calibration works in it",
                self.folder,
                error.strerror,
            )

    def _piece(self, path: Path) -> Any:
        """What a piece of this job holds; :data:`NOTHING` where it is not there or not whole."""
        if not path.exists():
            return NOTHING
        try:
            found = read_json(path)
        except CalibrationError:
            found = None
        if isinstance(found, dict) and found.get("job") == self.job and "piece" in found:
            if found.get("sum") == _digest(found["piece"]):
                return found["piece"]
        logger.warning("%s is damaged or another job's: made again", path.name)
        return NOTHING

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
                if self._piece(path) is NOTHING:
                    self._keep(path, make())
                tick(images)
        self.processes.wait()
        tick(images * sum(not self.processes.own(first + i) for i in range(len(pieces))))
        found = [self._piece(self.folder / name) for name, _ in pieces]
        for (name, _), piece in zip(pieces, found, strict=True):
            if piece is NOTHING:
                raise CalibrationError(
                    f"{self.folder / name}: a piece of this job is missing or damaged. Run the "
                    "same command again to make it, or start afresh with --no-resume"
                )
        return found

    def _keep(self, path: Path, piece: Any) -> None:
        """Write a piece, with its job and its sum, as it will be read."""
        plain = as_written(piece)
        write_json(path, {"job": self.job, "sum": _digest(plain), "piece": plain})

    def close(self) -> None:
        """The job is finished and written: forget the pieces."""
        if self.processes.first:
            shutil.rmtree(self.folder, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        self.processes.wait()


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
