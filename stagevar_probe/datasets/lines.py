"""Prompts and labels of a file: text, one a line, or JSON lines with ``prompt`` or ``label``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stagevar_runtime.errors import CalibrationError
from stagevar_runtime.files import read_plain

MAX_BYTES = 64 << 20
JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
TEXT_SUFFIXES = (".txt", ".text", "")


def lines_of(path: Path) -> list[tuple[int, str]]:
    """The lines of a file that hold something, with their numbers from 1.

    UTF-8, with or without a byte order mark. A line ends at a line feed, with or without a carriage
    return before it, and nowhere else: other separators of Unicode may stand in a prompt.

    Raises:
        CalibrationError: it is no such file.
    """
    try:
        text = read_plain(path, MAX_BYTES).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise CalibrationError(
            f"{path}: cannot be read as text ({error}), expected UTF-8, one prompt or label a line"
        ) from error
    lines = (line.removesuffix("\r") for line in text.split("\n"))
    return [(n, line) for n, line in enumerate(lines, 1) if line.strip()]


def read_lines(path: str | Path) -> list[str]:
    """Prompts or labels of a file, as :func:`numbered_lines` reads them."""
    return [text for _, text in numbered_lines(path)]


def numbered_lines(path: str | Path) -> list[tuple[int, str]]:
    """Prompts or labels of a text file (one a line) or of JSON lines (``prompt`` or ``label``),
    with the numbers of their lines.

    The suffix says which, in capitals or not; text that begins like JSON lines is read as these.

    Raises:
        CalibrationError: the file cannot be read, has another suffix, or a line says neither.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in (*TEXT_SUFFIXES, *JSON_SUFFIXES):
        raise CalibrationError(f"{path}: got the suffix {path.suffix}, expected .txt or .jsonl")
    lines = lines_of(path)
    if suffix in TEXT_SUFFIXES and not (lines and lines[0][1].lstrip().startswith("{")):
        for number, line in lines:
            if "\0" in line:
                raise CalibrationError(f"{path}, line {number}: holds NUL, expected text")
        return lines
    return [(n, _asked(row, f"{path}, line {n}")) for n, row in rows_of(path, lines)]


def rows_of(path: Path, lines: list[tuple[int, str]]) -> list[tuple[int, dict[str, Any]]]:
    """Every line as a JSON object, with its number.

    Raises:
        CalibrationError: one is no such object.
    """
    rows = []
    for number, line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _no_row(f"{path}, line {number}") from error
        if not isinstance(row, dict):
            raise _no_row(f"{path}, line {number}")
        rows.append((number, row))
    return rows


def _no_row(where: str) -> CalibrationError:
    return CalibrationError(f"{where}: expected a JSON object with 'prompt' or 'label'")


def _asked(row: dict[str, Any], where: str) -> str:
    if "prompt" in row:
        return prompt_of(row, where)
    label = row.get("label")
    said = isinstance(label, str) and bool(label.strip())
    if not said and (isinstance(label, bool) or not isinstance(label, int)):
        what = f", got the label {str(label)[:40]}" if "label" in row else ""
        raise CalibrationError(f"{where}: expected a JSON object with 'prompt' or 'label'{what}")
    return str(label).strip()


def prompt_of(row: dict[str, Any], where: str) -> str:
    """The prompt of a row. Raises CalibrationError unless it is text with something in it."""
    prompt = row.get("prompt")
    if not isinstance(prompt, str) or not prompt.strip():
        raise CalibrationError(f"{where}: the prompt is {str(prompt)[:40]!r}, expected text")
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError as error:
        raise CalibrationError(f"{where}: expected text, got a lone surrogate") from error
    return prompt
