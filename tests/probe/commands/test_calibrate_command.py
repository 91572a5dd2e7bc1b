"""``calibrate``: what is told before the work, and what it writes.

pytest tests/probe/commands/test_calibrate_command.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import SMALL, invoke
from invoked import done, refused

from stagevar_probe.commands import options as command_options
from stagevar_probe.measure.measurements import load_measurements


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the model was loaded first")

    monkeypatch.setattr(command_options, "load", load)


@pytest.mark.parametrize("command", ["calibrate", "generate"])
@pytest.mark.parametrize("where", ["none/out.yaml", "file/out.yaml", "folder"])
def test_unwritable_output_is_told_before_the_work(
    tiny_files: Path, no_model: None, command: str, where: str
) -> None:
    (tiny_files.parent / "folder").mkdir()
    (tiny_files.parent / "file").touch()
    output = tiny_files.parent / where
    assert str(output) in refused(invoke(command, tiny_files, "--output", output))


METRICS = """
import torch
not_a_function = 3
def shape(images, items, exact): return torch.zeros(len(images), 2)
def nan(images, items, exact): return torch.full((len(images),), torch.nan)
def none(images, items, exact): return None
def fails(images, items, exact): raise ZeroDivisionError("by zero\\nin a metric")
"""


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("nowhere:f", "No module named 'nowhere'"),
        ("mine:absent", "has no attribute 'absent'"),
        ("mine:not_a_function", "expected a function"),
        ("syntax:f", "SyntaxError"),
        (":f", "expected module:function"),
        ("mine:shape", "gave shape (6,) for 3 images"),
        ("mine:nan", "expected one finite score each"),
        ("mine:none", "mine:none failed: "),
        ("mine:fails", "ZeroDivisionError: by zero in a metric"),
        ("agreement", "var_tiny.scorer.safetensors beside it"),
        ("beauty", "expected module:function"),
    ],
)
def test_bad_metrics(tiny_files: Path, tmp_path, monkeypatch, metric: str, expected: str) -> None:
    (tmp_path / "mine.py").write_text(METRICS)
    (tmp_path / "syntax.py").write_text("def f(:")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(tmp_path)])
    for name in ("mine", "syntax"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert expected in refused(invoke("calibrate", tiny_files, "--metric", metric, *SMALL))
    assert not tiny_files.with_suffix(".stagevar.yaml").exists()


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("none.txt", None, "cannot be read"),
        ("words.txt", "a cat\n", "this model takes class numbers"),
        ("high.txt", "1\n7\n", "got [7]"),
        ("empty.txt", "\n", "no label"),
        ("bad.jsonl", '{"label": 1}\n{"text": 2}\n', "line 2"),
    ],
)
def test_bad_prompts(tiny_files: Path, tmp_path: Path, name, content, expected) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    assert expected in refused(invoke("calibrate", tiny_files, "--prompts", tmp_path / name))


def test_a_kind_that_no_prompt_is_of_is_refused(tiny_files: Path) -> None:
    said = refused(invoke("calibrate", tiny_files, "--also", "counting=.02"))
    assert "--also counting: no prompt of" in said


def test_dry_run_writes_nothing(tiny_files: Path) -> None:
    before = sorted(tiny_files.parent.iterdir())
    result = done(invoke("calibrate", tiny_files, "--dry-run", "--json", *SMALL))
    assert json.loads(result.stdout)["seconds_estimate"] > 0
    assert sorted(tiny_files.parent.iterdir()) == before


def test_calibrate_json_and_labels_file(tiny_files: Path, tmp_path: Path) -> None:
    """Unguided, labels from a file, another output: everything lands where it was asked."""
    (tmp_path / "labels.jsonl").write_text('{"label": 1}\n{"label": 3}\n')
    (tmp_path / "out").mkdir()
    result = invoke(
        *("calibrate", tiny_files, "--json", "--guidance", 0, "--max-loss", 0.3, *SMALL),
        *("--prompts", tmp_path / "labels.jsonl", "-o", tmp_path / "out" / "p.yaml"),
    )
    said = json.loads(done(result).stdout)
    assert result.return_value == (0 if said["satisfied"] is True else 5)
    assert said["max_loss"] == 0.3 and "interventions" in result.stderr
    written = {"p.yaml", "p.measurements.json", "p.report.html"}
    written |= {Path(said["bases"]).name} if "bases" in said else set()  # by times
    assert {path.name for path in (tmp_path / "out").iterdir()} == written
    measured = load_measurements(said["measurements"])
    assert measured.job.inputs.name == "labels.jsonl"
    assert not any(
        intervention.variant for intervention in measured.interventions
    )  # nothing to drop without guidance
    assert measured.sensitivity == {}
