"""Inputs without end: the same items in turn, every draw with a seed of its own.

A prompt with another seed is a fresh draw. Prompts that chose a plan do not prove it, too: the
lines of a file are split three ways by a hash of their text, where there are enough of them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from .inputs import HELD_OUT_SEED, Encode, Inputs

Purpose = Literal["measure", "race", "proof"]

STARTS: dict[str, int] = {"measure": 0, "proof": HELD_OUT_SEED, "race": 2 * HELD_OUT_SEED}
SHARES: dict[str, range] = {"measure": range(0, 2), "race": range(2, 4), "proof": range(4, 8)}
ENOUGH = 48  # distinct prompts from which a list is split, so that each part has a few


@dataclass(frozen=True)
class Supply:
    """``items`` (class labels or prompts) in turn, from seed ``start`` on.

    ``tags``: what kind a prompt is of, where that is known.
    """

    name: str
    items: tuple[int | str, ...]
    start: int
    encode: Encode | None = None
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def sha256(self) -> str:
        """Hash of the items, in order."""
        return hashlib.sha256(json.dumps(self.items).encode()).hexdigest()

    def part(self, begin: int, size: int) -> Inputs:
        """``size`` draws from number ``begin`` on: the same for the same numbers, always."""
        numbers = range(begin, begin + size)
        return Inputs(
            self.name,
            tuple(self.items[i % len(self.items)] for i in numbers),
            tuple(self.start + i for i in numbers),
            self.encode,
        )

    def tag(self, item: int | str) -> str | None:
        """What kind an item is of."""
        return self.tags.get(str(item))


def supply(
    name: str,
    items: Sequence[int | str],
    purpose: Purpose,
    seed: int,
    encode: Encode | None = None,
) -> Supply:
    """Draws for a purpose, whose seeds no other purpose has."""
    return Supply(name, tuple(items), STARTS[purpose] + 7919 * seed, encode)


def split_lines(lines: Sequence[str], *purposes: Purpose) -> list[str]:
    """The lines that serve some purposes: of many all with the same text go the same way; of few
    every line serves each, with other seeds."""
    if len(set(lines)) < ENOUGH:
        return list(lines)
    parts = {part for purpose in purposes for part in SHARES[purpose]}
    return [line for line in lines if _part(line) in parts]


def race_or_proof(lines: Sequence[str], purpose: Purpose) -> list[str]:
    """Of held-out lines a quarter to race on, the others to prove with, split by their text."""
    if len(set(lines)) < ENOUGH:
        return list(lines)
    return [line for line in lines if (_part(line) < 2) == (purpose == "race")]


def _part(line: str) -> int:
    return hashlib.sha256(line.encode()).digest()[0] % 8
