"""Several processes, separate jobs, and one that dies.

pytest tests/probe/calibrate/test_scaleout.py
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import invoke, small_job, write_tiny

from stagevar_probe.calibrate import processes as ranks
from stagevar_probe.calibrate.processes import Processes, local_device
from stagevar_probe.calibrate.resume import ResumableWork
from stagevar_probe.datasets.inputs import balanced_labels
from stagevar_probe.measure.measurements import load_measurements, merged, read_json
from stagevar_probe.measure.validation import Validation
from stagevar_probe.solve.build import problem_from
from stagevar_runtime.errors import CalibrationError
from stagevar_runtime.loading import load
from stagevar_runtime.pipeline import Pipeline
from stagevar_runtime.profile import load_profile

ROOT = Path(__file__).resolve().parents[3]
NAME = "m.stagevar.yaml"

# No report (it draws for seconds) and fixed costs (times would choose other plans).
SCRIPT = """
import json, os, signal, sys
from dataclasses import replace
from pathlib import Path
from stagevar_probe.calibrate.job import CalibrationJob
from stagevar_probe.calibrate.processes import joined
from stagevar_probe.calibrate.settings import Outputs, Tools
from stagevar_probe.commands.calibrate import Effort, prepare
from stagevar_probe.commands.options import ModelOptions, Printer, TargetOptions
from stagevar_probe.measure.costs import Costs, cost_plans
from stagevar_probe.metrics.quality import Likeness
from stagevar_probe.solve.problem import FULL

def costs(model, conditioning, sampling, tokens, repeats):
    ms = {(s.index, rows, name): float(s.tokens * rows * (1 if name == FULL else 0.6))
          for rows, name, plan in cost_plans(model, sampling, tokens)
          for s, step in zip(model.scales(), plan) if name == FULL or step.reduced}
    return Costs(ms, dict.fromkeys(ms, 0.0), 1.0, conditioning.batch, repeats)

class Dying(Likeness):
    left = int(os.environ.get("DIES_AT", 10**9))
    def score(self, images, items, exact):
        self.left -= 1
        if self.left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().score(images, items, exact)

checkpoint, output = map(Path, sys.argv[1:])
tools = Tools(costs=costs, report=lambda path, *rest: path.write_text("x"))
try:
    with joined() as processes:
        printer = Printer(quiet=not processes.first)
        job = prepare(
            checkpoint, ModelOptions(batch=2, device="cpu"), TargetOptions((0.3,)),
            Outputs.beside(checkpoint, output), Effort(3000.0, 6, 8, None, True), processes, tools,
        )
        materials = replace(job.materials, quality=Dying())
        job = CalibrationJob(job.pipeline, materials, job.settings, job.outputs, processes, tools)
        profile = job.run()
        if processes.first:
            print(json.dumps({"profile": str(output), "satisfied": profile.target.satisfied}))
except Exception as error:
    print(error, file=sys.stderr)
    sys.exit(1)
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(
    checkpoint: Path, output: Path, rank: int, count: int, port: int, **extra: str
) -> subprocess.Popen[str]:
    """One process as torchrun starts it."""
    env = os.environ | {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", **extra,
    }  # fmt: skip
    command = [sys.executable, "-c", SCRIPT, str(checkpoint), str(output)]
    return subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def run(checkpoint: Path, output: Path, count: int, dying: int | None = None) -> list:
    """(exit code, stdout, stderr) of every process; ``dying`` is killed at its first chunk."""
    output.parent.mkdir(exist_ok=True)
    port = free_port()
    started = [
        start(checkpoint, output, r, count, port, **({"DIES_AT": "1"} if r == dying else {}))
        for r in range(count)
    ]
    return [(p.returncode, out, err) for p in started for out, err in [p.communicate(timeout=120)]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory):
    """The same job by one process; by two of which one is killed; and by two that go on."""
    folder = tmp_path_factory.mktemp("jobs")
    checkpoint = write_tiny(folder)
    one = run(checkpoint, folder / "one" / NAME, 1)
    killed = run(checkpoint, folder / "two" / NAME, 2, dying=1)
    left = {p.name: p.stat().st_mtime_ns for p in (folder / "two" / f".{NAME}.partial").iterdir()}
    before = sorted(p.name for p in (folder / "two").iterdir())
    two = run(checkpoint, folder / "two" / NAME, 2)
    return folder, one, killed, left, before, two


def test_two_processes_measure_what_one_measures(runs) -> None:
    """Rounds are of a batch for each process, so that more is known when the first are given up:
    what both measured is the same, number for number."""
    folder, one, _, _, _, two = runs
    assert one[0][0] == 0 and {code for code, *_ in two} == {0}, (one, two)
    mine, theirs = (
        load_measurements(folder / name / "m.stagevar.measurements.json") for name in ("two", "one")
    )
    assert mine.smooth.keys() == theirs.smooth.keys()
    for name, values in mine.smooth.items():
        both = min(len(values), len(theirs.smooth[name]))
        assert both >= 2 and values[:both] == theirs.smooth[name][:both]
    assert mine.dump()["ranks"] == theirs.dump()["ranks"]
    profiles = [load_profile(folder / name / NAME) for name in ("two", "one")]
    assert profiles[0].plans.keys() == profiles[1].plans.keys()
    assert profiles[0].stages == profiles[1].stages
    assert mine.validation.plans["exact"].images == theirs.validation.plans["exact"].images == 8


def test_only_the_first_speaks_and_the_folder_is_cleared(runs) -> None:
    folder, *_, two = runs
    assert json.loads(two[0][1])["profile"] == str(folder / "two" / NAME)
    assert two[1][1] == ""
    assert not (folder / "two" / f".{NAME}.partial").exists()


def test_a_process_that_dies_leaves_a_state_to_go_on_with(runs) -> None:
    _, _, killed, left, before, two = runs
    (code, _, said), (signal_code, *_) = killed
    assert signal_code == -9 and code == 1
    assert "another process of this job ended" in said and "run the same command again" in said
    assert before == [f".{NAME}.partial"]
    bases = {"bases.json", "bases.safetensors", ".lock"}
    assert {"job.json", "time.json", "chunk-00000.json"} | bases <= set(left)
    assert "chunk-00001.json" not in left  # that was the other's
    assert "resuming the calibration" in two[0][2]


def test_single_process_needs_no_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with ranks.joined() as found:
        assert found == Processes() and found.first and found.own(5)
        found.wait()
    assert local_device() is None


def test_shares_are_disjoint_and_whole() -> None:
    owners = [[Processes(r, 3).own(i) for r in range(3)] for i in range(10)]
    assert all(sum(row) == 1 for row in owners)


def test_processes_that_do_not_share_a_folder_are_told(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(Processes, "wait", lambda self: None)
    with pytest.raises(CalibrationError, match=r"not seen by process 1.*merge"):
        ResumableWork(tmp_path / "elsewhere", Processes(1, 2)).open({"a": 1}, True)


# -- merge ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return load(write_tiny(tmp_path_factory.mktemp("model")), device="cpu", profile=None)


def job(folder: Path, pipeline: Pipeline, begin: int, count: int, **changes) -> Path:
    """Measure part of one long list of inputs as a job of its own."""
    inputs = balanced_labels(pipeline.model, 6, seed=0).chunk(begin, count)
    (folder / str(begin)).mkdir(exist_ok=True)
    calibration = small_job(
        folder / str(begin), pipeline, inputs=inputs, rank_images=6, held_out=2, **changes
    )
    calibration.run()
    return calibration.outputs.measurements


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory, pipeline: Pipeline):
    folder = tmp_path_factory.mktemp("parts")
    (folder / "whole").mkdir()
    wide = {"max_loss": 10.0}  # nothing is given up
    return (
        job(folder, pipeline, 0, 2, **wide),
        job(folder, pipeline, 2, 4, **wide),
        job(folder / "whole", pipeline, 0, 6, **wide),
    )


def test_merged_jobs_are_one_job(parts, tmp_path: Path) -> None:
    first, second, whole = parts
    output = tmp_path / "joined.measurements.json"
    result = invoke("merge", first, second, "-o", output, "--json")
    assert result.exception is None, result
    assert json.loads(result.stdout)["images"] == 6
    mine, want = load_measurements(output), load_measurements(whole)
    for table in ("smooth", "score", "psnr"):
        a, b = getattr(mine, table), getattr(want, table)
        assert a.keys() == b.keys()  # each job measured the directions of features on its own
        assert all(a[name] == b[name] for name in a if not name.startswith("pca")), table
    for table in ("sensitivity", "semantic", "structural", "low", "high"):
        assert getattr(mine, table) == getattr(want, table), table
    assert mine.ranks == want.ranks
    assert mine.job.inputs.count == 6 and mine.validation == Validation()
    assert mine.job.inputs.sha256.startswith("sha256:")
    assert problem_from(mine, 0.1).drop_loss == problem_from(want, 0.1).drop_loss
    solved = invoke("solve", output, "-o", tmp_path / "p.yaml", "--json")
    assert solved.exception is None, solved
    assert load_profile(tmp_path / "p.yaml").plans.keys() == {"quality", "balanced", "fast"}


def test_merging_changes_no_part(parts) -> None:
    both = [load_measurements(path) for path in parts[:2]]
    before = [part.dump() for part in both]
    merged(both, ["a", "b"])
    assert [part.dump() for part in both] == before


def test_a_given_up_arm_stays_given_up(parts) -> None:
    both = [load_measurements(path) for path in parts[:2]]
    name = both[0].interventions[0].name
    both[0].smooth[name] = both[0].smooth[name][:1]
    found = merged(both, ["a", "b"])
    assert len(found.smooth[name]) == 1 and len(found.smooth["exact"]) == 6


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: data["job"].update(weights="sha256:" + "1" * 64), "its weights is"),
        (lambda data: data["job"].update(batch=99), "its batch is 99"),
        (lambda data: data["job"].update(features="effnet-64"), "its features is effnet-64"),
        (lambda data: data["arms"].pop(), "measured other interventions"),
    ],
)
def test_other_jobs_are_not_merged(parts, tmp_path: Path, change, said) -> None:
    data = read_json(parts[1])
    change(data)
    other = tmp_path / "other.json"
    other.write_text(json.dumps(data))
    result = invoke("merge", parts[0], other, "-o", tmp_path / "x.json")
    assert isinstance(result.exception, CalibrationError) and said in str(result.exception)
    assert not (tmp_path / "x.json").exists()


def test_the_same_inputs_are_not_counted_twice(parts, tmp_path: Path) -> None:
    result = invoke("merge", parts[0], parts[0], "-o", tmp_path / "x.json")
    assert "same inputs" in str(result.exception)
    alone = invoke("merge", parts[0], "-o", tmp_path / "x.json")
    assert "expected 2 or more" in str(alone.exception)


@pytest.mark.skipif(sys.platform == "win32", reason="locks are POSIX's")
def test_two_jobs_do_not_share_a_folder(tmp_path: Path) -> None:
    folder, job = tmp_path / "partial", {"a": 1}
    held = ResumableWork(folder)
    held.open(job, resume=True)
    held.once("piece.json", lambda: 1)
    other = (
        "import sys; from pathlib import Path\n"
        "from stagevar_probe.calibrate.resume import ResumableWork\n"
        "ResumableWork(Path(sys.argv[1])).open({'a': 1}, resume=sys.argv[2] == 'yes')"
    )
    for resume in ("yes", "no"):
        command = [sys.executable, "-c", other, str(folder), resume]
        ran = subprocess.run(command, capture_output=True, text=True)
        assert ran.returncode == 1 and "another calibration is at work" in ran.stderr
    assert (folder / "piece.json").exists()
    ResumableWork(folder).open(job, resume=True)  # the same process goes on
    held.close()
    assert not folder.exists()
    assert subprocess.run(command, capture_output=True).returncode == 0
