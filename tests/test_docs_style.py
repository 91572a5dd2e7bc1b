"""The pages read easily: short sentences, short paragraphs, links that lead somewhere.

pytest tests/test_docs_style.py
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MADE = re.compile(r"<!-- (\w+): made by .*?<!-- /\1 -->", re.DOTALL)
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
SENTENCE, PARAGRAPH = 40, 120  # words


def prose(text: str) -> list[str]:
    """Paragraphs and list items, without tables, code, headings and what scripts make."""
    text = FENCE.sub("", MADE.sub("", text))
    found: list[str] = []
    for block in re.split(r"\n\s*\n", text):
        lines = [line for line in block.splitlines() if not line.startswith(("|", "#", "<", "!["))]
        items = re.split(r"\n(?=\s*(?:[*-]|\d+\.) )", "\n".join(lines))
        found += [" ".join(item.split()) for item in items if item.strip()]
    return found


def words(text: str) -> int:
    plain = re.sub(r"`[^`]*`", "code", re.sub(r"\]\([^)]*\)", "]", text))
    return len(plain.split())


def sentences(paragraph: str) -> list[str]:
    return re.split(r"(?<=[.!?:;])\s+(?=[A-Z`*\[(\d])", re.sub(r"^[*-] ", "", paragraph))


def test_the_rule_sees_a_long_sentence() -> None:
    long = " ".join(["word"] * 41) + "."
    assert words(sentences(prose(f"# Title\n\n{long}\n")[0])[0]) == 41
    assert prose("```\n" + long + "\n```\n| " + long + " |\n") == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_sentences_and_paragraphs_are_short(page: Path) -> None:
    if "Made by" in (text := page.read_text(encoding="utf-8"))[:200]:
        pytest.skip("made by a script from data")
    for paragraph in prose(text):
        assert words(paragraph) <= PARAGRAPH, paragraph[:200]
        for sentence in sentences(paragraph):
            assert words(sentence) <= SENTENCE, sentence


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)#]+?)(?:#[\w-]*)?\)", text):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target
