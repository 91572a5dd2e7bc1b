"""The token axis against the feature axis: what is lost at equal measured time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from ..intervals import mean_interval
from ..validate.rows import EXACT, Row
from .paired import Array, Finding, PairedRows, combination, say, verdict

EVEN, ODD = slice(0, None, 2), slice(1, None, 2)


def about_axes(look: PairedRows) -> Finding | None:
    """Fewer features on all tokens, or fewer tokens with all features.

    A way to reduce tokens is a line from the exact path through its keep ratios, in measured loop
    time against squared error (of which PSNR is the logarithm) and loss. Every feature row is
    compared with the best line (on every second image) at its own time, on the other images.
    """
    rows = look.of_kind("features")
    if not rows or not look.of_kind("tokens"):
        return None
    table = [["features", "loop ms", "tokens at equal time", "PSNR gained dB", "score (smooth)"]]
    numbers: dict[str, Any] = {}
    said = []
    for row in rows:
        figures = look.found.figures[row.name]
        ms = figures.loop_ms
        case: dict[str, Any] = {"loop_ms": ms}
        lines = _lines(look, row.facts["scales"])
        known = {name: at for name, line in lines.items() if (at := _at(ms, line))}
        if figures.speedup_loop[1] <= 1:
            case["why_not"] = "is not shown to be faster than the exact path"
        elif not known:
            case["why_not"] = "takes less time than every token option tried"
        else:
            best = min(known, key=lambda name: known[name][0][EVEN].mean())
            error, loss = known[best]
            decibel = 10 * np.log10(np.maximum(error, 1e-10) / _error(look, row.name))
            case |= {
                "tokens": best,
                "psnr": list(mean_interval(decibel[ODD])),
                "smooth": list(mean_interval((loss - look.loss(row.name))[ODD])),
            }
        numbers[row.name] = case
        if "why_not" in case:
            said.append(f"{row.name} {case['why_not']}")
            table.append([row.name, f"{ms:.1f}", case["why_not"], "-", "-"])
            continue
        word = verdict(case["psnr"], "is closer to exact than", "is farther from exact than")
        word = word.replace("difference", "difference to")
        said.append(f"{row.name} {word} {best}, {say(case['psnr'], 2, ' dB')}")
        cells = [say(case["psnr"], 2), say(case["smooth"])]
        table.append([row.name, f"{ms:.1f}", best, *cells])
    sentence = (
        f"At equal measured loop time, above 0 features are better: {'; '.join(said)}. The token "
        "options are taken between the exact path and the keep ratios tried."
    )
    return Finding("Fewer tokens or fewer features, at equal cost?", sentence, numbers, table)


Line = list[tuple[float, Array, Array]]  # loop ms, squared error and loss an image, by time


def _error(look: PairedRows, name: str) -> Array:
    return np.asarray(10 ** (-look.values(name, "psnr") / 10))


def _lines(look: PairedRows, scales: Sequence[int]) -> dict[str, Line]:
    """Every selector and restorer at these scales, up to the exact path."""
    nothing = np.zeros(len(look.values(EXACT, "psnr")))
    end = look.found.figures[EXACT].loop_ms
    groups: dict[str, list[Row]] = {}
    for row in look.of_kind("tokens"):
        if row.facts["scales"] == scales and look.found.figures[row.name].loop_ms < end:
            groups.setdefault(combination(row), []).append(row)
    lines = {}
    for name, rows in groups.items():
        points = [
            (look.found.figures[r.name].loop_ms, _error(look, r.name), look.loss(r.name))
            for r in rows
        ]
        lines[name] = sorted([*points, (end, nothing, nothing)], key=lambda point: point[0])
    return lines


def _at(ms: float, line: Line) -> tuple[Array, Array] | None:
    """Error and loss an image of a line at a time; None where it does not reach so far."""
    for (ms0, error0, loss0), (ms1, error1, loss1) in pairwise(line):
        if ms0 <= ms <= ms1:
            share = (ms - ms0) / (ms1 - ms0) if ms1 > ms0 else 0.0
            return (1 - share) * error0 + share * error1, (1 - share) * loss0 + share * loss1
    return None
