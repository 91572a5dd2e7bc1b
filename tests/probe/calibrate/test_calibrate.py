"""The whole job: finished, interrupted, killed, resumed; what it says of its time and its proof.

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
from conftest import no_report, small_job, write_tiny

from stagevar_probe.calibrate.job import CalibrationJob
from stagevar_probe.calibrate.settings import Outputs, Tools
from stagevar_probe.datasets.inputs import Inputs
from stagevar_probe.datasets.supply import Supply
from stagevar_probe.measure.costs import Costs, measure_costs
from stagevar_probe.measure.measurements import Measurements, load_measurements
from stagevar_probe.metrics.quality import Likeness
from stagevar_probe.observe.pca import measured_ranks
from stagevar_probe.validate.verdict import UNPROVEN, Budget
from stagevar_runtime.errors import CalibrationError
from stagevar_runtime.loading import load
from stagevar_runtime.pipeline import Pipeline
from stagevar_runtime.profile import load_profile

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


def stored(folder: Path) -> Measurements:
    return load_measurements(folder / "m.stagevar.measurements.json")


def without_times(measured: Measurements) -> dict[str, Any]:
    data = measured.dump()
    del data["costs"], data["validation"]
    return data


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, pipeline: Pipeline):
    folder = tmp_path_factory.mktemp("whole")
    quality = Interrupting()
    profile = small_job(folder, pipeline, quality).run()
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
    for name, plan in read.plans.items():
        assert plan.steps == profile.plans[name].steps
        assert plan.expected is not None and 2 <= (plan.expected.images or 0) <= 8


def test_profile_says_what_was_measured(finished, pipeline: Pipeline) -> None:
    folder, *_ = finished
    read, measured = load_profile(folder / "m.stagevar.yaml"), stored(folder)
    assert read.model.architecture == pipeline.fingerprint.architecture
    assert read.model.weights == pipeline.fingerprint.weights
    assert [len(v) for v in read.model.schedules.values()] == [4]
    assert 2 <= len(measured.smooth["exact"]) <= 6
    assert measured.job.inputs.count == len(measured.smooth["exact"])
    assert len(read.measurements) == 4 and read.calibration is not None
    assert read.calibration.sampling_settings()["guidance"] == pipeline.sampling().guidance
    for k, row in enumerate(read.measurements):
        assert row.scale == k and row.tokens == (k + 1) ** 2
        assert row.ms is not None and row.ms.value > 0
        assert row.rank_pca is not None and len(row.rank_pca) == len(pipeline.model.info.groups)


def test_the_profile_says_what_the_evidence_shows(finished) -> None:
    folder, *_ = finished
    read, found = load_profile(folder / "m.stagevar.yaml"), stored(folder).validation
    assert read.target is not None
    if not read.plans["balanced"].steps:
        assert read.target.satisfied is True
        return
    evidence = found.evidence["balanced"]
    assert read.target.satisfied == evidence.verdict
    expected = read.plans["balanced"].expected
    assert expected is not None
    assert expected.loss_bounds == pytest.approx(evidence.budgets[0].bounds[1:], abs=1e-5)
    assert found.seconds["taken"] <= 1.2 * found.seconds["announced"]


@pytest.mark.parametrize("share", [0, 0.65, 0.85])
def test_interrupted_and_resumed_is_uninterrupted(
    finished, tmp_path: Path, pipeline: Pipeline, share: float
) -> None:
    with pytest.raises(KeyboardInterrupt):
        small_job(tmp_path, pipeline, Interrupting(int(share * finished[2]))).run()
    rest = Interrupting()
    small_job(tmp_path, pipeline, rest).run()
    assert rest.calls < finished[2] or share == 0
    assert not (tmp_path / ".m.stagevar.yaml.partial").exists()
    assert without_times(stored(tmp_path)) == without_times(stored(finished[0]))


class Stopping(Supply):
    """Ctrl-C when the second batch is asked for."""

    def part(self, begin: int, size: int) -> Inputs:
        if begin == 2:
            raise KeyboardInterrupt
        return super().part(begin, size)


@pytest.mark.parametrize("purpose", ["race", "proof"])
def test_interrupted_late_leaves_the_best_plan_so_far(
    tmp_path: Path, pipeline: Pipeline, caplog: pytest.LogCaptureFixture, purpose: str
) -> None:
    whole = small_job(tmp_path, pipeline, max_loss=0.5)
    stopping = Stopping(**vars(getattr(whole.materials, purpose)))
    materials = replace(whole.materials, **{purpose: stopping})
    job = CalibrationJob(pipeline, materials, whole.settings, whole.outputs, tools=whole.tools)
    with pytest.raises(KeyboardInterrupt):
        job.run()
    profile, found = load_profile(tmp_path / "m.stagevar.yaml"), stored(tmp_path).validation
    assert "the best plan so far is in" in caplog.text
    assert profile.target is not None
    assert profile.target.satisfied in (UNPROVEN, True)  # true: the exact path is what is left
    assert (profile.target.satisfied is True) == (not profile.plans["balanced"].steps)
    assert set(found.plans) >= {"exact", "balanced"}
    assert (tmp_path / ".m.stagevar.yaml.partial").exists()  # to go on with
    small_job(tmp_path, pipeline, max_loss=0.5).run()
    assert not (tmp_path / ".m.stagevar.yaml.partial").exists()


@pytest.mark.parametrize(
    "changes",
    [{"max_loss": 0.2}, {"seed": 1}, {"batch": 3}, {"seconds": 99.0}],
    ids=lambda c: next(iter(c)),
)
def test_other_settings_do_not_mix(tmp_path: Path, pipeline: Pipeline, changes) -> None:
    job = small_job(tmp_path, pipeline)
    quality = Interrupting(2 + len(job.interventions))  # in the second chunk
    with pytest.raises(KeyboardInterrupt):
        small_job(tmp_path, pipeline, quality).run()
    with pytest.raises(CalibrationError, match=r"other settings.*--no-resume"):
        small_job(tmp_path, pipeline, **changes).run()
    assert (tmp_path / ".m.stagevar.yaml.partial" / "chunk-00000.json").exists()


def test_no_resume_starts_afresh(tmp_path: Path, pipeline: Pipeline) -> None:
    with pytest.raises(KeyboardInterrupt):
        small_job(tmp_path, pipeline, Interrupting(40)).run()
    partial = tmp_path / ".m.stagevar.yaml.partial"
    (partial / "chunk-00000.json").write_text("nonsense")
    job = small_job(tmp_path, pipeline, Interrupting(1), max_loss=0.2)  # 1: to know the metric
    with pytest.raises(KeyboardInterrupt):
        job.run(resume=False)
    left = {path.name for path in partial.iterdir()}
    assert left >= {".lock", "job.json", *BASES} and "chunk-00000.json" not in left


def test_a_damaged_piece_is_measured_again(
    tmp_path: Path, pipeline: Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(KeyboardInterrupt):
        small_job(tmp_path, pipeline, Interrupting(40)).run()
    damaged = tmp_path / ".m.stagevar.yaml.partial" / "chunk-00000.json"
    damaged.write_text("{")
    with caplog.at_level("WARNING", "stagevar_probe"):
        small_job(tmp_path, pipeline).run()
    assert f"{damaged.name} is damaged" in caplog.text
    assert (tmp_path / "m.stagevar.yaml").exists()


def test_an_old_profile_stays_until_the_new_one_is_whole(
    tmp_path: Path, pipeline: Pipeline
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt  # the last thing before the profile

    (tmp_path / "m.stagevar.yaml").write_text("old")
    with pytest.raises(KeyboardInterrupt):
        small_job(tmp_path, pipeline, tools=Tools(report=interrupted)).run()
    assert (tmp_path / "m.stagevar.yaml").read_text() == "old"


class Failing(Likeness):
    """Every change of the picture loses everything, once it is told."""

    def __init__(self, fails: bool = False) -> None:
        self.fails = fails

    def score(self, images, items, exact):
        same = super().score(images, items, exact)
        return (same > 0.999).float() if self.fails else torch.ones(len(images))

    smooth = score


def test_where_plans_fail_after_measuring_exact_is_left(tmp_path: Path, pipeline: Pipeline) -> None:
    quality = Failing()

    def costs(*args: Any) -> Costs:
        quality.fails = True  # measuring is over
        return measure_costs(*args)

    profile = small_job(
        tmp_path, pipeline, quality, tools=Tools(costs=costs, report=no_report)
    ).run()
    attempts = stored(tmp_path).validation.attempts
    assert attempts and min(a.figures.loss.mean for a in attempts) > 0.1  # or this shows nothing
    assert all(not plan.steps for plan in profile.plans.values())
    assert profile.target is not None and profile.target.satisfied is True


def test_hopeless_interventions_are_given_up_but_not_the_curves(
    tmp_path: Path, pipeline: Pipeline
) -> None:
    small_job(tmp_path, pipeline, max_loss=1e-6).run()
    measured = stored(tmp_path)
    counts = {i.name: len(measured.smooth[i.name]) for i in measured.interventions}
    assert min(counts.values()) == 2 and max(counts.values()) > 2
    for intervention in measured.interventions:
        if intervention.schedule == "published" and intervention.variant == "cond":
            assert counts[intervention.name] == max(counts.values())


class Stepping:
    """A clock that takes a step every time it is asked."""

    def __init__(self, step: float) -> None:
        self.step, self.time = step, 0.0

    def __call__(self) -> float:
        self.time += self.step
        return self.time


@pytest.mark.parametrize("step", [0.5, 4.0])
def test_the_time_is_kept_and_leaves_a_plan(
    tmp_path: Path, pipeline: Pipeline, step: float
) -> None:
    tools = Tools(now=Stepping(step), report=no_report)
    job = small_job(tmp_path, pipeline, tools=tools, seconds=100.0, held_out=None)
    profile = job.run()
    found = stored(tmp_path).validation
    assert found.seconds["announced"] == 100.0
    slack = 12 * step  # of rounds that are done whatever the clock says
    assert found.seconds["taken"] <= 100.0 + slack
    assert set(profile.plans) == {"quality", "balanced", "fast"}
    images = found.plans["exact"].images
    assert images >= 2


def test_time_before_an_interruption_counts(tmp_path: Path, pipeline: Pipeline) -> None:
    first = Tools(now=Stepping(1.0), report=no_report)
    with pytest.raises(KeyboardInterrupt):
        small_job(tmp_path, pipeline, Interrupting(90), tools=first, seconds=60.0).run()
    again = small_job(
        tmp_path, pipeline, tools=Tools(now=Stepping(0.0), report=no_report), seconds=60.0
    )
    again.run()
    assert again.clock.spent > 5


def test_a_second_metric_has_a_budget_of_its_own(tmp_path: Path, pipeline: Pipeline) -> None:
    quality = Likeness()
    other = Failing(True)
    other.name = "sameness"
    quality.others = (other,)
    profile = small_job(
        tmp_path, pipeline, quality, max_loss=1.0, others=(Budget("sameness", 0.05),)
    ).run()
    assert profile.target is not None
    found = stored(tmp_path).validation
    lost = [f.budgets[1] for n, f in found.evidence.items() if n != "balanced"]
    assert lost and all(part.metric == "sameness" for part in lost)
    for name, evidence in found.evidence.items():
        if evidence.budgets[1].bounds.mean > 0.05:
            assert evidence.verdict is not True, name


def test_trial_writes_nothing(tmp_path: Path, pipeline: Pipeline) -> None:
    job = small_job(tmp_path, pipeline, seconds=None)
    found = job.trial()
    assert list(tmp_path.iterdir()) == []
    assert found["interventions"] == len(job.interventions)
    assert found["seconds_estimate"] == 180.0  # a tiny model needs no more
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

    chunk = 2 * (1 + len(small_job(tmp_path, pipeline).interventions))  # score and smooth of each
    died = run(chunk + 1)
    assert died.returncode == code, died.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".m.yaml.partial"]
    kept = {path.name for path in (tmp_path / "out" / ".m.yaml.partial").glob("[!.]*")}
    assert kept >= {"job.json", "time.json", "chunk-00000.json", *BASES}
    assert "chunk-00001.json" not in kept
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
