"""Do losses add up: the sum of single changes against the plan that makes all of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..intervals import mean_interval
from .paired import Finding, PairedRows, say


def about_sums(paired: PairedRows) -> Finding | None:
    """The sum of single losses against the loss of the plan that does all of it."""
    numbers: dict[str, Any] = {}
    for row in paired.rows.values():
        parts = [found.name for part in row.parts if (found := paired.changed(part))]
        if not parts or len(parts) < len(row.parts):
            continue
        total = sum(paired.loss(part) for part in parts)
        joint = paired.loss(row.name)
        numbers[row.name] = {
            "parts": parts,
            "sum": list(mean_interval(total)),
            "measured": list(mean_interval(joint)),
            "excess": list(mean_interval(joint - total)),
        }
    if not numbers:
        return None
    excess = np.array([case["excess"][0] for case in numbers.values()])
    over = sum(case["excess"][1] > 0 for case in numbers.values())
    under = sum(case["excess"][2] < 0 for case in numbers.values())
    sentence = (
        f"Of {len(numbers)} joint plans {over} lose significantly more than the sum of their parts "
        f"and {under} significantly less; measured minus sum lies between {excess.min():+.4f} and "
        f"{excess.max():+.4f}, {excess.mean():+.4f} on average."
    )
    table = [["plan", "sum of its parts", "measured", "measured - sum"]]
    for name, case in numbers.items():
        table.append([name, *(say(case[key]) for key in ("sum", "measured", "excess"))])
    return Finding("Do single-scale losses add up?", sentence, numbers, table)
