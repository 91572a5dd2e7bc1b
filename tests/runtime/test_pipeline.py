"""Load, find a profile, enable, disable, tell.

pytest tests/runtime/test_pipeline.py
"""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import write_tiny
from torch import Tensor

from stagevar_runtime import (
    CheckpointError,
    Pipeline,
    Profile,
    ProfileError,
    ProfileMismatchError,
    Sampling,
    StagevarError,
    load,
    write_profile,
)
from stagevar_runtime.profile import (
    Calibration,
    CreatedBy,
    ModelRef,
    PlanEntry,
    PlanStep,
    PromptSet,
    SamplingSettings,
    ScaleMeasurement,
    TokenOption,
)
from stagevar_runtime.profile.distance import Use, far_from
from stagevar_runtime.profile.fingerprint import schedule, schedule_name

ROOT = Path(__file__).resolve().parents[2]
DROP = PlanStep(scale=2, guidance="cond")


def profile_of(pipeline: Pipeline, **changes) -> Profile:
    scales = pipeline.model.scales()
    fields = {
        "created_by": CreatedBy(tool="test", version="1"),
        "model": ModelRef(
            family="var",
            architecture=pipeline.fingerprint.architecture,
            weights=pipeline.fingerprint.weights,
            schedules={schedule_name(scales): tuple((h, w) for h, w in schedule(scales))},
        ),
        "provenance": "measured",
        "calibration": Calibration(
            prompts=PromptSet(name="p", count=1),
            dtype="float32",
            guidance=2.0,
            sampling=SamplingSettings(temperature=0.9, top_k=20, top_p=0.95),
        ),
        "plans": {
            "balanced": PlanEntry(steps=(DROP,)),
            "fast": PlanEntry(steps=(DROP, PlanStep(scale=3, run="skip"))),
            "idle": PlanEntry(steps=(PlanStep(scale=1, guidance="full"),)),
        },
    }
    return Profile(**(fields | changes))


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.delenv("STAGEVAR_PROFILE", raising=False)
    caplog.set_level(logging.INFO, "stagevar_runtime")


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A folder apart: overwriting a checkpoint that is mapped into memory crashes the process."""
    (tmp_path / "elsewhere").mkdir()
    return tmp_path / "elsewhere"


@pytest.fixture
def bare(tiny_files: Path) -> Pipeline:
    return load(tiny_files, device="cpu", profile=None)


def images(pipeline: Pipeline, **changes) -> Tensor:
    return pipeline.generate(labels=[0, 1], seed=[3, 4], **changes).images


def test_profile_beside_the_checkpoint(tiny_files: Path, bare: Pipeline, caplog) -> None:
    path = tiny_files.with_suffix(".stagevar.yaml")
    write_profile(profile_of(bare), path)
    caplog.clear()
    found = load(tiny_files, device="cpu")
    assert [r.levelname for r in caplog.records] == ["INFO"]
    assert caplog.messages == [f"profile {path} (beside the checkpoint), plan balanced"]
    assert found.plan_name == "balanced" and found.steps == (DROP,)
    assert found.sampling().guidance == 2.0 and found.sampling(top_k=5).top_k == 5
    assert "plan balanced" in str(found.summary())


def test_what_is_far_from_the_measurements_is_said_once(tiny_files: Path, bare, caplog) -> None:
    pipeline = load(tiny_files, device="cpu", profile=profile_of(bare))
    assert pipeline.generate(labels=[0]).images.isfinite().all()
    near = {"guidance": 2.2, "temperature": 1.0, "top_k": 15, "top_p": 0.97}
    images(pipeline, **near)
    assert pipeline.notes == []
    images(pipeline, guidance=9.0, temperature=2.0)
    images(pipeline, guidance=8.0)
    said = "used far from where the profile was measured: "
    first = f"{said}guidance 9 (measured: 2), temperature 2 (measured: 0.9)"
    assert pipeline.notes == [first] and caplog.messages.count(first) == 1
    images(pipeline, top_k=0)
    assert pipeline.notes[1:] == [f"{said}top_k 0 (measured: 20)"]
    assert first in str(pipeline.summary())
    pipeline.disable()
    images(pipeline, top_p=0.1)
    assert len(pipeline.notes) == 2


@pytest.mark.parametrize(
    ("calibration", "use", "far"),
    [
        ({}, {}, []),
        ({}, {"dtype": "float16"}, ["dtype float16 (measured: float32)"]),
        ({"hardware": {"device": "cuda:1"}}, {}, ["device cpu (measured: cuda)"]),
        ({"hardware": {"device": "cpu", "batch": 16}}, {"batch": 4}, []),
        ({"hardware": {"device": "cpu", "batch": 16}}, {"batch": 3}, ["batch 3 (measured: 16)"]),
        ({"guidance": (1.0, 4.0)}, {"sampling": Sampling(guidance=4.0)}, []),
        ({"guidance": 4.0}, {"sampling": Sampling(guidance=0.0)}, ["guidance 0 (measured: 4)"]),
        ({"sampling": {"top_p": 0.0}}, {"sampling": Sampling(top_p=1.0)}, []),
        (
            {"sampling": {"top_p": 0.0}},
            {"sampling": Sampling(top_p=0.9)},
            ["top_p 0.9 (measured: 0)"],
        ),
    ],
)
def test_far(calibration: dict, use: dict, far: list[str]) -> None:
    base = {"prompts": {"name": "p", "count": 1}, "dtype": "float32", "guidance": 1.0}
    made = Calibration.model_validate(base | calibration)
    default = {"sampling": Sampling(), "dtype": "float32", "device": "cpu", "batch": 1}
    assert list(far_from(made, Use(**(default | use))).values()) == far


def test_no_profile_is_warned_once(tiny_files: Path, caplog) -> None:
    pipeline = load(tiny_files, device="cpu")
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert f"stagevar-probe calibrate {tiny_files}" in caplog.text
    images(pipeline)
    images(pipeline)
    assert len(caplog.records) == 1
    assert "no profile: the exact path runs" in pipeline.summary().notes


def test_none_uses_none_silently(tiny_files: Path, bare: Pipeline, caplog) -> None:
    write_profile(profile_of(bare), tiny_files.with_suffix(".stagevar.yaml"))
    assert load(tiny_files, device="cpu", profile=None).plan_name == "exact"
    assert caplog.records == []


def test_environment_and_argument(tiny_files, bare, tmp_path, monkeypatch, caplog) -> None:
    write_profile(profile_of(bare), tiny_files.with_suffix(".stagevar.yaml"))
    write_profile(profile_of(bare, default_plan="fast"), tmp_path / "env.yaml")
    monkeypatch.setenv("STAGEVAR_PROFILE", str(tmp_path / "env.yaml"))
    assert load(tiny_files, device="cpu").plan_name == "fast"
    assert "env.yaml (STAGEVAR_PROFILE), plan fast" in caplog.text
    beside = tiny_files.with_suffix(".stagevar.yaml")
    assert load(tiny_files, device="cpu", profile=beside).plan_name == "balanced"
    assert "(argument)" in caplog.text
    in_memory = load(tiny_files, device="cpu", profile=profile_of(bare, default_plan="fast"))
    assert in_memory.profile_source == "<memory> (given)" and in_memory.plan_name == "fast"
    monkeypatch.setenv("STAGEVAR_PROFILE", "none.yaml")
    with pytest.raises(ProfileError, match=r"none\.yaml.*STAGEVAR_PROFILE"):
        load(tiny_files, device="cpu")


def test_other_weights_warn_and_strict_refuses(bare: Pipeline, elsewhere: Path, caplog) -> None:
    other = write_tiny(elsewhere, seed=9)
    pipeline = load(other, device="cpu", profile=profile_of(bare))
    assert [r.levelname for r in caplog.records] == ["WARNING", "INFO"]
    assert len(pipeline.summary().notes) == 1
    pipeline.use_profile(None)
    assert pipeline.notes == []  # they spoke of the profile that is gone
    with pytest.raises(ProfileMismatchError, match="weights") as caught:
        load(other, device="cpu", profile=profile_of(bare), strict=True)
    assert caught.value.field == "weights"
    assert caught.value.expected == bare.fingerprint.weights


def test_profile_of_another_architecture(bare: Pipeline, elsewhere: Path) -> None:
    other = write_tiny(elsewhere, width=32)
    with pytest.raises(ProfileMismatchError, match=f"Recalibrate: .*calibrate {other}"):
        load(other, device="cpu", profile=profile_of(bare))


def test_enable_disable_and_what_they_do(bare: Pipeline) -> None:
    exact = images(bare)
    assert bare.enable([DROP]) is bare and bare.plan_name == "custom"
    fast = images(bare)
    assert not torch.equal(fast, exact)
    summary = bare.summary()
    assert [row.rows for row in summary.rows] == [4, 4, 2, 2] and summary.images == 2
    assert summary.rows[2].asked == "guidance cond" and summary.rows[2].done == "cond alone"
    assert summary.loop_ms > 0 and "last call: 2 images" in str(summary)
    assert torch.equal(images(bare.disable()), exact)
    assert bare.steps == () and "last call" in str(bare.summary())
    assert "last call" not in str(bare.enable([DROP]).summary())


def test_summary_of_tokens_and_skips(bare: Pipeline) -> None:
    tokens = TokenOption(keep=(0.5, 0.25), select="norm", restore="cache")
    bare.enable(
        [
            PlanStep(scale=1, guidance_scale=2.0, temperature=0.5),
            PlanStep(scale=2, tokens=tokens),
            PlanStep(scale=3, run="skip"),
        ]
    )
    images(bare)
    rows = bare.summary().rows
    assert rows[1].done == "guided 2, temperature 0.5"
    assert rows[2].kept_tokens == (4, 2) and "2/2 groups norm + cache" in rows[2].done
    assert "keep 0.38 mean norm" in rows[2].asked
    assert rows[3].kept_tokens == () and rows[3].rows == 0 and rows[3].done == "skipped"
    assert "4/2" in str(bare.summary())


@pytest.mark.parametrize(
    "steps",
    [
        [],
        [PlanStep(scale=0)],
        [PlanStep(scale=2, guidance="full")],
        [PlanStep(scale=1, temperature=1.0)],
        [PlanStep(scale=3, tokens=TokenOption(keep=1.0, select="norm", restore="none"))],
        [
            PlanStep(
                scale=3, tokens=TokenOption(keep=1.0, select="norm", restore="none", span="all")
            )
        ],
    ],
    ids=["nothing", "empty", "full", "temperature", "keep", "keep all"],
)
def test_enable_that_changes_nothing_raises(bare: Pipeline, steps: list[PlanStep]) -> None:
    with pytest.raises(ProfileError, match="plan 'custom' changes nothing on this model"):
        bare.enable(steps)
    assert bare.plan_name == "exact" and bare.steps == ()


def test_a_profile_that_changes_nothing_says_so(bare: Pipeline, caplog) -> None:
    """Nobody should take a silent 1.00x for an acceleration."""
    bare.use_profile(profile_of(bare, default_plan="idle"))
    assert [r.levelname for r in caplog.records] == ["INFO", "WARNING"]
    assert "plan 'idle' changes nothing on this model" in caplog.messages[1]
    assert any("changes nothing" in note for note in bare.summary().notes)
    bare.enable("fast")
    assert not any("changes nothing" in note for note in bare.summary().notes)


def test_enable_by_name(bare: Pipeline, caplog) -> None:
    profile = profile_of(bare)
    assert bare.enable("fast", profile).plan_name == "fast" and len(bare.steps) == 2
    assert caplog.messages[-1] == "plan fast"
    assert bare.enable().plan_name == "balanced"
    with pytest.raises(ProfileError, match="plan 'idle' changes nothing"):
        bare.enable("idle")
    with pytest.raises(ProfileError, match="unknown plan 'x', expected one of balanced, fast"):
        bare.enable("x")


def test_enable_without_anything_to_enable(bare: Pipeline) -> None:
    with pytest.raises(ProfileError, match=r"no profile to enable.*or name a preset: stagevar"):
        bare.enable()
    with pytest.raises(ProfileError, match="unknown plan"):
        bare.enable("balanced")


@pytest.mark.parametrize("name", ["stagevar", "skip-2", "cfg-off"])
def test_presets(bare: Pipeline, name: str) -> None:
    exact = images(bare)
    assert not torch.equal(images(bare.enable(name)), exact)
    assert bare.plan_name == name


def test_preset_stagevar_takes_measured_ranks_from_a_profile(bare: Pipeline) -> None:
    row = ScaleMeasurement(scale=3, tokens=16, rank_pca=(0.5, 0.25))
    bare.enable("stagevar", profile_of(bare, measurements=(row,)))
    assert [g.tokens.keep for g in bare.plan()[3].groups if g.tokens] == [8, 4]
    bare.use_profile(None)
    bare.enable("stagevar")
    assert [g.tokens.keep for g in bare.plan()[3].groups if g.tokens] == [2, 2]


def test_a_failed_enable_leaves_what_was_there(bare: Pipeline) -> None:
    bare.enable([DROP])
    with pytest.raises(ProfileError, match="scale 9"):
        bare.enable([PlanStep(scale=9, guidance="cond")])
    assert bare.steps == (DROP,) and bare.plan_name == "custom"


def test_bad_inputs(bare: Pipeline, tiny_files: Path) -> None:
    with pytest.raises(StagevarError, match=r"got the inputs none.*takes labels"):
        bare.generate()
    with pytest.raises(StagevarError, match="prompt"):
        bare.generate(labels=[0], prompt="a cat")
    with pytest.raises(StagevarError, match="got 1 seeds for 2 images"):
        bare.generate(labels=[0, 1], seed=[3])
    with pytest.raises(StagevarError, match=r"no option \['magic'\]"):
        load(tiny_files, device="cpu", profile=None, options={"magic": 1})
    with pytest.raises(StagevarError, match="got device 'toaster', expected cpu"):
        load(tiny_files, device="toaster")


def test_tokenizer_beside_inside_and_missing(tiny_files: Path, bare: Pipeline) -> None:
    vae = tiny_files.with_name("vae_tiny.pth")
    trained = tiny_files.with_name("ar-ckpt-last.pth")
    torch.save(
        {"trainer": {"var_wo_ddp": torch.load(tiny_files), "vae_local": torch.load(vae)}}, trained
    )
    inside = load(trained, device="cpu", profile=None)
    assert torch.equal(images(inside), images(bare))
    (tiny_files.parent / "vae_second.pth").write_bytes(vae.read_bytes())
    with pytest.raises(CheckpointError, match=r"vae_second\.pth, vae_tiny\.pth.*expected one"):
        load(tiny_files, device="cpu")
    given = load(tiny_files, vae, device="cpu", profile=None)
    assert torch.equal(images(given), images(bare))


def test_sampling_of_a_call(bare: Pipeline) -> None:
    exact = images(bare)
    for change in ({"guidance": 1.0}, {"temperature": 0.3}, {"top_k": 1}, {"top_p": 0.1}):
        assert not torch.equal(images(bare, **change), exact), change
    assert torch.equal(bare(labels=[0, 1], seed=[3, 4], output_type="pt").images, exact)


def test_importing_stays_lean() -> None:
    """No plotting, no command line, no CUDA context: seconds count in a service's start."""
    code = (
        "import sys, torch, stagevar_runtime\n"
        "heavy = {'click', 'sklearn', 'scipy', 'matplotlib', 'jinja2', 'rich', 'stagevar_probe'}\n"
        "print(sorted(heavy & {name.split('.')[0] for name in sys.modules}),\n"
        "      torch.cuda.is_initialized())"
    )
    made = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert made.stdout.strip() == "[] False"
