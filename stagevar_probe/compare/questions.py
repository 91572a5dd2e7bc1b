"""The questions a comparison answers, each with numbers and one plain sentence.

What is chosen among many rows (a tuning, a selector) is chosen on every second image and judged on
the others, so that picking the luckiest row does not pass for a gain. Differences are paired by
image; "no difference shown" means that the 95 % interval holds zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from .branches import about_branches
from .comparison import Comparison
from .paired import Finding, PairedRows
from .stability import about_stability
from .sums import about_sums
from .token_options import about_projection, about_selection
from .tokens_or_low_rank import about_axes

QUESTIONS = (
    about_branches,
    about_selection,
    about_projection,
    about_axes,
    about_sums,
    about_stability,
)


def findings(found: Comparison) -> list[Finding]:
    """An answer to every question that this comparison has the rows for."""
    paired = PairedRows(found)
    given = [ask(paired) for ask in QUESTIONS]
    return [finding for finding in given if finding is not None]


def as_json(given: Sequence[Finding]) -> list[dict[str, Any]]:
    """JSON-ready, without the tables."""
    return [{k: v for k, v in asdict(finding).items() if k != "table"} for finding in given]
