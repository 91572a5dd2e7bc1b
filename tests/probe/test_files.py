"""Whole files, contact sheets, progress for those who look.

pytest tests/probe/test_files.py
"""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stagevar_probe.files import check_writable, write_whole
from stagevar_probe.progress import meter
from stagevar_probe.report.contact_sheet import GAP, contact_sheet, save_picture
from stagevar_runtime.errors import StagevarError


def test_write_whole_replaces_or_leaves(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "a.json"
    write_whole(path, b"old")
    write_whole(path, b"new")
    assert path.read_bytes() == b"new"

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(StagevarError, match=r"a\.json: cannot be written \(No space left"):
        write_whole(path, b"newer")
    assert path.read_bytes() == b"new" and list(tmp_path.iterdir()) == [path]


def test_check_writable_leaves_no_trace(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_text("here")
    check_writable(kept, tmp_path / "new")
    assert kept.read_text() == "here" and list(tmp_path.iterdir()) == [kept]
    with pytest.raises(StagevarError, match="is a directory"):
        check_writable(tmp_path)
    with pytest.raises(StagevarError, match="folder that exists"):
        check_writable(kept, tmp_path / "none" / "x")


def test_contact_sheet_interleaves_lines() -> None:
    exact = torch.stack([torch.full((3, 64, 64), i / 10) for i in range(5)])
    sheet = contact_sheet([exact, 1 - exact], columns=2)
    assert sheet.shape == (3, 6 * (64 + GAP), 2 * (64 + GAP))
    cells = sheet.reshape(3, 6, 66, 2, 66)[0, :, 10, :, 10]
    expected = [[0, 0.1], [1, 0.9], [0.2, 0.3], [0.8, 0.7], [0.4, 1], [0.6, 1]]
    assert cells.tolist() == pytest.approx(np.array(expected))
    assert (sheet.reshape(3, 6, 66, 2, 66)[:, :, 64:] == 1).all()  # white between


def test_small_pictures_are_enlarged_by_a_whole_factor() -> None:
    small = torch.rand(1, 3, 24, 24)
    sheet = contact_sheet([small])
    assert sheet.shape == (3, 72 + GAP, 72 + GAP)
    assert torch.equal(sheet[:, :72:3, :72:3], small[0])
    assert contact_sheet([torch.rand(3, 3, 128, 128)], columns=16).shape == (3, 130, 390)


def test_png_holds_the_pixels(tmp_path: Path) -> None:
    sheet = torch.rand(3, 5, 7)
    save_picture(sheet, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert image.format == "PNG"
        pixels = np.asarray(image)
    np.testing.assert_array_equal(pixels, (sheet.permute(1, 2, 0) * 255).round().byte().numpy())
    with pytest.raises(StagevarError, match="cannot be written"):
        save_picture(sheet, tmp_path / "none" / "a.png")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "quiet", "shown"),
    [(Terminal(), False, True), (Terminal(), True, False), (io.StringIO(), False, False)],
)
def test_progress_is_for_terminals(monkeypatch, capsys, stream, quiet, shown) -> None:
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    with meter("measuring", 4, quiet) as tick:
        tick()
        tick(3)
    assert ("measuring" in stream.getvalue() and "4/4" in stream.getvalue()) == shown
    assert bool(stream.getvalue()) == shown
    assert capsys.readouterr().out == ""
