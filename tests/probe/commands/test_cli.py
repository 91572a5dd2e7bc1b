"""The commands as a user meets them: output, codes, errors.

pytest tests/probe/commands/test_cli.py
"""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from click.testing import Result
from conftest import SMALL, invoke, var_states, write_tiny
from PIL import Image

from stagevar_probe import __main__ as program
from stagevar_probe.cli import COMMANDS, cli
from stagevar_probe.commands import inspect as inspect_command
from stagevar_probe.commands import options as command_options
from stagevar_probe.measure.measurements import load_measurements
from stagevar_runtime.errors import CheckpointError, StagevarError
from stagevar_runtime.profile import PlanEntry, load_profile, write_profile

ROOT = Path(__file__).resolve().parents[3]


def refused(result: Result, code: int = 1) -> str:
    """The one clear line a user is told."""
    error = result.exception
    assert isinstance(error, StagevarError), result
    assert error.exit_code == code
    said = str(error)
    assert said and "\n" not in said and len(said) < 600
    assert result.stdout == ""
    return said


def done(result: Result) -> Result:
    assert result.exception is None, result.exception
    return result


def picture(path: Path) -> Image.Image:
    with Image.open(path) as opened:
        opened.load()
        assert opened.format == "PNG"
        return opened.copy()


def python(*args: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "stagevar_probe", *map(str, args)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )


# -- help and usage ---------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_names_every_command(flag: str) -> None:
    result = done(invoke(flag))
    assert all(name in result.output for name in COMMANDS) and "Start with" in result.output


def test_help_reads_no_command_and_no_torch() -> None:
    code = (
        "import sys\nfrom stagevar_probe.cli import cli\n"
        "cli.main(['--help'], standalone_mode=False)\n"
        "read = [name for name in sys.modules if name.startswith('stagevar_probe.commands')]\n"
        "assert not read and 'torch' not in sys.modules, read"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True)


def test_every_file_of_commands_is_a_command_and_help_says_its_first_sentence() -> None:
    files = {path.stem for path in (ROOT / "stagevar_probe/commands").glob("*.py")}
    assert set(COMMANDS) == files - {"__init__", "options", "pairs", "parameters"}
    context = click.Context(cli)
    for name, sentence in COMMANDS.items():
        command = cli.get_command(context, name)
        assert command is not None and command.help is not None
        assert " ".join(command.help.split()).startswith(sentence)
    assert cli.get_command(context, "nonsense") is None


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command(command: str) -> None:
    text = done(invoke(command, "--help")).output
    assert text.startswith(f"Usage: cli {command}")
    for option in ("--json", "-q, --quiet", "-v, --verbose"):
        assert option in text
    for line in text.split("Options:")[1].strip().splitlines():
        assert line.strip()


@pytest.mark.parametrize(
    "args",
    [
        ("calibrate",),
        ("nonsense",),
        ("calibrate", "x.pth", "--dtype", "float8"),
        ("calibrate", "x.pth", "--seed", "-1"),
        ("calibrate", "x.pth", "--count", "1"),
        ("calibrate", "x.pth", "--time", "soon"),
        ("calibrate", "x.pth", "--max-loss", ".01+-1"),
        ("calibrate", "x.pth", "--also", "counting"),
        ("calibrate", "x.pth", "--max-loss", "-0.1"),
        ("generate", "x.pth", "--batch", "0"),
        ("generate", "x.pth", "--metric", "m:f"),
        ("validate", "p.yaml"),
        ("solve", "m.json", "--surprise"),
    ],
    ids=" ".join,
)
def test_usage_errors_exit_2(args: tuple[str, ...], monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["stagevar-probe", *args])
    with pytest.raises(SystemExit) as stopped:
        program.main()
    assert stopped.value.code == 2
    out, err = capsys.readouterr()
    assert out == "" and "Error: " in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("error", "code"), [(CheckpointError("x.pth: broken"), 1), (KeyboardInterrupt(), 130)]
)
def test_errors_are_one_line(tmp_path, monkeypatch, capsys, error, code) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(inspect_command, "families", fail)
    monkeypatch.setattr(sys, "argv", ["stagevar-probe", "inspect", "x.pth"])
    with pytest.raises(SystemExit) as stopped:
        program.main()
    assert stopped.value.code == code
    out, err = capsys.readouterr()
    assert out == "" and len(err.strip().splitlines()) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a full device")
@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["inspect", "var"]])
def test_a_full_disk_on_stdout_is_one_line(arguments: list[str]) -> None:
    with open("/dev/full", "w") as full:
        ran = subprocess.run(
            [sys.executable, "-m", "stagevar_probe", *arguments],
            cwd=ROOT,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert ran.returncode == 1
    assert ran.stderr == "stagevar-probe: No space left on device\n"


def test_version() -> None:
    assert "stagevar-probe, version 0.1.0" in done(invoke("--version")).output


# -- real processes -----------------------------------------------------------------------------


def test_json_is_one_document_and_text_goes_to_stderr(calibrated: Path) -> None:
    made = python("generate", calibrated, "--json", "-o", "made.png", cwd=calibrated.parent)
    assert made.returncode == 0, made.stderr
    said = json.loads(made.stdout)
    assert said["plan"] == "balanced" and "beside the checkpoint" in said["profile"]
    assert "var_tiny.stagevar.yaml (beside the checkpoint), plan balanced" in made.stderr
    assert (calibrated.parent / said["output"]).exists()


@pytest.mark.parametrize(
    ("name", "code", "expected"),
    [
        ("missing.pth", 1, "no such file"),
        ("text.pth", 1, "not a checkpoint"),
        ("vae_tiny.pth", 3, "image tokenizer"),
        ("other.stagevar.yaml", 4, "expected"),
    ],
)
def test_processes_end_with_the_right_code_and_one_line(
    calibrated: Path, name: str, code: int, expected: str
) -> None:
    folder = calibrated.parent
    (folder / "text.pth").write_text("just words")
    (folder / "other.stagevar.yaml").write_text("kind: stagevar-profile\nplans: [}")
    made = python("inspect", name, cwd=folder)
    assert made.returncode == code
    assert made.stdout == "" and expected in made.stderr
    assert len(made.stderr.strip().splitlines()) == 1


# -- generate -----------------------------------------------------------------------------------


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


# -- bad checkpoints ------------------------------------------------------------------------------


class Exploit:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.target), "w")


def bad_checkpoint(kind: str, good: Path) -> Path:
    path = good.with_name("var_bad.pth")
    transformer, _ = var_states()
    if kind == "truncated":
        path.write_bytes(good.read_bytes()[:-5000])
    elif kind == "text":
        path.write_text("these are words")
    elif kind == "NaN":
        transformer["blocks.1.attn.proj.weight"][3, 4] = torch.nan
        torch.save(transformer, path)
    elif kind == "pickle":
        path.write_bytes(pickle.dumps({"w": Exploit(good.with_name("pwned"))}, protocol=2))
    elif kind == "incomplete":
        del transformer["blocks.1.attn.proj.weight"]
        torch.save(transformer, path)
    elif kind == "shape":
        transformer["blocks.1.attn.proj.weight"] = torch.zeros(3, 3)
        torch.save(transformer, path)
    elif kind == "unknown":
        torch.save({"layer.weight": torch.zeros(2, 2)}, path)
    elif kind == "directory":
        path = good.with_name("empty")
        path.mkdir()
    elif kind == "tokenizer":
        path = good.with_name("vae_tiny.pth")
    return path


OUTPUT = {"calibrate": ".yaml", "generate": ".png"}


@pytest.mark.parametrize("command", ["generate", "calibrate", "inspect"])
@pytest.mark.parametrize(
    ("kind", "code", "expected"),
    [
        ("truncated", 1, "truncated"),
        ("text", 1, "not a checkpoint (starts with b'these are wo')"),
        ("NaN", 1, "tensor 'blocks.1.attn.proj.weight' holds NaN"),
        ("pickle", 1, "could run code; refused"),
        ("incomplete", 1, "blocks.1.attn.proj.weight"),
        ("shape", 1, "blocks.1.attn.proj.weight"),
        ("unknown", 3, "no known family has tensors like layer.weight"),
        ("directory", 1, "a directory without a checkpoint"),
        ("missing", 1, "no such file"),
        ("tokenizer", 3, "This is an image tokenizer"),
    ],
)
def test_bad_checkpoints(
    tiny_files: Path, command: str, kind: str, code: int, expected: str
) -> None:
    path = bad_checkpoint(kind, tiny_files)
    before = sorted(tiny_files.parent.iterdir())
    options = () if command == "inspect" else ("-o", tiny_files.with_name(f"out{OUTPUT[command]}"))
    said = refused(invoke(command, path, *options), code)
    assert expected in said and path.name in said
    assert sorted(tiny_files.parent.iterdir()) == before  # nothing ran, nothing was left behind


def test_wrong_and_missing_tokenizer(tiny_files: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    write_tiny(other, vocabulary=64)
    wrong = invoke("generate", tiny_files, "--tokenizer", other / "vae_tiny.pth")
    assert "pass its own tokenizer" in refused(wrong)
    itself = invoke("generate", tiny_files, "--tokenizer", tiny_files)
    assert "tokenizer" in refused(itself)
    moved = tiny_files.with_name("vae_tiny.pth").rename(other / "moved.pth")
    assert "--tokenizer FILE" in refused(invoke("inspect", tiny_files))
    assert "depth 2" in done(invoke("inspect", tiny_files, "--tokenizer", moved)).stdout


# -- calibrate: told before the work -----------------------------------------------------------


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the model was loaded first")

    monkeypatch.setattr(command_options, "load", load)


@pytest.mark.parametrize("command", ["calibrate", "generate"])
@pytest.mark.parametrize("where", ["none/out.yaml", "file/out.yaml", "folder"])
def test_unwritable_output_is_told_before_the_work(
    tiny_files: Path, no_model: None, command: str, where: str
) -> None:
    (tiny_files.parent / "folder").mkdir()
    (tiny_files.parent / "file").touch()
    output = tiny_files.parent / where
    assert str(output) in refused(invoke(command, tiny_files, "--output", output))


METRICS = """
import torch
not_a_function = 3
def shape(images, items, exact): return torch.zeros(len(images), 2)
def nan(images, items, exact): return torch.full((len(images),), torch.nan)
def none(images, items, exact): return None
def fails(images, items, exact): raise ZeroDivisionError("by zero\\nin a metric")
"""


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("nowhere:f", "No module named 'nowhere'"),
        ("mine:absent", "has no attribute 'absent'"),
        ("mine:not_a_function", "expected a function"),
        ("syntax:f", "SyntaxError"),
        (":f", "expected module:function"),
        ("mine:shape", "gave shape (6,) for 3 images"),
        ("mine:nan", "expected one finite score each"),
        ("mine:none", "mine:none failed: "),
        ("mine:fails", "ZeroDivisionError: by zero in a metric"),
        ("agreement", "var_tiny.scorer.safetensors beside it"),
        ("beauty", "expected module:function"),
    ],
)
def test_bad_metrics(tiny_files: Path, tmp_path, monkeypatch, metric: str, expected: str) -> None:
    (tmp_path / "mine.py").write_text(METRICS)
    (tmp_path / "syntax.py").write_text("def f(:")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(tmp_path)])
    for name in ("mine", "syntax"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert expected in refused(invoke("calibrate", tiny_files, "--metric", metric, *SMALL))
    assert not tiny_files.with_suffix(".stagevar.yaml").exists()


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("none.txt", None, "cannot be read"),
        ("words.txt", "a cat\n", "this model takes class numbers"),
        ("high.txt", "1\n7\n", "got [7]"),
        ("empty.txt", "\n", "no label"),
        ("bad.jsonl", '{"label": 1}\n{"text": 2}\n', "line 2"),
    ],
)
def test_bad_prompts(tiny_files: Path, tmp_path: Path, name, content, expected) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    assert expected in refused(invoke("calibrate", tiny_files, "--prompts", tmp_path / name))


def test_a_kind_that_no_prompt_is_of_is_refused(tiny_files: Path) -> None:
    said = refused(invoke("calibrate", tiny_files, "--also", "counting=.02"))
    assert "--also counting: no prompt of" in said


def test_dry_run_writes_nothing(tiny_files: Path) -> None:
    before = sorted(tiny_files.parent.iterdir())
    result = done(invoke("calibrate", tiny_files, "--dry-run", "--json", *SMALL))
    assert json.loads(result.stdout)["seconds_estimate"] > 0
    assert sorted(tiny_files.parent.iterdir()) == before


def test_calibrate_json_and_labels_file(tiny_files: Path, tmp_path: Path) -> None:
    """Unguided, labels from a file, another output: everything lands where it was asked."""
    (tmp_path / "labels.jsonl").write_text('{"label": 1}\n{"label": 3}\n')
    (tmp_path / "out").mkdir()
    result = invoke(
        *("calibrate", tiny_files, "--json", "--guidance", 0, "--max-loss", 0.3, *SMALL),
        *("--prompts", tmp_path / "labels.jsonl", "-o", tmp_path / "out" / "p.yaml"),
    )
    said = json.loads(done(result).stdout)
    assert result.return_value == (0 if said["satisfied"] is True else 5)
    assert said["max_loss"] == 0.3 and "interventions" in result.stderr
    written = {"p.yaml", "p.measurements.json", "p.report.html"}
    written |= {Path(said["bases"]).name} if "bases" in said else set()  # by times
    assert {path.name for path in (tmp_path / "out").iterdir()} == written
    measured = load_measurements(said["measurements"])
    assert measured.job["inputs"]["name"] == "labels.jsonl"
    assert not any(
        intervention.variant for intervention in measured.interventions
    )  # nothing to drop without guidance
    assert measured.sensitivity == {}


# -- what calibrate wrote -----------------------------------------------------------------------


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
    assert default["max_loss"] == load_measurements(path).job["max_loss"]


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
