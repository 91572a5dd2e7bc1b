"""Profiles made before still belong: fingerprints of fixed files, computed at commit 5129b07.

pytest tests/runtime/profile/test_earlier_fingerprints.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from family_files import STATES, write_family

from stagevar_runtime import load
from stagevar_runtime.profile import load_profile

ROOT = Path(__file__).resolve().parents[3]
RECORDED: dict[str, dict[str, list[str]]] = json.loads(
    (ROOT / "tests/data/fingerprints_5129b07.json").read_text()
)
CASES = [tuple(name.split("-")) for name in RECORDED["tiny"]]


def fixed(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same names and shapes with values that no random generator decides."""
    made = {}
    for i, (name, tensor) in enumerate(sorted(state.items())):
        if "zero_k_bias" in name or not tensor.is_floating_point() or "masking" in name:
            made[name] = torch.zeros_like(tensor) if "zero_k_bias" in name else tensor
            continue
        values = (torch.arange(tensor.numel()) * 37 + i) % 101 - 50
        made[name] = (values.float() / 1024).view(tensor.shape)
    return made


def write_fixed(family: str, form: str, folder: Path) -> tuple[Path, dict[str, Any]]:
    """A tiny model of these values as files."""
    state, tokenizer = STATES[family]()
    return write_family(family, form, folder, (fixed(dict(state)), fixed(dict(tokenizer))))


@pytest.mark.parametrize(("family", "form"), CASES)
def test_tiny_checkpoints(tmp_path: Path, family: str, form: str) -> None:
    path, options = write_fixed(family, form, tmp_path)
    found = load(path, profile=None, options=options).fingerprint
    architecture, weights = RECORDED["tiny"][f"{family}-{form}"]
    assert found.fits(architecture) and found.holds(weights)


@pytest.mark.parametrize("name", sorted(RECORDED["shipped"]))
def test_shipped_checkpoints(name: str) -> None:
    path = ROOT / name
    found = load(path, profile=None).fingerprint
    architecture, weights = RECORDED["shipped"][name]
    assert found.fits(architecture) and found.holds(weights)
    model = load_profile(path.with_suffix(".stagevar.yaml")).model
    assert (model.architecture, model.weights) == (found.architecture, found.weights)
    assert model.tokenizer == found.tokenizer and (model.classes or 0) == found.classes
