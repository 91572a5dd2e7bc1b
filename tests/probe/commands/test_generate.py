"""``generate``: profiles, plans, pictures; what it refuses.

pytest tests/probe/commands/test_generate.py
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import invoke, write_tiny
from invoked import done, picture, refused

from stagevar_runtime.profile import PlanEntry, load_profile, write_profile


def test_generate_uses_the_profile_beside_it_and_says_so(calibrated: Path, tmp_path: Path) -> None:
    result = done(invoke("generate", calibrated, "-o", tmp_path / "a.png"))
    assert "plan balanced" in result.stdout and f"5 images in {tmp_path / 'a.png'}" in result.stdout
    assert result.stderr.count("beside the checkpoint") == 1
    assert picture(tmp_path / "a.png").width == 5 * 66


def test_generate_without_a_profile_says_so_once_and_runs_exact(
    tiny_files: Path, tmp_path: Path
) -> None:
    result = done(invoke("generate", tiny_files, "-o", tmp_path / "a.png"))
    assert result.stderr.count("no profile") == 1
    assert f"stagevar-probe calibrate {tiny_files}" in result.stderr
    assert "plan exact" in result.stdout
    silent = done(invoke("generate", tiny_files, "--plan", "exact", "-o", tmp_path / "b.png"))
    assert silent.stderr == ""
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_profile_of_another_model_exits_4_with_field_values_and_repair(
    calibrated: Path, tmp_path: Path
) -> None:
    other = write_tiny(tmp_path, width=32, seed=5)
    profile = calibrated.with_suffix(".stagevar.yaml")
    other.with_suffix(".stagevar.yaml").write_text(profile.read_text())
    result = invoke("generate", other, "-o", tmp_path / "a.png")
    said = refused(result, 4)
    assert result.exception.field == "architecture"
    assert result.exception.expected[:15] in said and result.exception.found[:15] in said
    assert f"Recalibrate: stagevar-probe calibrate {other}" in said
    assert not (tmp_path / "a.png").exists()


def test_profile_of_other_weights_warns_or_is_refused(calibrated: Path, tmp_path: Path) -> None:
    other = write_tiny(tmp_path, seed=5)
    args = ("--profile", calibrated.with_suffix(".stagevar.yaml"), "-o", tmp_path / "a.png")
    result = done(invoke("generate", other, *args))
    assert result.stderr.count("figures may differ") == 1
    assert "weights" in refused(invoke("generate", other, *args, "--strict"), 4)


def test_quiet_prints_nothing(calibrated: Path, tmp_path: Path) -> None:
    result = done(invoke("generate", calibrated, "-q", "-o", tmp_path / "a.png"))
    assert result.output == "" and (tmp_path / "a.png").exists()
    for command in ("inspect", "solve", "report"):
        path = calibrated.with_suffix(".stagevar.measurements.json")
        assert done(invoke(command, path, "-q")).output == ""


@pytest.mark.parametrize("plan", ["fast", "skip-2", "cfg-off", "stagevar"])
def test_plans_and_presets_by_name(calibrated: Path, tmp_path: Path, plan: str) -> None:
    path = calibrated.with_suffix(".stagevar.yaml")
    profile = load_profile(path)  # which plans it has depends on times: give it one that is sure
    fast = PlanEntry.model_validate({"steps": [{"scale": 1, "guidance": "cond"}]}, strict=False)
    write_profile(profile.model_copy(update={"plans": {**profile.plans, "fast": fast}}), path)
    result = done(
        invoke("generate", calibrated, "--plan", plan, "-o", tmp_path / "a.png", "--json")
    )
    assert json.loads(result.stdout)["plan"] == plan
    assert f"plan {plan}" in result.stderr


def test_compare_shows_exact_above(calibrated: Path, tmp_path: Path) -> None:
    args = ("--plan", "skip-2", "--labels", "0,1", "-o", tmp_path / "a.png")
    done(invoke("generate", calibrated, *args))
    single = picture(tmp_path / "a.png").size
    result = done(invoke("generate", calibrated, *args, "--compare"))
    double = picture(tmp_path / "a.png")
    assert double.size == (single[0], 2 * single[1])
    upper, lower = (double.crop((0, y, single[0], y + single[1])) for y in (0, single[1]))
    done(
        invoke(
            "generate",
            calibrated,
            "--labels",
            "0 1",
            "--plan",
            "exact",
            "--guidance",
            1.5,
            "-o",
            tmp_path / "b.png",
        )
    )
    assert upper.tobytes() == picture(tmp_path / "b.png").tobytes() != lower.tobytes()
    assert "plan skip-2" in result.stdout  # what was accelerated is what is told


def test_compare_with_a_plan_that_changes_nothing(calibrated: Path, tmp_path: Path) -> None:
    path = calibrated.with_suffix(".stagevar.yaml")
    profile = load_profile(path)
    plans = {name: PlanEntry(steps=()) for name in profile.plans}
    write_profile(profile.model_copy(update={"plans": plans}), path)
    result = done(invoke("generate", calibrated, "--compare", "-o", tmp_path / "a.png"))
    assert "plan balanced" in result.stdout
    assert "changes nothing" in refused(
        invoke("generate", calibrated, "--plan", "balanced", "-o", tmp_path / "a.png"), 4
    )


@pytest.mark.parametrize(
    ("args", "code", "expected"),
    [
        (("--labels", "0,9"), 1, "got [9], expected labels from 0 to 4"),
        (("--labels", "-1"), 1, "got [-1]"),
        (("--labels", "cat"), 1, "expected numbers like 0,3,7"),
        (("--labels", ""), 1, "no label"),
        (("--plan", "nonsense"), 4, "unknown plan 'nonsense', expected one of"),
        (("--profile", "none.yaml"), 4, "none.yaml: cannot be read"),
        (("--device", "toaster"), 1, "expected cpu, cuda"),
        (("--tokenizer", "none.pth"), 1, "none.pth: no such file"),
        (("--temperature", "0"), 1, "temperature"),
        (("--top-p", "2"), 1, "top_p"),
        (("--top-k", "-3"), 1, "top_k"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_arguments_of_generate(
    calibrated: Path, tmp_path: Path, args: tuple[str, ...], code: int, expected: str
) -> None:
    result = invoke("generate", calibrated, "-o", tmp_path / "a.png", *args)
    assert expected in refused(result, code)
    assert list(tmp_path.glob("*.png")) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_that_is_not_there(tiny_files: Path) -> None:
    assert "0 CUDA devices" in refused(invoke("generate", tiny_files, "--device", "cuda"))


def test_broken_yaml_beside_the_checkpoint(tiny_files: Path) -> None:
    tiny_files.with_suffix(".stagevar.yaml").write_text("plans: {balanced: [")
    assert "var_tiny.stagevar.yaml" in refused(invoke("generate", tiny_files), 4)
