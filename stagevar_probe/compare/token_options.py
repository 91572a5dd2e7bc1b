"""Which tokens, and what fills the others: selectors and restorers beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..intervals import Interval
from .changes import Skip, Tokens
from .paired import EVEN, ODD, Finding, PairedRows, say, verdict


def about_selection(paired: PairedRows) -> Finding | None:
    """Which selector and restorer win at equal kept tokens, and at equal measured cost."""
    rows = paired.of(Tokens)
    groups: dict[tuple[Any, ...], list[str]] = {}
    for name, change in rows.items():
        groups.setdefault((change.scales, change.keep), []).append(name)
    groups = {key: own for key, own in groups.items() if len(own) > 1}
    if not groups:
        return None
    table = [["where", "option", "PSNR to exact", paired.kid, "lost (smooth)", "loop ms"]]
    cases, parts = [], []
    for own in groups.values():
        ranked = sorted(own, key=lambda name: -paired.values(name, "psnr")[EVEN].mean())
        margin = paired.gain(ranked[0], ranked[1], "psnr", ODD)
        case = _case(paired, ranked, own, margin)
        cases.append(case)
        parts.append(
            f"{case['where']}: {case['winner']}, {say(margin, 2, ' dB')} over {case['runner_up']}"
            + ("" if margin.low > 0 else " (no difference shown)")
        )
        table += [_cells(paired, name, rows[name]) for name in ranked]
    sentence = f"At equal kept tokens the closest to exact are: {'; '.join(parts)}."
    numbers: dict[str, Any] = {"cases": cases}
    cost = _at_equal_cost(paired, rows)
    if cost is not None:
        numbers["equal_cost"] = cost
        (first, best), (second, next_best), *_ = cost["order"]
        sentence += (
            f" At equal measured cost ({cost['loop_ms']:.1f} ms per batch, between the ratios "
            f"tried) {first} leads with {best:.2f} dB, before {second} with {next_best:.2f} dB."
        )
    return Finding("Which selector and restorer win, and by how much?", sentence, numbers, table)


def _case(
    paired: PairedRows, ranked: Sequence[str], own: Sequence[str], margin: Interval
) -> dict[str, Any]:
    """Of rows that keep as many tokens at the same scales."""
    rows = paired.of(Tokens)
    case = {
        "where": rows[own[0]].where,
        "winner": rows[ranked[0]].option,
        "runner_up": rows[ranked[1]].option,
        "margin_db": list(margin),
        "selectors_db": _averages(paired, {name: rows[name].select for name in own}),
        "restorers_db": _averages(paired, {name: rows[name].restore for name in own}),
    }
    if paired.found.quality.reference is not None:
        lowest = min(own, key=lambda name: paired.figures(name).kid or 0.0)
        case["lowest_kid"] = rows[lowest].option
    return case


def _cells(paired: PairedRows, name: str, change: Tokens) -> list[str]:
    f = paired.figures(name)
    cells = [change.where, change.option, say(f.psnr, 2), paired.kid_cell(name)]
    return [*cells, say(f.smooth_loss), f"{f.loop_ms:.1f}"]


def _averages(paired: PairedRows, groups: dict[str, str]) -> dict[str, float]:
    """Mean PSNR of rows by what they have in common, best first."""
    values: dict[str, list[float]] = {}
    for name, group in groups.items():
        values.setdefault(group, []).append(paired.figures(name).psnr.mean)
    found = {group: float(np.mean(own)) for group, own in values.items()}
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _at_equal_cost(paired: PairedRows, rows: dict[str, Tokens]) -> dict[str, Any] | None:
    """PSNR of every option at one loop time, between the keep ratios tried at the last scale."""
    last = {name: change for name, change in rows.items() if len(change.scales) == 1}
    lines: dict[str, list[tuple[float, float]]] = {}
    for name, change in last.items():
        f = paired.figures(name)
        lines.setdefault(change.option, []).append((f.loop_ms, f.psnr.mean))
    if not last or max(map(len, lines.values())) < 2:
        return None
    target = float(np.median([paired.figures(name).loop_ms for name in last]))
    at = {}
    for option, points in lines.items():
        ms, db = zip(*sorted(points), strict=True)
        if ms[0] <= target <= ms[-1]:
            at[option] = float(np.interp(target, ms, db))
    order = sorted(at.items(), key=lambda item: -item[1])
    return {"loop_ms": target, "order": order} if len(order) > 1 else None


def about_projection(paired: PairedRows) -> Finding | None:
    """The paper's projection with restoration, a gather of the same tokens, and skipping."""
    numbers: dict[str, Any] = {}
    parts = []
    table = [["where", "projection + cache against", "smooth", "PSNR dB", paired.kid]]
    for name, change in paired.of(Tokens).items():
        if (change.select, change.restore) != ("projection", "cache"):
            continue
        case = {}
        others = {
            "a gather of the same tokens": Tokens("norm", "cache", change.keep, change.scales),
            "skipping them": Skip(len(change.scales)),
        }
        for what, other in others.items():
            row = paired.changed(other)
            if row is None:
                continue
            case[what] = gain = paired.against(name, row.name)
            parts.append(f"{change.where} against {what} it {_wins_and_losses(gain)}")
            kid = say(gain["kid"], 2) if "kid" in gain else "-"
            cells = [change.where, what, say(gain["smooth"]), say(gain["psnr"], 2), kid]
            table.append(cells)
        numbers[change.where] = case
    if not parts:
        return None
    sentence = (
        "Random projection with token restoration (RP + RTR, as published; the gather runs true "
        f"tokens by the same index rule): {'; '.join(parts)}. Above 0: projection is better."
    )
    return Finding("RP + RTR, a true gather, or skipping?", sentence, numbers, table)


def _wins_and_losses(gain: dict[str, list[float]]) -> str:
    """In PSNR, KID and score, as one half of a sentence."""
    shown = [("psnr", "PSNR", 2, " dB"), ("kid", "KID", 2, ""), ("smooth", "score", 4, "")]
    return ", ".join(
        f"{verdict(gain[key], 'wins', 'loses')} in {name} {say(gain[key], digits, unit)}"
        for key, name, digits, unit in shown
        if key in gain
    )
