"""``inspect``, ``solve``, ``report`` and ``validate``: what calibrate wrote, used.

pytest tests/probe/commands/test_after_calibrate.py
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from conftest import invoke
from invoked import done, refused

from stagevar_probe.measure.measurements import load_measurements
from stagevar_runtime.profile import PlanEntry, load_profile, write_profile


def test_inspect_everything(calibrated: Path) -> None:
    kinds = {
        calibrated: "checkpoint",
        calibrated.with_suffix(".stagevar.yaml"): "stagevar-profile",
        calibrated.with_suffix(".stagevar.measurements.json"): "stagevar-measurements",
        Path("var"): "family",
    }
    for path, kind in kinds.items():
        said = json.loads(done(invoke("inspect", path, "--json")).stdout)
        assert said["kind"] == kind
        assert done(invoke("inspect", path)).stdout.strip()
    profile = load_profile(calibrated.with_suffix(".stagevar.yaml"))
    said = json.loads(done(invoke("inspect", calibrated, "--json")).stdout)
    assert (said["architecture"], said["weights"]) == (
        profile.model.architecture,
        profile.model.weights,
    )


def test_solve_with_other_budgets(calibrated: Path, tmp_path: Path) -> None:
    path = calibrated.with_suffix(".stagevar.measurements.json")
    found = {}
    for budget in (0.0, 0.05, 0.2, 1.0):
        said = json.loads(done(invoke("solve", path, "--max-loss", budget, "--json")).stdout)
        assert said["max_loss"] == budget
        found[budget] = said["plans"]
        for share, name in ((0.5, "quality"), (1.0, "balanced"), (3.0, "fast")):
            assert said["plans"][name]["loss"] <= share * budget + 1e-6
        times = [said["plans"][name]["ms"] for name in ("quality", "balanced", "fast")]
        assert times == sorted(times, reverse=True)
    times = [plans["balanced"]["ms"] for plans in found.values()]
    assert times == sorted(times, reverse=True) and times[0] > times[-1]
    default = json.loads(done(invoke("solve", path, "--json")).stdout)
    assert default["max_loss"] == load_measurements(path).job.max_loss


def test_solved_profile_can_be_used(calibrated: Path, tmp_path: Path) -> None:
    path = calibrated.with_suffix(".stagevar.measurements.json")
    out = tmp_path / "wide.yaml"
    text = done(invoke("solve", path, "--max-loss", 0.5, "-o", out)).stdout
    assert "not validated" in text
    profile = load_profile(out)
    assert profile.target is not None and profile.target.satisfied == "unproven"
    assert all(plan.expected is None for plan in profile.plans.values())
    made = invoke("generate", calibrated, "--profile", out, "-o", tmp_path / "a.png", "--json")
    assert "wide.yaml (argument)" in json.loads(done(made).stdout)["profile"]
    done(invoke("report", path, "--profile", out, "-o", tmp_path / "r.html"))


def test_report_again(calibrated: Path, tmp_path: Path) -> None:
    path = calibrated.with_suffix(".stagevar.measurements.json")
    report = calibrated.with_suffix(".stagevar.report.html")
    assert "data:image" in report.read_text()  # pictures from calibrate
    done(invoke("report", path))
    html = report.read_text()
    assert html.rstrip().endswith("</html>") and "<svg" in html and 'src="http' not in html
    labels = re.findall(r'<svg [^>]*aria-label="([^"]+)"', html)
    assert len(set(labels)) == len(labels) == html.count("<svg")
    shown = ("Guidance sensitivity", "Loss when guidance is dropped", "Frequency change")
    assert all(any(label.startswith(name) for label in labels) for name in shown)
    said = refused(invoke("report", path, "-o", tmp_path / "none" / "r.html"))
    assert "none/r.html" in said


def test_report_of_somebody_elses_profile(calibrated: Path, tmp_path: Path) -> None:
    path = calibrated.with_suffix(".stagevar.yaml")
    profile = load_profile(path)
    other = profile.model.model_copy(update={"weights": "sha256:" + "0" * 64})
    write_profile(profile.model_copy(update={"model": other}), tmp_path / "o.yaml")
    write_profile(profile.model_copy(update={"stages": None}), tmp_path / "s.yaml")
    measured = calibrated.with_suffix(".stagevar.measurements.json")
    assert "weights" in refused(invoke("report", measured, "--profile", tmp_path / "o.yaml"), 4)
    assert "stages" in refused(invoke("report", measured, "--profile", tmp_path / "s.yaml"), 4)


@pytest.mark.parametrize("command", ["solve", "report", "inspect"])
def test_damaged_measurements(tmp_path: Path, command: str) -> None:
    (tmp_path / "m.json").write_text('{"kind": "stagevar-measurements", "version": 1}')
    assert "damaged measurements" in refused(invoke(command, tmp_path / "m.json"))
    assert "none.json" in refused(invoke(command, tmp_path / "none.json"))


def test_validate(calibrated: Path) -> None:
    profile = calibrated.with_suffix(".stagevar.yaml")
    args = ("validate", profile, "-m", calibrated, "--held-out", 4, "--batch", 2, "--json")
    result = done(invoke(*args))
    said = json.loads(result.stdout)
    assert set(said["plans"]) == {"exact", "quality", "balanced", "fast"}
    assert said["plans"]["exact"]["loss"] == [0, 0, 0]
    assert result.return_value == (0 if said["satisfied"] is True else 5)
    one = json.loads(done(invoke(*args, "--plan", "fast")).stdout)
    assert set(one["plans"]) == {"exact", "fast"} and one["plan"] == "fast"
    assert one["satisfied"] == (one["plans"]["fast"]["loss"][0] <= said["max_loss"])
    assert "has no plan 'slow'" in refused(invoke(*args, "--plan", "slow"), 4)


def test_validate_exits_5_below_the_target(calibrated: Path) -> None:
    path = calibrated.with_suffix(".stagevar.yaml")
    profile = load_profile(path)
    steps = PlanEntry.model_validate({"steps": [{"scale": k, "run": "skip"} for k in (2, 3)]})
    write_profile(profile.model_copy(update={"plans": {"balanced": steps}}), path)
    result = done(invoke("validate", path, "-m", calibrated, "--held-out", 4, "--batch", 2))
    assert result.return_value == 5 and "NOT met" in result.stdout


def test_validate_holds_a_loss_against_a_budget_of_its_own_metric(
    calibrated: Path, tmp_path: Path, monkeypatch
) -> None:
    (tmp_path / "flat.py").write_text("def one(images, items, exact): return [1.0] * len(images)")
    monkeypatch.chdir(tmp_path)
    profile = calibrated.with_suffix(".stagevar.yaml")
    result = invoke(
        *("validate", profile, "-m", calibrated, "--held-out", 2, "--batch", 2, "--json"),
        *("--metric", "flat:one"),
    )
    assert json.loads(done(result).stdout)["max_loss"] == 0.01
