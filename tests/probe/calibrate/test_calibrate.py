"""The whole job: interrupted, killed, resumed, finished.

pytest tests/probe/calibrate/test_calibrate.py
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import write_tiny

from stagevar_probe.calibrate import job as module
from stagevar_probe.calibrate.job import CalibrationJob, Outputs, Settings
from stagevar_probe.datasets.inputs import balanced_labels
from stagevar_probe.measure.chunk import measure_chunk
from stagevar_probe.measure.measurements import Measurements, load_measurements
from stagevar_probe.metrics.quality import Likeness
from stagevar_probe.observe.pca import measured_ranks
from stagevar_runtime.errors import CalibrationError
from stagevar_runtime.loading import load
from stagevar_runtime.pipeline import Pipeline
from stagevar_runtime.profile import PlanStep, load_profile

BASES = ("bases.json", "bases.safetensors")
ROOT = Path(__file__).resolve().parents[3]


class Interrupting(Likeness):
    """Likeness, until the n-th call."""

    def __init__(self, after: int = 10**9) -> None:
        self.after = self.left = after

    @property
    def calls(self) -> int:
        return self.after - self.left

    def score(self, images, items, exact):
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return super().score(images, items, exact)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def pipeline(checkpoint: Path) -> Pipeline:
    return load(checkpoint, device="cpu", profile=None)


@pytest.fixture(autouse=True)
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than all the rest; test_cli and test_story look at real reports."""
    monkeypatch.setattr(
        CalibrationJob, "_report", lambda job, m, p: job.outputs.report.write_text("x")
    )


def job_in(folder: Path, pipeline: Pipeline, quality: Any = None, **changes: Any) -> CalibrationJob:
    model = pipeline.model
    settings = Settings(max_loss=0.1, batch=2, rank_images=3, repeats=1, quiet=True)
    return CalibrationJob(
        pipeline,
        balanced_labels(model, 6, seed=0),
        balanced_labels(model, 4, seed=0, held_out=True),
        pipeline.sampling(),
        quality or Likeness(),
        replace(settings, **changes),
        Outputs.beside(folder / "m.pth"),
    )


def without_times(measured: Measurements) -> dict[str, Any]:
    data = measured.dump()
    del data["costs"], data["validation"]
    return data


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, pipeline: Pipeline):
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            CalibrationJob, "_report", lambda job, m, p: job.outputs.report.write_text("x")
        )
        quality = Interrupting()
        profile = job_in(folder, pipeline, quality).run()
    return folder, profile, quality.calls


def test_writes_its_files_and_nothing_else(finished) -> None:
    folder, profile, _ = finished
    read = load_profile(folder / "m.stagevar.yaml")
    needed = measured_ranks(plan.steps for plan in read.plans.values())  # chosen by times
    assert {path.name for path in folder.iterdir()} == {
        "m.stagevar.measurements.json",
        "m.stagevar.report.html",
        "m.stagevar.yaml",
        *(("m.stagevar.safetensors",) if needed else ()),
    }
    assert set(read.plans) == {"quality", "balanced", "fast"}
    assert read.plans.keys() == profile.plans.keys()
    for name, plan in read.plans.items():
        assert plan.steps == profile.plans[name].steps
        assert plan.expected is not None and plan.expected.images == 4


def test_profile_says_what_was_measured(finished, pipeline: Pipeline) -> None:
    folder, *_ = finished
    read, measured = (
        load_profile(folder / "m.stagevar.yaml"),
        load_measurements(folder / "m.stagevar.measurements.json"),
    )
    assert read.model.architecture == pipeline.fingerprint.architecture
    assert read.model.weights == pipeline.fingerprint.weights
    assert [len(v) for v in read.model.schedules.values()] == [4]
    assert len(measured.smooth["exact"]) == 6
    assert len(read.measurements) == 4 and read.calibration is not None
    assert read.calibration.sampling_settings()["guidance"] == pipeline.sampling().guidance
    for k, row in enumerate(read.measurements):
        assert row.scale == k and row.tokens == (k + 1) ** 2
        assert row.ms is not None and row.ms.value > 0
        assert row.rank_pca is not None and len(row.rank_pca) == len(pipeline.model.info.groups)
    assert read.target is not None
    figures = measured.validation.plans["balanced"]
    assert read.target.satisfied == (figures.loss[0] <= 0.1)


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.65])
def test_interrupted_and_resumed_is_uninterrupted(
    finished, tmp_path: Path, pipeline: Pipeline, monkeypatch, share: float
) -> None:
    with pytest.raises(KeyboardInterrupt):
        job_in(tmp_path, pipeline, Interrupting(int(share * finished[2]))).run()
    assert [path.name for path in tmp_path.iterdir()] == [".m.stagevar.yaml.partial"]
    kept = len(list(tmp_path.glob(".m.stagevar.yaml.partial/chunk-*.json")))
    assert kept > 0 if share >= 0.5 else kept < 3
    again: list[int] = []

    def counted(*args: Any, **kwargs: Any) -> Any:
        again.append(1)
        return measure_chunk(*args, **kwargs)

    monkeypatch.setattr(module, "measure_chunk", counted)
    job_in(tmp_path, pipeline).run()
    assert len(again) == 3 - kept  # what was finished is not measured again
    assert not (tmp_path / ".m.stagevar.yaml.partial").exists()
    whole = load_measurements(finished[0] / "m.stagevar.measurements.json")
    resumed = load_measurements(tmp_path / "m.stagevar.measurements.json")
    assert without_times(resumed) == without_times(whole)


def test_resuming_does_not_measure_again(tmp_path: Path, pipeline: Pipeline) -> None:
    first, second = Interrupting(), Interrupting()
    job = job_in(tmp_path, pipeline, first)
    job._open(True)
    job._measured()
    again = job_in(tmp_path, pipeline, second)
    again._open(True)
    again._measured()
    assert first.calls > 0 and second.calls == 0


@pytest.mark.parametrize(
    "changes", [{"max_loss": 0.2}, {"seed": 1}, {"batch": 3}], ids=lambda c: next(iter(c))
)
def test_other_settings_do_not_mix(tmp_path: Path, pipeline: Pipeline, changes) -> None:
    job = job_in(tmp_path, pipeline)
    job.quality = Interrupting(2 + len(job.interventions))  # in the second chunk
    with pytest.raises(KeyboardInterrupt):
        job.run()
    with pytest.raises(CalibrationError, match=r"other settings.*--no-resume"):
        job_in(tmp_path, pipeline, **changes).run()
    assert (tmp_path / ".m.stagevar.yaml.partial" / "chunk-00000.json").exists()


def test_no_resume_starts_afresh(tmp_path: Path, pipeline: Pipeline) -> None:
    with pytest.raises(KeyboardInterrupt):
        job_in(tmp_path, pipeline, Interrupting(40)).run()
    partial = tmp_path / ".m.stagevar.yaml.partial"
    (partial / "chunk-00000.json").write_text("nonsense")
    job = job_in(tmp_path, pipeline, Interrupting(0), max_loss=0.2)
    with pytest.raises(KeyboardInterrupt):
        job.run(resume=False)
    assert {path.name for path in partial.iterdir()} == {".lock", "job.json", *BASES}


def test_damaged_partial_state_is_named(tmp_path: Path, pipeline: Pipeline) -> None:
    with pytest.raises(KeyboardInterrupt):
        job_in(tmp_path, pipeline, Interrupting(40)).run()
    damaged = tmp_path / ".m.stagevar.yaml.partial" / "chunk-00000.json"
    damaged.write_text("{")
    with pytest.raises(CalibrationError, match=damaged.name):
        job_in(tmp_path, pipeline).run()


def test_an_old_profile_stays_until_the_new_one_is_whole(
    tmp_path: Path, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(CalibrationJob, "_report", interrupted)  # the last thing before the profile
    (tmp_path / "m.stagevar.yaml").write_text("old")
    with pytest.raises(KeyboardInterrupt):
        job_in(tmp_path, pipeline).run()
    assert (tmp_path / "m.stagevar.yaml").read_text() == "old"


class Failing(Likeness):
    """Plans that looked harmless lose everything on fresh inputs."""

    def __init__(self) -> None:
        self.fresh = False

    def score(self, images, items, exact):
        same = super().score(images, items, exact)
        return (same > 0.999).float() if self.fresh else torch.ones(len(images))

    smooth = score


def test_plans_that_fail_on_fresh_images_leave_the_exact_path(
    tmp_path: Path, pipeline: Pipeline, monkeypatch
) -> None:
    quality = Failing()
    job = job_in(tmp_path, pipeline, quality)
    race = CalibrationJob._race

    def fail_from_here(self, measured):
        quality.fresh = True
        return race(self, measured)

    monkeypatch.setattr(CalibrationJob, "_race", fail_from_here)
    profile = job.run()
    assert profile.target is not None and profile.target.satisfied  # exact loses nothing
    measured = load_measurements(tmp_path / "m.stagevar.measurements.json")
    assert measured.validation.plans["balanced"].loss == (0.0, 0.0, 0.0)
    attempts = measured.validation.attempts
    assert attempts and measured.validation.trials <= module.TRIALS
    assert min(a.figures.loss.mean for a in attempts) > 0.1  # or the test shows nothing
    assert all(not steps.steps for steps in profile.plans.values())  # exact is what is left


def test_a_target_that_is_missed_is_said(tmp_path: Path, pipeline: Pipeline) -> None:
    profile = job_in(tmp_path, pipeline, max_loss=-1.0).run()  # exact loses 0, which is more
    assert profile.target is not None and not profile.target.satisfied
    written = load_profile(tmp_path / "m.stagevar.yaml")
    assert written.target is not None and not written.target.satisfied
    assert written.target.max_loss == -1.0 and not written.plans["balanced"].steps


def test_hopeless_plans_are_given_up_after_a_share_of_the_images(tmp_path, pipeline) -> None:
    job = job_in(tmp_path, pipeline)
    job.held_out = balanced_labels(pipeline.model, 16, seed=0, held_out=True)
    job._open(True)
    plans = {"skip": (PlanStep(scale=3, run="skip"),), "same": ()}
    figures = job._validate(
        plans, job.held_out, "racing", "race", lambda figures: figures.psnr[0] < 60
    )
    assert {name: f.images for name, f in figures.items()} == {
        "exact": 16,
        "skip": 4,
        "same": 16,
    }
    (tmp_path / ".m.stagevar.yaml.partial" / "race-00007.json").unlink()
    again = job._validate(
        plans, job.held_out, "racing", "race", lambda figures: figures.psnr[0] < 60
    )
    assert again["skip"].loss == figures["skip"].loss and again["same"].images == 16


def test_given_up_candidates_cannot_win(tmp_path: Path, pipeline: Pipeline, monkeypatch) -> None:
    monkeypatch.setattr(module, "stop_early", lambda figures, max_loss: True)
    profile = job_in(tmp_path, pipeline).run()
    measured = load_measurements(tmp_path / "m.stagevar.measurements.json")
    assert len(measured.validation.attempts) > 3
    assert all(not plan.steps for plan in profile.plans.values())


@pytest.mark.parametrize(("winning", "trials"), [(1, 2), (9, module.TRIALS)])
def test_where_winners_fail_on_held_out_inputs_exact_is_left(
    tmp_path: Path, pipeline: Pipeline, monkeypatch, winning: int, trials: int
) -> None:
    quality = Failing()

    def only_the_fastest(candidates, figures, max_loss):
        del figures, max_loss
        quality.fresh = True
        return {"quality": [], "balanced": [candidates[-1]] * winning, "fast": []}

    monkeypatch.setattr(module, "shortlist", only_the_fastest)
    profile = job_in(tmp_path, pipeline, quality).run()
    assert profile.target is not None and profile.target.satisfied
    assert not profile.plans["balanced"].steps
    measured = load_measurements(tmp_path / "m.stagevar.measurements.json")
    assert measured.validation.trials == trials


def test_hopeless_arms_are_given_up_but_not_the_curves(tmp_path, pipeline: Pipeline) -> None:
    job = job_in(tmp_path, pipeline, max_loss=1e-6)
    job._open(True)
    measured = job._measured()
    counts = {
        intervention.name: len(measured.smooth[intervention.name])
        for intervention in job.interventions
    }
    assert set(counts.values()) == {2, 6}
    for intervention in job.interventions:
        if intervention.skip or (
            intervention.schedule == "published" and intervention.variant == "cond"
        ):
            assert counts[intervention.name] == 6


def test_dry_run_writes_nothing(tmp_path: Path, pipeline: Pipeline) -> None:
    job = job_in(tmp_path, pipeline)
    found = job.dry_run()
    assert list(tmp_path.iterdir()) == []
    assert (
        found["interventions"] == len(job.interventions)
        and found["seconds_estimate"] > found["seconds_one_image"]
    )
    assert found["peak_memory_mb"] > 10
    assert 1 < found["generations"] < 2 + len(job.interventions)


def test_outputs_of_a_directory_and_of_a_name(tmp_path: Path) -> None:
    assert Outputs.beside(tmp_path).profile == tmp_path / "stagevar.yaml"
    named = Outputs.beside(tmp_path / "m.pth", tmp_path / "other.yaml")
    assert named.measurements.name == "other.measurements.json"
    assert named.report.name == "other.report.html"
    assert named.partial.name == ".other.yaml.partial"


KILLER = """
import os, signal
from stagevar_probe.metrics.images import ssim
calls = 0
def score(images, items, exact):
    global calls
    calls += 1
    if calls > int(os.environ["KILL_AFTER"]):
        os.kill(os.getpid(), signal.SIGNUM)
    return ssim(images, exact)
"""


@pytest.mark.parametrize(("name", "code"), [("SIGKILL", -signal.SIGKILL), ("SIGINT", 130)])
def test_killed_leaves_no_final_file_and_goes_on(
    tmp_path: Path, checkpoint: Path, pipeline: Pipeline, name: str, code: int
) -> None:
    (tmp_path / "killer.py").write_text(KILLER.replace("SIGNUM", name))
    command = [sys.executable, "-m", "stagevar_probe", "calibrate", str(checkpoint)]
    command += ["--metric", "killer:score", "--count", "4", "--held-out", "2", "--batch", "2"]
    command += ["--output", str(tmp_path / "out" / "m.yaml")]
    (tmp_path / "out").mkdir()

    def run(after: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=tmp_path,
            env={**os.environ, "KILL_AFTER": str(after), "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=300,
        )

    chunk = 2 * (1 + len(job_in(tmp_path, pipeline).interventions))  # score and smooth of every arm
    died = run(chunk + 1)
    assert died.returncode == code, died.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".m.yaml.partial"]
    kept = {path.name for path in (tmp_path / "out" / ".m.yaml.partial").glob("[!.]*")}
    assert kept == {"job.json", "chunk-00000.json", *BASES}
    if name == "SIGINT":
        assert "Go on with the same command" in died.stderr and "Traceback" not in died.stderr
        return
    done = run(10**6)
    assert done.returncode in (0, 5), done.stderr
    assert "resuming the calibration" in done.stderr and "Traceback" not in done.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} - {"m.stagevar.safetensors"} == {
        "m.yaml",
        "m.measurements.json",
        "m.report.html",
    }
