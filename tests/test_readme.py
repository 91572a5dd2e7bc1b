"""The commands of README.md parse, and the cheap ones run.

pytest tests/test_readme.py
"""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import click
import pytest
from conftest import invoke

from stagevar_probe.cli import cli

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
CHEAP = ("--help", "-h", "--version")


def commands(text: str) -> list[list[str]]:
    """Arguments of every ``stagevar-probe`` command in the fenced blocks, comments left out."""
    found = []
    for language, body in FENCE.findall(text):
        if language not in ("", "sh", "bash", "shell", "console"):
            continue
        for line in body.replace("\\\n", " ").splitlines():
            words = shlex.split(line.strip().removeprefix("$ "), comments=True)
            while words and re.fullmatch(r"\w+=\S*", words[0]):
                words = words[1:]  # variables before the command
            program = Path(words[0]).name if words else ""
            if program == "stagevar-probe":
                found.append(words[1:])
            elif words[:3] == ["python", "-m", "stagevar_probe"]:
                found.append(words[3:])
    return found


def written() -> list[list[str]]:
    return commands(README.read_text(encoding="utf-8")) if README.exists() else []


def parse(arguments: list[str]) -> None:
    """Parse without running. Raises click.ClickException for what would be a usage error."""
    if not set(arguments) & {*CHEAP}:
        name, command, rest = cli.resolve_command(click.Context(cli), list(arguments))
        assert name is not None and command is not None
        command.make_context(name, rest).close()


def test_commands_are_found_and_parsed() -> None:
    text = (
        "stagevar-probe outside\n```sh\n$ stagevar-probe inspect var  # a family\n"
        "OMP_NUM_THREADS=2 .venv/bin/stagevar-probe calibrate \\\n  m.pth --count 8\n```\n"
        "```python\nstagevar-probe not_this\n```\n```\npython -m stagevar_probe --version\n```\n"
    )
    assert commands(text) == [
        ["inspect", "var"],
        ["calibrate", "m.pth", "--count", "8"],
        ["--version"],
    ]
    parse(["calibrate", "m.pth", "--count", "8"])
    for wrong in (["calibrate"], ["calibrat", "m.pth"], ["solve", "m.json", "--max-los", "1"]):
        with pytest.raises(click.ClickException):
            parse(wrong)


@pytest.mark.skipif(not README.exists(), reason="there is no README.md yet")
def test_readme_shows_the_main_commands() -> None:
    shown = {arguments[0] for arguments in written() if arguments}
    assert {"calibrate", "generate"} <= shown


@pytest.mark.parametrize("arguments", written(), ids=" ".join)
def test_readme_command(arguments: list[str]) -> None:
    parse(arguments)
    family = arguments[:1] == ["inspect"] and arguments[1:] and "." not in arguments[1]
    if set(arguments) & {*CHEAP} or family:
        result = invoke(*arguments)
        assert result.exception is None and result.output


@pytest.mark.parametrize(
    "target",
    sorted(set(re.findall(r"make ([\w-]+)", README.read_text()))) if README.exists() else [],
)
def test_readme_make_targets_exist(target: str) -> None:
    made = subprocess.run(
        ["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr
