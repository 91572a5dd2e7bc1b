"""Files of prompts and labels are read to their end before the first generation.

pytest tests/probe/datasets/test_checked.py
"""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import invoke, write_tiny
from tiny_files import write_infinity

from stagevar_probe.datasets.checked import AT_ONCE, check_file
from stagevar_runtime import Pipeline, load
from stagevar_runtime.errors import CalibrationError

GOOD = [f"a {colour} {shape}" for colour in ("red", "blue") for shape in ("cube", "ball")]


@pytest.fixture(scope="module")
def infinity(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return load(write_infinity(tmp_path_factory.mktemp("infinity")), profile=None)


@pytest.fixture(scope="module")
def var(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return load(write_tiny(tmp_path_factory.mktemp("var")), profile=None)


def test_a_bad_prompt_is_named_by_file_and_line(infinity: Pipeline, tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    lines = [*GOOD * AT_ONCE, "", "a purple cube", "a red cube"]
    path.write_text("\n".join(lines))
    with pytest.raises(CalibrationError) as caught:
        check_file(path, infinity)
    where = f"{path}, line {len(lines) - 1}: "
    assert str(caught.value).startswith(where) and "knows no word 'purple'" in str(caught.value)
    path.write_text("\n".join(GOOD))
    check_file(path, infinity)


@pytest.mark.parametrize("text", ["cat", "5", "-1", "1.5", "9" * 5000, "", "1 2"])
def test_a_bad_label_is_named_by_file_and_line(var: Pipeline, tmp_path: Path, text: str) -> None:
    path = tmp_path / "l.txt"
    path.write_text(f"0\n\n4\n{text}\n")
    if not text:
        check_file(path, var)
        return
    with pytest.raises(CalibrationError, match=r"l\.txt, line 4: got .* class numbers from 0 to 4"):
        check_file(path, var)


def test_before_the_first_generation(infinity: Pipeline, tmp_path: Path) -> None:
    """Held-out prompts, too, which are drawn last."""
    path = tmp_path / "p.txt"
    path.write_text("\n".join([*GOOD * 20, "a red tower"]))
    out = tmp_path / "out.yaml"
    result = invoke("calibrate", infinity.path, "--prompts", path, "--count", 2, "-o", out)
    assert isinstance(result.exception, CalibrationError)
    assert "p.txt, line 81: " in str(result.exception)
    assert not list(tmp_path.glob(".out*"))


def test_nothing_in_it(var: Pipeline, tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_text("\n \n")
    with pytest.raises(CalibrationError, match=r"l\.txt: no prompts or labels in it"):
        check_file(tmp_path / "l.txt", var)
