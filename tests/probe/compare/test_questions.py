"""Made-up rows whose answers are known.

pytest tests/probe/compare/test_questions.py
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import some_figures

from stagevar_probe.compare.changes import Drop, LowRank, Skip, Tokens
from stagevar_probe.compare.comparison import Comparison
from stagevar_probe.compare.paired import say, verdict
from stagevar_probe.compare.questions import as_json, findings
from stagevar_probe.intervals import Interval, mean_interval
from stagevar_probe.measure.per_image import PerImage
from stagevar_probe.metrics.quality import Likeness
from stagevar_probe.observe.rank import RankKey, ratio_name
from stagevar_probe.validate.rows import Row, Rows
from stagevar_probe.validate.run import Batch, Observed
from stagevar_runtime.loop.plan import EXACT

IMAGES = 40
RNG = np.random.default_rng(0)


def drop(branch: str, schedule: str = "published", cool: bool = False) -> Row:
    return Row(f"{branch}, {schedule}, {cool}", "drop", change=Drop(branch, 4, schedule, cool))


def tokens(select: str, restore: str, keep: float, *scales: int) -> Row:
    change = Tokens(select, restore, keep, scales)
    return Row(f"{select} + {restore} {keep} {scales}", "tokens", change=change)


def features(rank: int, *scales: int) -> Row:
    return Row(f"features {rank} at {scales}", "features", change=LowRank("pca", rank, scales))


def skip(late: int) -> Row:
    return Row(f"without the last {late}", "skip", change=Skip(late))


def comparison(rows: dict[Row, tuple[float, float, float]], reference=None) -> Comparison:
    """Entries with their (smooth loss, PSNR, loop ms), noisy but coupled."""
    entries = [Row(EXACT, EXACT), *rows]
    noise = RNG.normal(0, 0.3, IMAGES)
    seen: Batch = {}
    figures = {}
    for i, entry in enumerate(entries):
        loss, db, ms = rows.get(entry, (0.0, 99.0, 10.0))
        own = RNG.normal(0, 0.003, IMAGES) if i else np.zeros(IMAGES)
        psnr = db + noise + 10 * own
        smooth = 0.9 + noise - loss + own
        seen[entry.name] = Observed(
            score=smooth,
            smooth=smooth,
            features=RNG.normal(loss * 4, 1, (IMAGES, 6)),
            psnr=psnr,
            ssim=psnr / 100,
            transformer=ms,
            loop=ms,
            decode=1.0,
            scales=[ms],
        )
        figures[entry.name] = some_figures(
            smooth_loss=mean_interval(loss - own),
            psnr=mean_interval(psnr),
            loop_ms=ms,
            speedup_loop=Interval(10 / ms, 9.8 / ms, 10.2 / ms),
            kid=None if reference is None else 10 * loss,
        )
    quality = Likeness()
    quality.reference = reference
    table = Rows(tuple(entries), {}, {}, {})
    return Comparison(table, figures, [seen], quality, {})


Figures = dict[Row, tuple[float, float, float]]


def asked(found: Comparison, word: str):
    given = [answer for answer in findings(found) if word in answer.question]
    return given[0] if given else None


@pytest.mark.filterwarnings("error")
def test_branches_are_told_apart_and_tuning_is_judged() -> None:
    rows: Rows = {
        drop("cond"): (0.05, 25, 5), drop("cond", "constant 3"): (0.03, 20, 5),
        drop("cond", "constant 3", True): (0.01, 20, 5), drop("cond", cool=True): (0.04, 24, 5),
        drop("null"): (0.12, 22, 5), drop("null", cool=True): (0.11, 22, 5),
        drop("delta"): (0.02, 27, 5),
        Row("exact, constant 3", "guidance"): (-0.04, 15, 10),
    }  # fmt: skip
    answer = asked(comparison(rows, torch.randn(50, 6)), "branch")
    assert answer is not None
    gain = answer.numbers["cond_against_null"]
    assert gain["smooth"][0] == pytest.approx(0.07, abs=0.005) and gain["smooth"][1] > 0
    assert gain["kid"][0] > 0
    assert "cond is better than null" in answer.sentence
    assert "cond is worse than delta" in answer.sentence
    cond = answer.numbers["branches"]["cond"]
    assert cond["tuned_row"] == "cond, constant 3, True" and cond["tuned_less_lost"][1] > 0
    # the tuned drop gains on exact's default guidance but not on exact at the same guidance
    assert answer.numbers["best_exact"] == "exact, constant 3"
    assert cond["tuned_against_best_exact"][2] < 0
    assert len(answer.table) == 1 + 7


def test_winner_at_equal_tokens_and_at_equal_cost() -> None:
    rows: Rows = {
        tokens("deviation", "cache", 0.5, 6): (0.0, 25.0, 8.0),
        tokens("deviation", "cache", 0.25, 6): (0.0, 21.0, 6.0),
        tokens("leverage", "lift", 0.5, 6): (0.0, 26.0, 12.0),  # best of its tokens, but slow
        tokens("leverage", "lift", 0.25, 6): (0.0, 20.0, 7.0),
    }
    answer = asked(comparison(rows), "selector")
    assert answer is not None
    half, quarter = answer.numbers["cases"]
    assert (half["winner"], half["runner_up"]) == ("leverage + lift", "deviation + cache")
    assert half["margin_db"][0] == pytest.approx(1.0, abs=0.1) and half["margin_db"][1] > 0
    assert quarter["winner"] == "deviation + cache"
    assert list(half["selectors_db"]) == ["leverage", "deviation"]
    cost = answer.numbers["equal_cost"]
    assert cost["loop_ms"] == 7.5
    assert cost["order"][0][0] == "deviation + cache"
    assert cost["order"][0][1] == pytest.approx(24.0, abs=0.2)
    assert cost["order"][1][1] == pytest.approx(20.6, abs=0.2)


def test_no_winner_where_nothing_differs() -> None:
    rows: Rows = {
        tokens("deviation", "cache", 0.5, 6): (0.0, 25.0, 8.0),
        tokens("norm", "cache", 0.5, 6): (0.0, 25.0, 8.0),
    }
    answer = asked(comparison(rows), "selector")
    assert answer is not None and "no difference shown" in answer.sentence
    assert "equal_cost" not in answer.numbers


@pytest.mark.parametrize(("db", "word"), [(19.0, "loses"), (25.0, "wins")])
def test_projection_is_said_to_lose_where_it_loses(db: float, word: str) -> None:
    rows: Rows = {
        tokens("projection", "cache", 0.5, 6): (0.02, db, 8),
        tokens("norm", "cache", 0.5, 6): (0.02, 23.0, 8),
        skip(1): (0.02, 22.0, 6),
    }
    answer = asked(comparison(rows), "RP")
    assert answer is not None
    case = answer.numbers["keep 0.5 at scale 6"]
    assert case["a gather of the same tokens"]["psnr"][0] == pytest.approx(db - 23, abs=0.05)
    assert case["skipping them"]["psnr"][0] == pytest.approx(db - 22, abs=0.05)
    assert answer.sentence.count(f"{word} in PSNR") == 2
    assert "shows no difference in score" in answer.sentence


@pytest.mark.parametrize(("joint", "more"), [(0.05, 0), (0.12, 1)])
def test_sums_of_parts(joint: float, more: int) -> None:
    one, other = Drop("cond", 4, "published", False), Skip(1)
    parts = {Row("a", "drop", change=one): (0.02, 30.0, 9.0),
             Row("b", "joint", change=other): (0.03, 30.0, 9.0)}  # fmt: skip
    whole = Row("a with b", "joint", parts=(one, other))
    lost = Row("a with c", "joint", parts=(one, Skip(2)))
    answer = asked(
        comparison({**parts, whole: (joint, 28.0, 8.0), lost: (1.0, 9.0, 8.0)}), "add up"
    )
    assert answer is not None
    row = answer.numbers["a with b"]
    assert row["sum"][0] == pytest.approx(0.05, abs=0.003)
    assert row["excess"][0] == pytest.approx(joint - 0.05, abs=0.004)
    assert answer.sentence.startswith(f"Of 1 joint plans {more} lose significantly more")
    assert "a with c" not in answer.numbers  # one of its parts has no row


def curves(settle: int, rank: float):
    """Curves that settle after a scale, and ranks that alternate with the images."""
    one = [0.1] * settle + [1.0] * (6 - settle)
    ranks = {
        RankKey(k, g, "cond", "pca"): {
            ratio_name(0.96): [rank / k + 0.01 * (i % 2) for i in range(8)]
        }
        for k in range(1, 6)
        for g in range(2)
    }
    return PerImage(semantic=[one] * 8, structural=[one] * 8, ranks=ranks)


def test_stability_between_halves_and_guidance() -> None:
    found = comparison({})
    found.curves = {"asked": curves(2, 0.8), "stronger": curves(3, 0.6)}
    answer = asked(found, "stable")
    assert answer is not None
    halves = answer.numbers["two halves of the images"]
    assert halves["structure_moves"] == halves["refinement_moves"] == 0
    assert halves["rank_mean_difference"] == pytest.approx(0.01)
    moved = answer.numbers["two guidance scales"]
    assert moved["structure_moves"] == moved["refinement_moves"] == 1
    assert moved["rank_mean_difference"] == pytest.approx(
        0.2 * np.mean([1, 1 / 2, 1 / 3, 1 / 4, 1 / 5])
    )
    assert moved["rank_correlation"] == pytest.approx(1.0)


def decibel(error: float) -> float:
    return -10 * float(np.log10(error))


def test_axes_meet_at_equal_time() -> None:
    """Exact takes 10 ms. Half the tokens: 8 ms at error .01, so .005 at 9 ms and .015 at 7 ms."""
    rows: Rows = {
        tokens("deviation", "cache", 0.5, 6): (0.02, decibel(0.01), 8.0),
        tokens("deviation", "cache", 0.25, 6): (0.04, decibel(0.02), 6.0),
        tokens("norm", "none", 0.5, 6): (0.2, decibel(0.1), 8.0),
        tokens("norm", "none", 0.5, 5, 6): (0.0, decibel(1e-6), 9.0),  # at other scales
        features(512, 6): (0.02, decibel(0.01), 9.0),  # 3 dB more error than tokens, .01 lost
        features(256, 6): (0.01, decibel(0.0075), 7.0),  # half the error of tokens, .02 gained
        features(800, 6): (0.0, decibel(0.001), 9.9),  # within the noise of times
        features(8, 6): (0.5, decibel(0.5), 5.0),
    }
    answer = asked(comparison(rows), "fewer features")
    assert answer is not None
    cases = answer.numbers
    worse, better = cases["features 512 at (6,)"], cases["features 256 at (6,)"]
    assert worse["tokens"] == better["tokens"] == "deviation + cache"
    assert worse["psnr"][0] == pytest.approx(-3.0, abs=0.3) and worse["psnr"][2] < 0
    assert worse["smooth"][0] == pytest.approx(-0.01, abs=0.003)
    assert better["psnr"][0] == pytest.approx(3.0, abs=0.3) and better["psnr"][1] > 0
    assert better["smooth"][0] == pytest.approx(0.02, abs=0.003)
    said = answer.sentence
    assert "features 512 at (6,) is farther from exact than deviation + cache, -" in said
    assert "features 256 at (6,) is closer to exact than deviation + cache, +" in said
    assert "features 800 at (6,) is not shown to be faster than the exact path" in said
    assert "features 8 at (6,) takes less time than every token option tried" in said
    assert len(answer.table) == 1 + 4
    only = {row: values for row, values in rows.items() if row.kind == "tokens"}
    assert asked(comparison(only), "fewer features") is None


def test_questions_without_rows_are_not_asked() -> None:
    assert findings(comparison({})) == []


def test_json_and_words() -> None:
    rows: Rows = {drop("cond"): (0.05, 25, 5)}
    given = as_json(findings(comparison(rows)))
    assert {"question", "sentence", "numbers"} == set(given[0])
    assert verdict((1, 0.5, 2)) == "is better" and verdict((-1, -2, -0.5)) == "is worse"
    assert verdict((0, -1, 1)) == "shows no difference"
    assert say((0.5, 0.25, 0.75), 2, " dB") == "+0.50 dB [+0.25, +0.75]"
