"""Pages with figures say what the committed results say.

pytest tests/test_results.py
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tools import commands, compared, headline, profile, results, speed
from tools.marked import fill

ROOT = Path(__file__).resolve().parents[1]


MADE = {
    "README.md": headline.page,
    "docs/results.md": results.page,
    "docs/benchmark.md": speed.page,
    "docs/commands.md": commands.page,
    "docs/profile.md": profile.page,
    "docs/profile.schema.json": profile.schema,
}


@pytest.mark.parametrize("name", MADE)
def test_page_is_as_made(name: str) -> None:
    assert MADE[name]() == (ROOT / name).read_text(encoding="utf-8"), "make pages"


def test_compared_page() -> None:
    found = json.loads(compared.RESULT.read_text(encoding="utf-8"))
    assert compared.page(found) == compared.PAGE.read_text(encoding="utf-8")
    found["rows"][0]["score"][0] = 0.1234
    assert compared.page(found) != compared.PAGE.read_text(encoding="utf-8")


def test_marks_are_kept_and_asked_for() -> None:
    text = "above\n<!-- x: made by tools/y.py -->\nold\n<!-- /x -->\nbelow\n"
    once = fill(text, "x", "y", "new")
    assert "old" not in once and once.startswith("above\n") and once.endswith("\nbelow\n")
    assert fill(once, "x", "y", "new") == once
    with pytest.raises(ValueError, match="marks"):
        fill("nothing", "x", "y", "new")
