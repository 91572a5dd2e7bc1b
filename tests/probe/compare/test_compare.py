"""Every method side by side, on the tiny model.

pytest tests/probe/compare/test_compare.py
"""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import pytest
import torch
from conftest import invoke, some_figures

from stagevar_probe.compare.comparison import Comparison, ComparisonRun, disturbance, pareto
from stagevar_probe.compare.grid import Grid, assemble
from stagevar_probe.compare.questions import findings
from stagevar_probe.compare.table import as_csv, as_rows, as_table
from stagevar_probe.datasets.inputs import balanced_labels
from stagevar_probe.intervals import Interval
from stagevar_probe.measure.description import RunDescription
from stagevar_probe.measure.flops import plan_flops
from stagevar_probe.metrics.quality import Likeness
from stagevar_probe.observe.pca import measure_bases
from stagevar_probe.report.comparison import comparison_data
from stagevar_probe.report.html import render
from stagevar_probe.validate.run import validate
from stagevar_runtime.families.var import VAR
from stagevar_runtime.loop.plan import EXACT, compile_plan
from stagevar_runtime.model.sampling import Sampling
from stagevar_runtime.options.restorers import RESTORERS
from stagevar_runtime.options.selectors import SELECTORS
from stagevar_runtime.profile.presets import PRESETS

SAMPLING = Sampling(guidance=3.0, top_k=20, top_p=0.95)
GRID = Grid(
    keep=(0.5, 0.25), selectors=("projection", "norm", "deviation"), restorers=("cache", "none")
)
TIMES = re.compile(r"_ms$|ci95$|^speedup")


class Features(Likeness):
    """Likeness with real images to compare with, so that KID is measured."""

    def __init__(self) -> None:
        self.reference = torch.rand(40, 768, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def found(tiny_var: VAR) -> Comparison:
    inputs = balanced_labels(tiny_var, 6, 0, held_out=True)
    return ComparisonRun(tiny_var, inputs, SAMPLING, Features(), 3, grid=GRID, quiet=True).run()


def test_first_row_is_exact_and_has_the_numbers_of_validate(found, tiny_var: VAR) -> None:
    inputs = balanced_labels(tiny_var, 6, 0, held_out=True)
    plan = compile_plan((), tiny_var.info, tiny_var.scales(), SAMPLING)
    alone = validate(tiny_var, inputs, {EXACT: plan}, SAMPLING, Features(), 3)[EXACT].dump()
    first = as_rows(found)[0]
    assert first["name"] == EXACT and first["steps"] == []
    same = [key for key in alone if not TIMES.search(key) or key == "kid_ci95"]
    assert {"score", "kid", "kid_ci95", "psnr", "flops", "images"} <= set(same)
    for key in same:
        assert first[key] == alone[key]  # bit for bit


def test_every_preset_pair_and_guidance_has_a_row(found) -> None:
    kinds: dict[str, list[str]] = {}
    for entry in found.rows:
        kinds.setdefault(entry.kind, []).append(entry.name)
    assert set(kinds["preset"]) | set(found.rows.left_out) >= set(PRESETS)
    assert len(kinds["tokens"]) == 3 * len(GRID.pairs())  # two ratios at the last, one at both
    assert kinds["features"] == [
        f"features {rank} {basis} at {at}"
        for rank in (32, 16)
        for basis in ("pca", "random")
        for at in ("3", "2, 3")
    ]
    assert "features 16 pca at 3 with deviation + cache, keep 0.5 at 3" in kinds["joint"]
    strengths = {e.guidance for e in found.rows if e.guidance is not None}
    assert strengths == {1.5, 4.5, 6.0}
    assert len(found.figures) == len(found.rows)
    assert len({entry.name for entry in found.rows}) == len(found.figures)


def test_full_grid_has_every_selector_and_restorer() -> None:
    pairs = Grid().pairs()
    assert {select for select, _ in pairs} == set(SELECTORS)
    assert {restore for _, restore in pairs} == set(RESTORERS)
    assert ("projection", "cache") in pairs and ("projection", "lift") not in pairs


def test_one_plan_under_two_names_is_run_once(found) -> None:
    same = found.rows.same
    assert same["skip the last 2"] == "skip-2" and "skip the last 2" not in found.rows.plans
    assert found.figures["skip the last 2"] == found.figures["skip-2"]


def test_every_figure_has_an_interval_around_it(found) -> None:
    for row in as_rows(found):
        for key in ("score", "loss", "psnr", "ssim", "speedup_loop", "speedup_total"):
            value, low, high = row[key]
            assert low - 1e-9 <= value <= high + 1e-9, (row["name"], key)
        for value, interval in (("loop_ms", "loop_ci95"), ("total_ms", "total_ci95")):
            low, high = row[interval]
            assert low <= row[value] <= high
        assert row["kid_ci95"][0] < row["kid"] < row["kid_ci95"][1]
        assert row["kid_loss"][1] <= row["kid_loss"][0] <= row["kid_loss"][2]


def test_rows_differ_from_exact_and_cost_less(found) -> None:
    exact = found.figures[EXACT]
    assert exact.loss == (0.0, 0.0, 0.0) and exact.speedup_total == (1.0, 1.0, 1.0)
    for entry in found.rows.rows[1:]:
        f = found.figures[entry.name]
        assert f.psnr[0] < (90 if entry.name == "int8" else 60), entry.name
        assert f.flops == exact.flops if entry.kind == "guidance" else True
        if entry.kind in ("skip", "tokens", "features", "joint", "drop"):
            assert f.flops < exact.flops, entry.name


def test_measured_directions_are_closer_than_random_ones(found) -> None:
    at = {e.name: found.figures[e.name].psnr[0] for e in found.rows}
    assert at["features 32 pca at 3"] > at["features 32 random at 3"]
    (axes,) = [a for a in findings(found) if "fewer features" in a.question]
    assert len(axes.numbers) == 8 and set(axes.numbers) < set(at)


def test_a_profile_brings_its_own_directions(tiny_var: VAR) -> None:
    inputs = balanced_labels(tiny_var, 3, 0, held_out=True)
    grid = Grid(keep=(0.5,), selectors=("deviation",), restorers=("cache",), ranks=(0.25,))
    shipped = measure_bases(tiny_var, inputs, SAMPLING, {3: 16}, 3)
    tiny_var.low_rank.use(shipped)
    ComparisonRun(tiny_var, inputs, SAMPLING, Likeness(), 3, grid=grid, quiet=True)._measure_bases()
    first, measured = tiny_var.low_rank.bases
    assert first is shipped and {place[0] for place in measured.vectors} == {2, 3}
    tiny_var.low_rank.use()


def test_stronger_guidance_is_stronger(found, tiny_var: VAR) -> None:
    plans = found.rows.plans
    weight = {
        name: plans[name][2].weights[0] for name in (EXACT, "exact, guidance 1.5", "cfg-off")
        if plans[name][2].weights
    }  # fmt: skip
    assert weight[EXACT] > weight["exact, guidance 1.5"] > 1


def test_pareto_front() -> None:
    def at(ms, loss):
        return some_figures(total_ms=ms, loss=Interval(loss, loss, loss))

    figures = {"slow": at(9, 0.0), "beaten": at(8, 0.3), "mid": at(7, 0.1), "fast": at(2, 0.5)}
    assert pareto(figures) == {"slow", "mid", "fast"}


def test_times_of_equal_work_say_how_far_times_can_be_trusted(found) -> None:
    ratio = disturbance(found)
    times = [f.loop_ms for e in found.rows if (f := found.figures[e.name])
             and e.kind in ("exact", "guidance")]  # fmt: skip
    assert len(times) > 3 and ratio == max(times) / min(times) >= 1


def test_work_is_counted_before_it_is_done(tiny_var: VAR) -> None:
    inputs = balanced_labels(tiny_var, 6, 0, held_out=True)
    run = ComparisonRun(tiny_var, inputs, SAMPLING, Likeness(), 3, quiet=True)
    work = run.work()
    plans = run.rows.plans
    whole = [plan_flops(tiny_var.info, plan) for plan in plans.values()]
    assert work.rows == len(plans) and work.images == 6 and work.seconds > 0
    assert work.generations == pytest.approx(sum(whole) / whole[0])


def test_csv_and_table_hold_every_row(found) -> None:
    table = list(csv.DictReader(io.StringIO(as_csv(found))))
    assert [line["name"] for line in table] == [entry.name for entry in found.rows]
    assert float(table[0]["loss"]) == 0 and float(table[3]["psnr_low"]) <= float(table[3]["psnr"])
    lines = as_table(found).splitlines()
    assert len(lines) == 1 + len(found.rows) and lines[1].lstrip("* ").startswith(EXACT)


def test_report_is_one_file(found) -> None:
    job = RunDescription(
        *("a <b>", "var", "4x4", "sha256:b", "labels, sha256:c", 0, SAMPLING, "likeness", "pixels"),
        *("SSIM", None, "float32", {"device": "cpu"}, "0.1.0"),
    )
    page = render(comparison_data(found, findings(found), job, "stagevar-probe compare x"))
    assert "a &lt;b&gt;" in page and "<svg" in page and page.count("data:image/png") > 5
    assert "Target" not in page and "RP + RTR" in page and "Every row" in page
    assert not re.search(r'(?:src|href)="(?!data:|#)', page)


def test_what_cannot_run_is_left_out_with_the_reason(tiny_var: VAR) -> None:
    from dataclasses import replace

    dependent = replace(tiny_var.info, rows_independent=False)
    made = assemble(dependent, tiny_var.scales(), SAMPLING, None, None, None)
    left = {name: reason for name, reason in made.left_out.items() if name.startswith("null")}
    assert left and all("null" in reason for reason in left.values())
    unguided = assemble(tiny_var.info, tiny_var.scales(), Sampling(guidance=0.0), None, None, None)
    assert not [e for e in unguided if e.kind in ("drop", "guidance")]


def test_command(calibrated: Path) -> None:
    result = invoke("compare", calibrated, "--count", 4, "--batch", 2, "--no-grid", "--json", "-q")
    assert result.exception is None, result
    said = json.loads(result.stdout)
    assert said["rows"][0]["name"] == EXACT
    assert {"profile: balanced", "profile: fast"} <= {row["name"] for row in said["rows"]}
    assert [a["question"] for a in said["answers"]]
    assert Path(said["report"]).read_text().startswith("<!doctype html>")
    assert Path(said["csv"]).read_text().count("\n") == 1 + len(said["rows"])


def test_dry_run_writes_nothing(calibrated: Path) -> None:
    before = sorted(calibrated.parent.iterdir())
    result = invoke("compare", calibrated, "--count", 4, "--dry-run", "--json")
    assert result.exception is None, result
    assert json.loads(result.stdout)["work"]["generations"] > 10
    assert sorted(calibrated.parent.iterdir()) == before
