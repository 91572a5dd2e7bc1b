"""Null, cond or delta: which branch to keep when guidance is dropped."""

from __future__ import annotations

from typing import Any

from stagevar_runtime.loop.plan import EXACT

from ..intervals import mean_interval
from .changes import Drop
from .paired import ODD, Finding, PairedRows, say, verdict

QUESTION = "Which branch to keep when guidance is dropped, and does tuning buy it back?"


def about_branches(paired: PairedRows) -> Finding | None:
    """Which branch to keep, with and without early guidance and late temperature tuned again."""
    drops = paired.of(Drop)
    if not drops:
        return None
    start = next(iter(drops.values())).scale
    plain: dict[str, str] = {}
    tuned: dict[str, str] = {}
    for branch in dict.fromkeys(drop.branch for drop in drops.values()):
        own = [name for name, drop in drops.items() if drop.branch == branch]
        plain[branch], tuned[branch] = own[0], paired.least_lost(own)
    retuned = [row.name for row in paired.rows.values() if row.kind == "guidance"]
    baseline = paired.least_lost([EXACT, *retuned])
    cases = {branch: _case(paired, plain[branch], tuned[branch], baseline) for branch in plain}
    numbers: dict[str, Any] = {"scale": start, "branches": cases, "best_exact": baseline}
    parts = [
        f"{branch} {say(case['plain'])} plain and {say(case['tuned'])} tuned"
        for branch, case in cases.items()
    ]
    metric = paired.found.quality.name
    sentence = f"Guidance dropped from scale {start} loses in {metric} (smooth): {'; '.join(parts)}"
    for other in [branch for branch in plain if branch != "cond" and "cond" in plain]:
        gain = paired.against(plain["cond"], plain[other])
        numbers[f"cond_against_{other}"] = gain
        numbers[f"cond_against_{other}_tuned"] = paired.against(tuned["cond"], tuned[other])
        found = verdict(gain["smooth"], f"is better than {other}", f"is worse than {other}")
        found = found.replace("difference", f"difference to {other}")
        sentence += f". Plain, cond {found}: {say(gain['smooth'])}"
    best = paired.least_lost(list(tuned.values()))
    final = paired.gain(best, baseline, "smooth", ODD)
    sentence += (
        f". The best tuned drop ({best}) against the best exact path ({baseline}): {say(final)}."
    )
    return Finding(QUESTION, sentence, numbers, _table(paired, drops))


def _case(paired: PairedRows, plain: str, tuned: str, baseline: str) -> dict[str, Any]:
    return {
        "tuned_row": tuned,
        "plain": list(mean_interval(paired.loss(plain))),
        "tuned": list(mean_interval(paired.loss(tuned)[ODD])),
        "tuned_less_lost": list(paired.gain(tuned, plain, "smooth", ODD)),
        "tuned_against_best_exact": list(paired.gain(tuned, baseline, "smooth", ODD)),
    }


def _table(paired: PairedRows, drops: dict[str, Drop]) -> list[list[str]]:
    metric = paired.found.quality.name
    table = [["branch", "tuning", f"{metric} lost (smooth)", paired.kid, "PSNR"]]
    for name, drop in drops.items():
        f = paired.figures(name)
        tuning = f"{drop.schedule}{', cooler' if drop.cool else ''}"
        cells = [drop.branch, tuning, say(f.smooth_loss), paired.kid_cell(name)]
        table.append([*cells, f"{f.psnr.mean:.1f}"])
    return table
