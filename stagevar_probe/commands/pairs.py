"""``--option NAME=VALUE``: text for a family to read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import click


def parse_options(pairs: Sequence[str]) -> dict[str, Any]:
    """``NAME=VALUE`` pairs: whole numbers as such, everything else as text, for the family to read.

    So ``1_2_3`` is no number, ``16:9`` no time of day and ``no`` no truth value before it is asked.

    Raises:
        click.UsageError: no ``=`` in one of them, or a name twice.
    """
    found: dict[str, Any] = {}
    for text in pairs:
        name, sign, value = text.partition("=")
        if not (name and sign and value.strip()):
            raise click.UsageError(f"got --option {text}, expected NAME=VALUE")
        if name in found:
            raise click.UsageError(f"got --option {name} twice, expected it once")
        found[name] = _number(value.strip())
    return found


def _number(text: str) -> Any:
    if re.fullmatch(r"[-+]?\d{1,18}", text):
        return int(text)
    return float(text) if re.fullmatch(r"[-+]?\d{0,18}\.\d{1,18}", text) else text
