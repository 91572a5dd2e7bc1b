"""Commands that are given a repository's name instead of a path.

pytest tests/probe/commands/test_hub_names.py
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import invoke
from hub_server import Hub

from stagevar_probe.calibrate.job import Outputs
from stagevar_probe.files import beside
from stagevar_runtime import CheckpointError
from stagevar_runtime.hub import local_checkpoint


def test_commands_take_a_name_and_write_here(
    hub: Hub, calibrated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("owner/name", {f.name: f.read_bytes() for f in calibrated.parent.iterdir()})
    monkeypatch.chdir(tmp_path)
    said = invoke("inspect", "owner/name", "--json")
    assert said.exception is None and json.loads(said.output)["family"] == "var"
    profile = invoke("inspect", "owner/name:var_tiny.stagevar.yaml", "--json")
    assert json.loads(profile.output)["kind"] == "stagevar-profile"
    made = invoke("generate", "owner/name", "--labels", "1", "-o", "one.png", "-q")
    assert made.exception is None and (tmp_path / "one.png").is_file()
    path = local_checkpoint("owner/name")
    assert Outputs.beside(path).profile == Path("var_tiny.stagevar.yaml")
    assert beside(path, "compare.html") == Path("var_tiny.compare.html")
    assert isinstance(invoke("inspect", "owner/nothing").exception, CheckpointError)
