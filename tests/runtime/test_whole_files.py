"""Files whole or not at all, tables, and other people's errors in one line.

pytest tests/runtime/test_whole_files.py
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from stagevar_runtime.errors import one_line
from stagevar_runtime.files import sweep, write_whole
from stagevar_runtime.tables import columns


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_whole(path, b"first")
    write_whole(path, b"second")
    assert path.read_bytes() == b"second"
    assert [found.name for found in tmp_path.iterdir()] == ["a.bin"]


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "folder", tmp_path / "none" / "a.bin"):
        with pytest.raises(OSError):
            write_whole(path, b"content")
    assert [found.name for found in tmp_path.iterdir()] == ["folder"]


def test_what_a_killed_write_left_is_removed(tmp_path: Path) -> None:
    path, other = tmp_path / "a[1].bin", tmp_path / "b.bin"
    dead = next(n for n in range(4_000_000, 5_000_000) if not Path(f"/proc/{n}").exists())
    lefts = [
        tmp_path / f".{p.name}.{n}-1-0.tmp" for p in (path, other) for n in (dead, os.getpid())
    ]
    lefts.append(tmp_path / f".{path.name}.{dead}-1-1.tmp")
    for left in lefts:
        left.touch()
    for left in lefts[:-1]:
        os.utime(left, (0, 0))
    sweep(path)
    assert sorted(tmp_path.iterdir()) == sorted(lefts[1:])  # an old one of a dead process alone


def test_columns() -> None:
    assert columns([("a", "bcd", ""), ("ef", "g", "h")]) == "a   bcd\nef  g    h"


def test_an_error_in_one_line() -> None:
    assert one_line(ValueError("\n two\n  lines ")) == "ValueError: two lines"
    assert one_line(ValueError("\x1b[1mbold\x1b[0m"), named=False) == "bold"
    assert one_line(KeyError(), named=False) == one_line(KeyError()) == "KeyError"
    assert len(one_line(ValueError("x" * 900))) == 160
