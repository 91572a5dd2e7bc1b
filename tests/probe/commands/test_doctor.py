"""``doctor`` and what ``inspect`` says of memory.

pytest tests/probe/commands/test_doctor.py
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from conftest import invoke

from stagevar_probe.commands import doctor as module
from stagevar_runtime import load
from stagevar_runtime.profile import load_profile


def test_doctor_says_what_is_here_and_what_brings_the_rest(monkeypatch) -> None:
    monkeypatch.setattr(module, "obstacle", lambda kind, *where: "" if kind == "int8" else "slow")
    there = {"huggingface_hub", "triton"}
    monkeypatch.setattr(module, "find_spec", lambda name: object() if name in there else None)
    said = invoke("doctor")
    assert said.exception is None
    assert f"torch {torch.__version__}" in said.output and "cpu: " in said.output
    lines = {line.split()[0]: line for line in said.output.splitlines() if line.strip()}
    assert lines["hub"].endswith("there")
    assert lines["t5"].endswith("pip install 'stagevar[t5]'")
    assert "faster here" in lines["int8"] and lines["fp8"].endswith("no gain: slow")
    result = json.loads(invoke("doctor", "--json").output)
    assert result["extras"]["hub"] and "studio" in result["missing"]
    assert result["speed"]["products"] in ("onednn", "torch")


def test_extras_of_doctor_are_those_of_the_project() -> None:
    text = (Path(__file__).resolve().parents[3] / "pyproject.toml").read_text(encoding="utf-8")
    declared = text.split("[project.optional-dependencies]")[1].split("\n[")[0]
    for name in module.EXTRAS:
        assert f"\n{name} = [" in declared, name


def test_inspect_tells_the_memory_of_every_plan(calibrated: Path) -> None:
    result = json.loads(invoke("inspect", calibrated, "--json").output)
    plans = load_profile(calibrated.with_suffix(".stagevar.yaml")).plans
    assert list(result["memory"]) == ["exact", *plans]
    rows = result["memory"]["exact"]
    assert [row["batch"] for row in rows] == [1, 4, 8]
    assert rows[1]["cache"] == pytest.approx(4 * rows[0]["cache"])
    assert rows[2]["weights"] == rows[0]["weights"] > 0 and rows[0]["text"] == 0
    assert result["weights"] == load(calibrated).fingerprint.weights
    half = json.loads(invoke("inspect", calibrated, "--json", "--dtype", "bfloat16").output)
    assert half["memory"]["exact"][0]["cache"] == pytest.approx(rows[0]["cache"] / 2)
    text = invoke("inspect", calibrated).output
    assert "keys, values" in text and re.search(r"^exact +8 ", text, re.MULTILINE)
