"""The program as a user meets it: help, usage, codes, one line of an error.

pytest tests/probe/commands/test_cli.py
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from conftest import invoke
from invoked import done

from stagevar_probe import __main__ as program
from stagevar_probe.cli import COMMANDS, cli
from stagevar_probe.commands import inspect as inspect_command
from stagevar_runtime.errors import CheckpointError

ROOT = Path(__file__).resolve().parents[3]


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
