"""Three verdicts on a plan: shown to keep a budget, shown to break it, or neither."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from ..intervals import Interval
from ..measure.validation import Verdict

UNPROVEN: Literal["unproven"] = "unproven"
MARGIN = 0.01  # of a score from 0 to 1: what an interval may pass the budget by


@dataclass(frozen=True)
class Budget:
    """At most ``max_loss`` of a metric may be lost; of a ``tag``: on prompts of that kind alone."""

    metric: str
    max_loss: float
    tag: str | None = None

    @property
    def margin(self) -> float:
        """How far beyond the budget an interval may end: a hundredth, no more than the budget."""
        return min(MARGIN, self.max_loss)

    @property
    def limit(self) -> float:
        """What the upper end must not pass."""
        return self.max_loss + self.margin

    def verdict(self, bounds: Interval) -> Verdict:
        """True: the estimate keeps the budget, and the upper end passes it by the margin at most.
        False: the lower end is beyond the budget. Else it is not proved either way."""
        if bounds.low > self.max_loss:
            return False
        if bounds.mean <= self.max_loss and bounds.high <= self.limit:
            return True
        return UNPROVEN

    def inputs_needed(self, bounds: Interval, count: int) -> int | None:
        """How many inputs in all would show that the budget is kept, if all goes on as on
        ``count``: the ends close in with the root of the inputs. None where more would not."""
        if bounds.mean > self.max_loss:
            return None
        return math.ceil(count * ((bounds.high - bounds.mean) / (self.limit - bounds.mean)) ** 2)


def together(verdicts: Iterable[Verdict]) -> Verdict:
    """Of several budgets: False where one is broken, True where all are shown to be kept."""
    found = list(verdicts)
    if False in found:
        return False
    return True if all(verdict is True for verdict in found) else UNPROVEN


def said(verdict: Verdict) -> str:
    """In a word or two, for people."""
    if verdict is True:
        return "met"
    return "NOT met" if verdict is False else "not proved"
