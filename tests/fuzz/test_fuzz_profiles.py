"""Mutated profiles: refused in our own words, or read, written alike, and run to finite pictures.

pytest tests/fuzz/test_fuzz_profiles.py            # -m slow: all 10⁵
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import write_tiny
from guarded import typed
from mutations import damaged, mutated

from stagevar_runtime import Pipeline, load
from stagevar_runtime.errors import ProfileError
from stagevar_runtime.profile import Profile, dump_profile, parse_profile
from stagevar_runtime.profile.fingerprint import schedule

COUNTS = [2_000, pytest.param(100_000, marks=pytest.mark.slow)]
RUN = 12  # one of so many accepted profiles is run


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return load(write_tiny(tmp_path_factory.mktemp("var")), profile=None)


def rich(pipeline: Pipeline) -> dict[str, Any]:
    """A profile with a value in every field, of the tiny model."""
    found, sizes = pipeline.fingerprint, schedule(pipeline.model.scales())
    estimate = {"value": 0.5, "ci95": [0.4, 0.6]}
    tokens = {"keep": [0.5, 0.25], "select": "leverage", "restore": "lift"}
    steps = [
        {"scale": 0, "guidance": "full", "guidance_scale": 2.5, "temperature": 0.9},
        {"scale": 1, "guidance": "full", "null_keep": 0.5},
        {"scale": 2, "guidance": "cond", "tokens": tokens, "precision": "int8"},
        {"scale": 3, "features": {"rank": 8, "basis": "random", "seed": 3, "layers": ["qkv"]}},
    ]
    expected = {
        **{"metric": "agreement", "loss": 0.004, "loss_ci95": [0.001, 0.007]},
        **{"loss_bounds": [0.0, 0.01], "speedup_loop": 1.5, "speedup_total": [1.2, 1.4]},
        **{"ms_loop": [9, 20], "ms_total": 30, "batch": [1, 8], "images": 64},
    }
    beside = {"metric": "x", "max_loss": 0.1, "margin": 0.01, "tag": "t", "satisfied": "unproven"}
    row = {"scale": 1, "tokens": 4, "cfg_sensitivity": estimate, "rank_pca": [1, 0.5]}
    return {
        "schema_version": 2,
        "kind": "stagevar-profile",
        "created_by": {"tool": "t", "version": "1", "at": "2026-01-01T00:00:00Z"},
        "model": {
            **{"family": "var", "architecture": found.architecture, "weights": found.weights},
            **{"tokenizer": found.tokenizer, "classes": 5, "schedules": {"4x4": sizes}},
        },
        "provenance": "measured",
        "calibration": {
            "prompts": {"name": "p", "count": 64, "held_out": 64},
            **{"seeds": [0], "dtype": "float32", "guidance": 3, "features": "f", "likeness": "l"},
            "sampling": {"temperature": 1.0, "top_k": [9, 9, 9, 9], "top_p": 0.97},
            "hardware": {"device": "cpu", "batch": 1},
        },
        "stages": {"structure": {"scale": 1, "ci95": [1, 2], "evidence": "drift"}},
        "target": {
            **{"metric": "m", "max_loss": 0.01, "margin": 0.01, "min_speedup": 1.5, "max_ms": 9.0},
            **{"satisfied": True, "more_inputs": 3, "losing": ["a"], "beside": [beside]},
        },
        "default_plan": "balanced",
        "plans": {
            "balanced": {"steps": steps, "expected": expected},
            "fast": {"steps": [{"scale": 2, "guidance": "delta"}, {"scale": 3, "run": "skip"}]},
            "own": {"steps": [{"scale": 3, "guidance": "null"}], "unproven": True},
        },
        "measurements": [row, {"scale": 3, "tokens": 16, "rank_pca": [0.5, 0.5], "ms": estimate}],
    }


def check(pipeline: Pipeline, profile: Profile, run: bool) -> None:
    """A profile that was accepted: written it reads the same, and its plans run or are refused."""
    again = parse_profile(dump_profile(profile))
    assert dump_profile(again) == dump_profile(profile)
    names = [*profile.plans, "stagevar", "fastvar"] if run else []
    try:
        pipeline.use_profile(profile)
    except ProfileError:
        return
    for name in names:
        typed(f"plan {name!r}", lambda name=name: pipeline.enable(name))
        made = typed(f"plan {name!r}", lambda: pipeline.generate(labels=[1]))
        assert made is None or bool(made.images.isfinite().all()), name


@pytest.mark.parametrize("count", COUNTS)
def test_profiles(pipeline: Pipeline, count: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("CRITICAL")
    base = rich(pipeline)
    assert parse_profile(json.dumps(base)).plans.keys() == base["plans"].keys()
    text = yaml.safe_dump(base).encode()
    accepted = 0
    for number in range(count):
        chance = random.Random(number)
        if number % 4 == 3:
            content = damaged(text, chance).decode("utf-8", "replace")
        else:
            content = json.dumps(mutated(base, chance))
        what = f"case {number}"
        profile = typed(what, lambda content=content: parse_profile(content, "p.yaml"))
        if profile is not None:
            accepted += 1
            run = accepted % RUN == 0
            typed(what, lambda p=profile, run=run: check(pipeline, p, run))
    assert accepted > count // 20, accepted


def test_profiles_beside_a_checkpoint(calibrated: Path, owned: Path) -> None:
    """As files, with what :func:`load` does of them."""
    path = calibrated.with_name("var_tiny.stagevar.yaml")
    content = path.read_bytes()
    for number in range(20):
        path.write_bytes(damaged(content, random.Random(number)))
        typed(f"case {number}", lambda: load(calibrated))
    assert not owned.exists()
