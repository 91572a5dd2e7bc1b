"""Interrupted work: damaged pieces are made again, what differs is named, no file is trusted.

pytest tests/probe/calibrate/test_resume.py
"""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
import torch
from conftest import small_job, write_tiny

from stagevar_probe.calibrate import processes, resume
from stagevar_probe.calibrate.directions import Directions
from stagevar_probe.calibrate.resume import ResumableWork
from stagevar_runtime import load
from stagevar_runtime.errors import CalibrationError

JOB = {"metric": "a", "seed": 0}


def made(folder: Path, job: dict = JOB, value: int = 1) -> tuple[list, int]:
    """Pieces of a job in a folder, and how many had to be made."""
    calls: list[int] = []
    work = ResumableWork(folder)
    work.open(job, resume=True)
    found = work.each([(f"p-{i}.json", lambda i=i: calls.append(i) or [value, i]) for i in (0, 1)])
    return found, len(calls)


@pytest.mark.parametrize(
    "damage",
    [b"", b"[", b"{}", b"null", b"[1]", b'{"job": "x", "piece": 1, "sum": ""}', b"\xff\xfe"],
)
def test_a_damaged_piece_is_made_again(tmp_path: Path, damage: bytes) -> None:
    assert made(tmp_path) == ([[1, 0], [1, 1]], 2)
    assert made(tmp_path) == ([[1, 0], [1, 1]], 0)
    (tmp_path / "p-0.json").write_bytes(damage)
    assert made(tmp_path) == ([[1, 0], [1, 1]], 1)


def test_a_changed_value_and_another_jobs_piece_are_noticed(tmp_path: Path) -> None:
    made(tmp_path / "a")
    piece = json.loads((tmp_path / "a/p-0.json").read_text())
    (tmp_path / "a/p-0.json").write_text(json.dumps(piece | {"piece": [2, 0]}))
    assert made(tmp_path / "a")[1] == 1
    made(tmp_path / "b", {"metric": "b", "seed": 77}, 5)
    (tmp_path / "a/p-1.json").write_bytes((tmp_path / "b/p-1.json").read_bytes())
    (tmp_path / "a/job.json").unlink()  # pieces without a job belong to nobody
    assert made(tmp_path / "a") == ([[1, 0], [1, 1]], 1)


def test_the_setting_that_differs_is_named(tmp_path: Path) -> None:
    made(tmp_path)
    with pytest.raises(CalibrationError, match=r"\(metric differs\).*--no-resume"):
        made(tmp_path, {"metric": "b", "seed": 0})
    work = ResumableWork(tmp_path)
    work.open({"metric": "b"}, resume=False)
    assert not (tmp_path / "p-0.json").exists()


def test_damaged_directions_are_made_again(tmp_path: Path) -> None:
    """The file beside a piece is part of it."""
    model = load(write_tiny(tmp_path), profile=None)
    work = ResumableWork(tmp_path / "partial")
    work.open(JOB, resume=True)
    job = small_job(tmp_path, model)
    job.runner.work = work
    path = work.folder / "bases.safetensors"
    directions = Directions(job.runner, {3: 4})
    directions.measure()
    first, vectors = path.read_bytes(), directions.bases.vectors
    made = path.stat().st_mtime_ns
    directions.measure()
    assert path.stat().st_mtime_ns == made  # read, not made
    flipped = first[:-1] + bytes([first[-1] ^ 1])
    for damage in (b"", first[:100], b"x" * len(first), flipped, None):
        if damage is None:
            path.unlink()
        else:
            path.write_bytes(damage)
        directions.measure()
        found = directions.bases.vectors
        assert found.keys() == vectors.keys() and len(path.read_bytes()) == len(first)
        assert all(torch.equal(found[place], vectors[place]) for place in vectors)


@pytest.mark.parametrize("marker", ["[]", "{}", "x", '{"job": 1}', "[" * 100_000])
def test_a_marker_that_is_none(tmp_path: Path, marker: str) -> None:
    made(tmp_path)
    (tmp_path / "job.json").write_text(marker)
    with pytest.raises(CalibrationError, match="--no-resume"):
        made(tmp_path)


def test_files_where_folders_should_be(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / ".lock").mkdir()
    for name in ("a", "b"):
        with pytest.raises(CalibrationError, match="cannot hold an unfinished calibration"):
            made(tmp_path / name)


def test_no_locks_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def lockf(*arguments: object) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(resume.fcntl, "lockf", lockf)
    assert made(tmp_path)[1] == 2
    assert "has no locks" in caplog.text


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"WORLD_SIZE": "abc"}, "WORLD_SIZE is 'abc'"),
        ({"WORLD_SIZE": "2"}, "RANK, MASTER_ADDR, MASTER_PORT is not set"),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1"}, "MASTER_PORT is not set"),
    ],
)
def test_processes_that_are_not_there(
    monkeypatch: pytest.MonkeyPatch, env: dict[str, str], message: str
) -> None:
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(CalibrationError, match=message), processes.joined():
        pass
    monkeypatch.setenv("WORLD_SIZE", "")
    with processes.joined() as alone:
        assert alone.count == 1
