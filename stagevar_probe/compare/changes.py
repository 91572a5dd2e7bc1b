"""What a row of a comparison changes: keys that questions find rows by, whatever they are called.

Scales are those of the last one or two, ascending.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Drop:
    """Guidance dropped from ``scale`` on: the ``branch`` that is kept, the guidance ``schedule``
    before, and whether the temperature is lowered after."""

    kind: ClassVar[str] = "drop"
    branch: str
    scale: int
    schedule: str
    cool: bool


@dataclass(frozen=True)
class Tokens:
    """A share of the tokens, chosen and restored in one way."""

    kind: ClassVar[str] = "tokens"
    select: str
    restore: str
    keep: float
    scales: tuple[int, ...]

    @property
    def option(self) -> str:
        """Selector and restorer."""
        return f"{self.select} + {self.restore}"

    @property
    def where(self) -> str:
        """Share and scales."""
        return f"keep {self.keep:g} at scale {', '.join(map(str, self.scales))}"


@dataclass(frozen=True)
class LowRank:
    """Fewer features of all tokens."""

    kind: ClassVar[str] = "features"
    basis: str
    rank: int
    scales: tuple[int, ...]


@dataclass(frozen=True)
class Skip:
    """The last ``late`` scales are not run."""

    kind: ClassVar[str] = "skip"
    late: int
