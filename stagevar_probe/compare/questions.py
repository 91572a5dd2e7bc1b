"""The questions a comparison answers, each with numbers and one plain sentence.

What is chosen among many rows (a tuning, a selector) is chosen on every second image and judged on
the others, so that picking the luckiest row does not pass for a gain. Differences are paired by
image; "no difference shown" means that the 95 % interval holds zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from ..calibrate.profile import ALPHA
from ..intervals import mean_interval
from ..observe.rank import ratio_name
from ..observe.stages import find_stages
from ..validate.rows import EXACT, Row
from .comparison import Comparison
from .paired import Array, Finding, PairedRows, combination, say, verdict
from .tokens_or_low_rank import about_axes


def findings(found: Comparison) -> list[Finding]:
    """Every question that this comparison has the rows for."""
    look = PairedRows(found)
    given = [
        about_branches(look),
        about_selection(look),
        about_projection(look),
        about_axes(look),
        about_sums(look),
        about_stability(look),
    ]
    return [answer for answer in given if answer is not None]


def as_json(given: Sequence[Finding]) -> list[dict[str, Any]]:
    """JSON-ready, without the tables."""
    return [{k: v for k, v in asdict(answer).items() if k != "table"} for answer in given]


# -- null, cond or delta ---------------------------------------------------------------------------


def about_branches(look: PairedRows) -> Finding | None:
    """Which branch to keep, with and without early guidance and late temperature tuned again."""
    rows = look.of_kind("drop")
    if not rows:
        return None
    metric, start = look.found.quality.name, rows[0].facts["scale"]
    plain, tuned = {}, {}
    even, odd = slice(0, None, 2), slice(1, None, 2)
    for branch in dict.fromkeys(row.facts["branch"] for row in rows):
        own = [row.name for row in rows if row.facts["branch"] == branch]
        plain[branch] = own[0]
        tuned[branch] = min(own, key=lambda name: look.loss(name)[even].mean())
    table = [["branch", "tuning", f"{metric} lost (smooth)", look.kid, "PSNR"]]
    for row in rows:
        f = look.found.figures[row.name]
        cool = ", cooler" if row.facts["cool"] else ""
        kid = f"{f.kid:.2f}" if f.kid is not None else "-"
        line = [row.facts["branch"], f"{row.facts['schedule']}{cool}", say(f.smooth_loss)]
        table.append([*line, kid, f"{f.psnr[0]:.1f}"])
    retuned = [row.name for row in look.of_kind("guidance")]
    baseline = min([EXACT, *retuned], key=lambda name: look.loss(name)[even].mean())
    numbers: dict[str, Any] = {"scale": start, "branches": {}, "best_exact": baseline}
    parts = []
    for branch, name in plain.items():
        best = tuned[branch]
        case = {
            "plain": list(mean_interval(look.loss(name))),
            "tuned": list(mean_interval(look.loss(best)[odd])),
            "tuned_less_lost": list(look.gain(best, name, "smooth", odd)),
            "tuned_against_best_exact": list(look.gain(best, baseline, "smooth", odd)),
        }
        numbers["branches"][branch] = {"tuned_row": best, **case}
        parts.append(f"{branch} {say(case['plain'])} plain and {say(case['tuned'])} tuned")
    sentence = f"Guidance dropped from scale {start} loses in {metric} (smooth): {'; '.join(parts)}"
    for other in [branch for branch in plain if branch != "cond" and "cond" in plain]:
        gain = look.against(plain["cond"], plain[other])
        numbers[f"cond_against_{other}"] = gain
        numbers[f"cond_against_{other}_tuned"] = look.against(tuned["cond"], tuned[other])
        found = verdict(gain["smooth"], f"is better than {other}", f"is worse than {other}")
        found = found.replace("difference", f"difference to {other}")
        sentence += f". Plain, cond {found}: {say(gain['smooth'])}"
    best = min(tuned.values(), key=lambda name: look.loss(name)[even].mean())
    final = look.gain(best, baseline, "smooth", odd)
    sentence += (
        f". The best tuned drop ({best}) against the best exact path ({baseline}): {say(final)}."
    )
    question = "Which branch to keep when guidance is dropped, and does tuning buy it back?"
    return Finding(question, sentence, numbers, table)


# -- which tokens, and what fills the others -------------------------------------------------------


def about_selection(look: PairedRows) -> Finding | None:
    """Which selector and restorer win at equal kept tokens, and at equal measured cost."""
    rows = look.of_kind("tokens")
    cases: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        cases.setdefault((tuple(row.facts["scales"]), row.facts["keep"]), []).append(row)
    cases = {case: own for case, own in cases.items() if len(own) > 1}
    if not cases:
        return None
    even, odd = slice(0, None, 2), slice(1, None, 2)
    head = ["where", "option", "PSNR to exact", look.kid, "lost (smooth)", "loop ms"]
    table = [head]
    numbers: dict[str, Any] = {"cases": []}
    parts = []
    for (scales, keep), own in cases.items():
        where = f"keep {keep:g} at scale {', '.join(map(str, scales))}"
        ranked = sorted(own, key=lambda row: -look.values(row.name, "psnr")[even].mean())
        first, second = ranked[0], ranked[1]
        margin = look.gain(first.name, second.name, "psnr", odd)
        case = {
            "where": where,
            "winner": combination(first),
            "runner_up": combination(second),
            "margin_db": list(margin),
            "selectors_db": _averages(look, own, "select"),
            "restorers_db": _averages(look, own, "restore"),
        }
        if look.found.quality.reference is not None:
            lowest = min(own, key=lambda row: look.found.figures[row.name].kid or 0.0)
            case["lowest_kid"] = combination(lowest)
        numbers["cases"].append(case)
        parts.append(
            f"{where}: {case['winner']}, {say(margin, 2, ' dB')} over {case['runner_up']}"
            + ("" if margin.low > 0 else " (no difference shown)")
        )
        for row in ranked:
            f = look.found.figures[row.name]
            kid = f"{f.kid:.2f}" if f.kid is not None else "-"
            line = [where, combination(row), say(f.psnr, 2), kid, say(f.smooth_loss)]
            table.append([*line, f"{f.loop_ms:.1f}"])
    sentence = f"At equal kept tokens the closest to exact are: {'; '.join(parts)}."
    cost = _at_equal_cost(look, rows)
    if cost is not None:
        numbers["equal_cost"] = cost
        sentence += (
            f" At equal measured cost ({cost['loop_ms']:.1f} ms a batch, between the ratios tried)"
            f" {cost['order'][0][0]} leads with {cost['order'][0][1]:.2f} dB, before "
            f"{cost['order'][1][0]} with {cost['order'][1][1]:.2f} dB."
        )
    return Finding("Which selector and restorer win, and by how much?", sentence, numbers, table)


def _averages(look: PairedRows, rows: Sequence[Row], what: str) -> dict[str, float]:
    names: dict[str, list[float]] = {}
    for row in rows:
        names.setdefault(row.facts[what], []).append(look.found.figures[row.name].psnr[0])
    found = {name: float(np.mean(values)) for name, values in names.items()}
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _at_equal_cost(look: PairedRows, rows: Sequence[Row]) -> dict[str, Any] | None:
    """PSNR of every option at one loop time, between the keep ratios tried at the last scale."""
    last = [row for row in rows if len(row.facts["scales"]) == 1]
    lines: dict[str, list[tuple[float, float]]] = {}
    for row in last:
        f = look.found.figures[row.name]
        lines.setdefault(combination(row), []).append((f.loop_ms, f.psnr[0]))
    if not last or max(map(len, lines.values())) < 2:
        return None
    target = float(np.median([look.found.figures[row.name].loop_ms for row in last]))
    at = {}
    for name, points in lines.items():
        ms, db = zip(*sorted(points), strict=True)
        if ms[0] <= target <= ms[-1]:
            at[name] = float(np.interp(target, ms, db))
    order = sorted(at.items(), key=lambda item: -item[1])
    return {"loop_ms": target, "order": order} if len(order) > 1 else None


# -- random projection, a gather, or nothing -------------------------------------------------------


def about_projection(look: PairedRows) -> Finding | None:
    """The paper's projection with restoration, a gather of the same tokens, and skipping."""
    rows = {
        (
            row.facts["select"],
            row.facts["restore"],
            tuple(row.facts["scales"]),
            row.facts["keep"],
        ): row
        for row in look.of_kind("tokens")
    }
    numbers: dict[str, Any] = {}
    parts = []
    head = ["where", "projection + cache against", "smooth", "PSNR dB", look.kid]
    table = [head]
    for (select, restore, scales, keep), row in rows.items():
        if (select, restore) != ("projection", "cache"):
            continue
        where = f"keep {keep:g} at scale {', '.join(map(str, scales))}"
        case = {}
        gather = rows.get(("norm", "cache", scales, keep))
        others = {"a gather of the same tokens": gather.name} if gather else {}
        others["skipping them"] = f"skip the last {len(scales)}"
        for what, other in others.items():
            if other not in look.entries:
                continue
            gain = look.against(row.name, other)
            case[what] = gain
            said = [
                f"{verdict(gain['psnr'], 'wins', 'loses')} in PSNR {say(gain['psnr'], 2, ' dB')}"
            ]
            if "kid" in gain:
                said.append(f"{verdict(gain['kid'], 'wins', 'loses')} in KID {say(gain['kid'], 2)}")
            said.append(
                f"{verdict(gain['smooth'], 'wins', 'loses')} in score {say(gain['smooth'])}"
            )
            parts.append(f"{where} against {what} it {', '.join(said)}")
            kid = say(gain["kid"], 2) if "kid" in gain else "-"
            table.append([where, what, say(gain["smooth"]), say(gain["psnr"], 2), kid])
        numbers[where] = case
    if not parts:
        return None
    sentence = (
        "Random projection with token restoration (RP + RTR, as published; the gather runs true "
        f"tokens by the same index rule): {'; '.join(parts)}. Above 0: projection is better."
    )
    return Finding("RP + RTR, a true gather, or skipping?", sentence, numbers, table)


# -- do losses add up ------------------------------------------------------------------------------


def about_sums(look: PairedRows) -> Finding | None:
    """The sum of single losses against the loss of the plan that does all of it."""
    table = [["plan", "sum of its parts", "measured", "measured - sum"]]
    numbers: dict[str, Any] = {}
    for entry in look.entries.values():
        parts = entry.facts.get("parts", ())
        if not parts or not set(parts) <= set(look.entries):
            continue
        total = sum(look.loss(part) for part in parts)
        joint = look.loss(entry.name)
        row = {
            "parts": list(parts),
            "sum": list(mean_interval(total)),
            "measured": list(mean_interval(joint)),
            "excess": list(mean_interval(joint - total)),
        }
        numbers[entry.name] = row
        table.append([entry.name, *(say(row[key]) for key in ("sum", "measured", "excess"))])
    if not numbers:
        return None
    excess = np.array([row["excess"][0] for row in numbers.values()])
    over = sum(row["excess"][1] > 0 for row in numbers.values())
    under = sum(row["excess"][2] < 0 for row in numbers.values())
    sentence = (
        f"Of {len(numbers)} joint plans {over} lose significantly more than the sum of their parts "
        f"and {under} significantly less; measured minus sum lies between {excess.min():+.4f} and "
        f"{excess.max():+.4f}, {excess.mean():+.4f} on average."
    )
    return Finding("Do single-scale losses add up?", sentence, numbers, table)


# -- are boundaries and ranks properties of the model ----------------------------------------------


def about_stability(look: PairedRows) -> Finding | None:
    """Boundaries and ranks on two halves of the images, and under another guidance."""
    if not look.found.curves:
        return None
    curves = {}
    for name, measured in look.found.curves.items():
        semantic, structural = np.asarray(measured.semantic), np.asarray(measured.structural)
        if len(semantic) < 4:
            return None
        for half, part in (("even", slice(0, None, 2)), ("odd", slice(1, None, 2))):
            stages = find_stages(semantic[part], structural[part])
            ranks = _ranks(measured.ranks, part)
            curves[f"{name} guidance, {half} images"] = (stages, ranks)
    names = list(curves)
    halves, guidance = (names[0], names[1]), (names[0], names[2])
    numbers: dict[str, Any] = {
        name: {"structure": s.structure, "refinement": s.refinement}
        for name, (s, _) in curves.items()
    }
    table = [["images", "structure from", "refinement from", "mean rank / n"]]
    for name, (s, r) in curves.items():
        spans = (s.structure_interval, s.refinement_interval)
        first, second = (f"{low} to {high}" for low, high in spans)
        table.append(
            [name, f"{s.structure} ({first})", f"{s.refinement} ({second})", f"{r.mean():.3f}"]
        )
    said = []
    for what, (a, b) in (("two halves of the images", halves), ("two guidance scales", guidance)):
        (s, r), (t, u) = curves[a], curves[b]
        moved = (abs(s.structure - t.structure), abs(s.refinement - t.refinement))
        gap = float(np.abs(r - u).mean())
        alike = float(np.corrcoef(r.ravel(), u.ravel())[0, 1]) if r.std() and u.std() else 1.0
        numbers[what] = {
            "structure_moves": moved[0],
            "refinement_moves": moved[1],
            "rank_mean_difference": gap,
            "rank_correlation": alike,
        }
        said.append(
            f"between {what} the boundaries move by {moved[0]} and {moved[1]} scales and the rank "
            f"(as a share of the tokens) by {gap:.3f} on average, correlation {alike:.3f}"
        )
    sentence = f"With {len(semantic)} images: {'; '.join(said)}."
    return Finding("How stable are boundaries and ranks?", sentence, numbers, table)


def _ranks(rows: Sequence[dict[str, Any]], part: slice) -> Array:
    """Mean centred rank of the cond branch over some images, by (scale, group); scale 0 says
    nothing."""
    own = [
        row
        for row in rows
        if (row["branch"], row["centring"]) == ("cond", "pca") and row["scale"] > 0
    ]
    own.sort(key=lambda row: (row["scale"], row["group"]))
    return np.array([np.mean(row["values"][ratio_name(ALPHA)][part]) for row in own])
