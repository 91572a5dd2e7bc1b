"""Every variant of a file of prompts or labels: what it says, or an error with file and line.

pytest tests/fuzz/test_fuzz_lines.py
"""

from __future__ import annotations

import codecs
import itertools
import json
import random
from pathlib import Path

import pytest
from guarded import typed
from mutations import ODD, damaged, mutated

from stagevar_probe.datasets.inputs import prompt_tags, split_prompts
from stagevar_probe.datasets.lines import JSON_SUFFIXES, TEXT_SUFFIXES, read_lines
from stagevar_runtime.errors import CalibrationError

SUFFIXES = (*TEXT_SUFFIXES, *JSON_SUFFIXES, ".TXT", ".JSONL", ".csv", ".yaml")
ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-32", "latin-1", "cp1252")
ENDS = ("\n", "\r\n")
CONTENTS: dict[str, tuple[list[str], list[str] | None]] = {
    "prompts": (["a cat", "zwei Hüte"], ["a cat", "zwei Hüte"]),
    "separators": (["a\u2028b\x85c\x0b\x0cd"], ["a\u2028b\x85c\x0b\x0cd"]),
    "blank": (["", "  ", "a", ""], ["a"]),
    "numbers": (["3", "0"], ["3", "0"]),
    "rows": (['{"prompt": "a cat"}', '{"label": 3}'], ["a cat", "3"]),
    "rows, more": (['{"prompt": "ä", "tag": "t", "split": "held_out"}'], ["ä"]),
    "null": (['{"prompt": null}'], None),
    "empty prompt": (['{"prompt": " "}'], None),
    "truth": (['{"label": true}'], None),
    "float": (['{"label": 1.5}'], None),
    "blank label": (['{"label": " "}'], None),
    "label as text": (['{"label": " 3 "}'], ["3"]),
    "array": (['{"prompt": ["a"]}'], None),
    "neither": (['{"text": "a"}'], None),
    "cut": (['{"prompt": "a"'], None),
    "surrogate": (['{"prompt": "\\ud800"}'], None),
    "NUL": (["a\0b"], None),
    "none": ([], []),
}


def written(path: Path, lines: list[str], encoding: str, end: str) -> bool:
    """Whether the text can be written so."""
    try:
        path.write_bytes((end.join(lines) + end * bool(lines)).encode(encoding))
    except UnicodeEncodeError:
        return False
    return True


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_variant(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"p{suffix}"
    for (name, (lines, expected)), encoding, end in itertools.product(
        CONTENTS.items(), ENCODINGS, ENDS
    ):
        what = f"{name} in {encoding}{suffix}"
        if not written(path, lines, encoding, end):
            continue
        found = typed(what, lambda: read_lines(path))
        plain = all(ord(c) < 128 for line in lines for c in line)
        readable = encoding.startswith("utf-8") or (plain and encoding in ("latin-1", "cp1252"))
        rows = bool(lines) and lines[0].startswith("{")
        known = suffix.lower() in (*TEXT_SUFFIXES, *JSON_SUFFIXES)
        fits = rows or not lines or not "".join(lines).strip() or suffix.lower() in TEXT_SUFFIXES
        if not (known and fits and readable):
            assert found is None or not lines, what
        else:
            assert found == expected, what
    path.write_bytes(codecs.BOM_UTF8)
    assert typed("BOM alone", lambda: read_lines(path)) in (None, [])


@pytest.mark.parametrize("count", [400, pytest.param(20_000, marks=pytest.mark.slow)])
def test_damaged_lines(tmp_path: Path, count: int) -> None:
    rows = [
        {"prompt": f"a {c}", "split": s, "tag": c}
        for c in "abc"
        for s in ("calibration", "held_out")
    ]
    rows += [{"label": 3}]
    content = "\n".join(map(json.dumps, rows)).encode()
    path = tmp_path / "m.prompts.jsonl"
    for number in range(count):
        chance = random.Random(number)
        path.write_bytes(damaged(content, chance))
        if number % 2:
            path.write_text("\n".join(json.dumps(mutated(row, chance)) for row in rows))
        for read in (read_lines, lambda p: split_prompts(p, True), prompt_tags):
            found = typed(f"case {number}", lambda read=read: read(path))
            assert found is None or all(isinstance(text, str) and text.strip() for text in found)


@pytest.mark.parametrize("odd", [value for value in ODD if not isinstance(value, float)])
def test_an_error_names_file_and_line(tmp_path: Path, odd: object) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a"}\n\n' + json.dumps({"prompt": odd}))
    if isinstance(odd, str) and odd.strip():
        assert read_lines(path) == ["a", odd]
        return
    with pytest.raises(CalibrationError, match=r"p\.jsonl, line 3: "):
        read_lines(path)
