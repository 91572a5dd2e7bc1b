"""The token axis against the feature axis: what is lost at equal measured time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from stagevar_runtime.loop.plan import EXACT

from ..intervals import mean_interval
from .changes import LowRank, Tokens
from .paired import EVEN, ODD, Array, Finding, PairedRows, say, verdict

QUESTION = "Fewer tokens or fewer features, at equal cost?"
Line = list[tuple[float, Array, Array]]  # loop ms, squared error and loss per image, by time


def about_axes(paired: PairedRows) -> Finding | None:
    """Fewer features on all tokens, or fewer tokens with all features.

    A way to reduce tokens is a line from the exact path through its keep ratios, in measured loop
    time against squared error (of which PSNR is the logarithm) and loss. Every feature row is
    compared with the best line (on every second image) at its own time, on the other images.
    """
    rows = paired.of(LowRank)
    if not rows or not paired.of(Tokens):
        return None
    table = [["features", "loop ms", "tokens at equal time", "PSNR gained dB", "score (smooth)"]]
    numbers = {name: _case(paired, name, change) for name, change in rows.items()}
    parts = []
    for name, case in numbers.items():
        ms = f"{case['loop_ms']:.1f}"
        if "why_not" in case:
            parts.append(f"{name} {case['why_not']}")
            table.append([name, ms, case["why_not"], "-", "-"])
            continue
        word = verdict(case["psnr"], "is closer to exact than", "is farther from exact than")
        word = word.replace("difference", "difference to")
        parts.append(f"{name} {word} {case['tokens']}, {say(case['psnr'], 2, ' dB')}")
        table.append([name, ms, case["tokens"], say(case["psnr"], 2), say(case["smooth"])])
    sentence = (
        f"At equal measured loop time, above 0 features are better: {'; '.join(parts)}. The token "
        "options are taken between the exact path and the keep ratios tried."
    )
    return Finding(QUESTION, sentence, numbers, table)


def _case(paired: PairedRows, name: str, change: LowRank) -> dict[str, Any]:
    """A row of fewer features against the best way to reduce tokens in the same time."""
    figures = paired.figures(name)
    case: dict[str, Any] = {"loop_ms": figures.loop_ms}
    lines = _lines(paired, change.scales)
    known = {way: at for way, line in lines.items() if (at := _at(figures.loop_ms, line))}
    if figures.speedup_loop.low <= 1:
        return case | {"why_not": "is not shown to be faster than the exact path"}
    if not known:
        return case | {"why_not": "takes less time than every token option tried"}
    best = min(known, key=lambda way: known[way][0][EVEN].mean())
    error, loss = known[best]
    decibel = 10 * np.log10(np.maximum(error, 1e-10) / _error(paired, name))
    return case | {
        "tokens": best,
        "psnr": list(mean_interval(decibel[ODD])),
        "smooth": list(mean_interval((loss - paired.loss(name))[ODD])),
    }


def _error(paired: PairedRows, name: str) -> Array:
    return np.asarray(10 ** (-paired.values(name, "psnr") / 10))


def _lines(paired: PairedRows, scales: Sequence[int]) -> dict[str, Line]:
    """Every selector and restorer at these scales, up to the exact path."""
    nothing = np.zeros(len(paired.values(EXACT, "psnr")))
    end = paired.figures(EXACT).loop_ms
    lines: dict[str, Line] = {}
    for name, change in paired.of(Tokens).items():
        ms = paired.figures(name).loop_ms
        if change.scales == scales and ms < end:
            point = (ms, _error(paired, name), paired.loss(name))
            lines.setdefault(change.option, []).append(point)
    return {
        way: sorted([*line, (end, nothing, nothing)], key=lambda point: point[0])
        for way, line in lines.items()
    }


def _at(ms: float, line: Line) -> tuple[Array, Array] | None:
    """Error and loss per image of a line at a time; None where it does not reach so far."""
    for (ms0, error0, loss0), (ms1, error1, loss1) in pairwise(line):
        if ms0 <= ms <= ms1:
            share = (ms - ms0) / (ms1 - ms0) if ms1 > ms0 else 0.0
            return (1 - share) * error0 + share * error1, (1 - share) * loss0 + share * loss1
    return None
