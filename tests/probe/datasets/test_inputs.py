"""Balanced labels, lists from files, seeds that never meet.

pytest tests/probe/datasets/test_inputs.py
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stagevar_probe.datasets.inputs import (
    Inputs,
    balanced_labels,
    given_labels,
    prompts_from,
    read_lines,
)
from stagevar_runtime.errors import CalibrationError, StagevarError
from stagevar_runtime.families.var import VAR
from stagevar_runtime.model.protocol import Conditioning


def model_of(classes: int):
    return SimpleNamespace(info=SimpleNamespace(classes=classes))


@given(st.integers(1, 1200), st.integers(1, 600))
def test_labels_are_balanced(classes: int, count: int) -> None:
    inputs = balanced_labels(model_of(classes), count, seed=0)
    seen = Counter(inputs.items)
    assert len(inputs) == count and set(inputs.items) <= set(range(classes))
    assert max(seen.values()) - (min(seen.values()) if len(seen) == classes else 0) <= 1


@pytest.mark.parametrize("count", [16, 64, 256])
def test_few_images_are_spread_over_many_classes(count: int) -> None:
    """The first 256 of ImageNet's classes are animals."""
    items = balanced_labels(model_of(1000), count, seed=0).items
    tenths = Counter(item // 100 for item in items)
    assert len(tenths) == 10 and min(tenths.values()) >= int(0.09 * count)


def test_seeds_never_meet() -> None:
    model = model_of(10)
    used: set[int] = set()
    for held_out in (False, True):
        seeds = set(balanced_labels(model, 5000, 3, held_out).seeds)
        assert len(seeds) == 5000 and not seeds & used
        used |= seeds
    assert balanced_labels(model, 4, 3).seeds != balanced_labels(model, 4, 4).seeds


def test_chunks_and_hash() -> None:
    inputs = balanced_labels(model_of(5), 7, seed=1)
    parts = [inputs.chunk(i, 3) for i in (0, 3, 6)]
    assert [len(part) for part in parts] == [3, 3, 1]
    assert sum((part.items for part in parts), ()) == inputs.items
    assert sum((part.seeds for part in parts), ()) == inputs.seeds
    assert inputs.sha256 == balanced_labels(model_of(5), 7, seed=2).sha256
    assert inputs.sha256 != replace(inputs, items=inputs.items[::-1]).sha256


def test_conditioning(tiny_var: VAR) -> None:
    labels = Inputs("l", (3, "1"), (0, 1)).condition(tiny_var)
    assert labels.cond["labels"].tolist() == [3, 1]
    asked = []

    def encode(prompts):
        asked.append(list(prompts))
        return Conditioning({"text": torch.zeros(2, 1)}, {})

    prompts = prompts_from(["a cat", "a dog"], "p", 2, 0, encode)
    assert prompts.condition(tiny_var).batch == 2 and asked == [["a cat", "a dog"]]


def test_short_lists_are_repeated_with_new_seeds() -> None:
    inputs = prompts_from(["a", "b"], "p", 5, 0, lambda p: None, held_out=True)
    assert inputs.items == ("a", "b", "a", "b", "a") and len(set(inputs.seeds)) == 5
    with pytest.raises(CalibrationError, match="no prompts in it"):
        prompts_from([], "p", 5, 0, lambda p: None)


def test_lines_of_files(tmp_path: Path) -> None:
    text = tmp_path / "p.txt"
    text.write_text("a cat\n\n  \na dög\n", encoding="utf-8")
    assert read_lines(text) == ["a cat", "a dög"]
    rows = tmp_path / "p.jsonl"
    rows.write_text('{"prompt": "a cat"}\n{"label": 3}\n')
    assert read_lines(str(rows)) == ["a cat", "3"]


@pytest.mark.parametrize("line", ['{"text": 1}', "[1]", "{", "3"])
def test_bad_lines_are_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"label": 1}\n' + line)
    with pytest.raises(CalibrationError, match=r"p\.jsonl, line 2: expected a JSON object"):
        read_lines(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CalibrationError, match="cannot be read as text"):
        read_lines(path)


def test_given_labels(tiny_var: VAR) -> None:
    inputs = given_labels(tiny_var, ["3", "0"], "l.txt", 5, 0, held_out=False)
    assert inputs.items == (3, 0, 3, 0, 3) and inputs.name == "l.txt"
    with pytest.raises(CalibrationError, match=r"l\.txt: .*'cat'.*takes class numbers"):
        given_labels(tiny_var, ["cat"], "l.txt", 5, 0, False)
    with pytest.raises(StagevarError, match="expected labels from 0 to 4"):
        given_labels(tiny_var, ["5"], "l.txt", 5, 0, False)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.txt", b"\xef\xbb\xbfa red circle\n", ["a red circle"]),
        ("a.jsonl", b'\xef\xbb\xbf{"prompt": "a cat"}\r\n', ["a cat"]),
        ("a.jsonl", '{"prompt": "a\u2028cat"}\n'.encode(), ["a\u2028cat"]),
        (
            "a.txt",
            "wait\u0085a cat\u2029\x0b\x0cb\rc\r\nd".encode(),
            ["wait\x85a cat\u2029\x0b\x0cb\rc", "d"],
        ),
        ("a.JSONL", b'{"prompt": "a cat"}', ["a cat"]),
        ("a.TXT", b"a cat", ["a cat"]),
        ("a.ndjson", b'{"label": "3"}', ["3"]),
        ("a", b"a cat", ["a cat"]),
        ("a.txt", b'{"prompt": "a cat"}\n{"prompt": "b"}', ["a cat", "b"]),
        ("a.txt", b"", []),
    ],
)
def test_files_as_people_have_them(
    tmp_path: Path, name: str, content: bytes, expected: list[str]
) -> None:
    (tmp_path / name).write_bytes(content)
    assert read_lines(tmp_path / name) == expected


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", b'{"prompt": null}'),
        ("a.jsonl", b'{"prompt": ""}'),
        ("a.jsonl", b'{"prompt": 3}'),
        ("a.jsonl", b'{"prompt": "\\ud800"}'),
        ("a.jsonl", b'{"label": null}'),
        ("a.jsonl", b'{"label": true}'),
        ("a.jsonl", b'{"label": 1.5}'),
        ("a.jsonl", b"[" * 100_000),
        ("a.json", b'[{"prompt": "a"}]'),
        ("a.csv", b"a cat"),
        ("a.txt", "a cat".encode("utf-16")),
        ("a.txt", b"a\0cat"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CalibrationError, match=r"expected"):
        read_lines(tmp_path / name)


def test_special_files_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "p.txt")
    (tmp_path / "loop.txt").symlink_to(tmp_path / "loop.txt")
    for path in (tmp_path / "p.txt", tmp_path / "loop.txt", tmp_path / "a\0.txt", tmp_path):
        with pytest.raises(CalibrationError, match=r"cannot be read|suffix"):
            read_lines(path)
