"""Pages with figures say what the committed results say.

pytest tests/test_results.py
"""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        f"benchmarks_{name}", ROOT / f"benchmarks/{name}.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_results_page() -> None:
    made = script("results")
    assert made.page() == made.PAGE.read_text(encoding="utf-8")


def test_compared_page() -> None:
    made = script("compared")
    found = json.loads(made.RESULT.read_text(encoding="utf-8"))
    assert made.page(found) == made.PAGE.read_text(encoding="utf-8")
    found["rows"][0]["score"][0] = 0.1234
    assert made.page(found) != made.PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["results", "compared"])
def test_pages_link_to_what_is_there(name: str) -> None:
    text = (ROOT / f"docs/{name}.md").read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#h][^)#]*)\)", text):
        assert (ROOT / "docs" / target).exists(), target
