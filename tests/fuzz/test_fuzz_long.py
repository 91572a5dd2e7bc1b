"""Work that is killed goes on, and a thousand generations leave memory as it was. All slow.

pytest -m slow tests/fuzz/test_fuzz_long.py
"""

from __future__ import annotations

import gc
import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from conftest import small_job, write_tiny
from family_files import inputs_of, write_family
from guarded import resident_mb

from stagevar_probe.measure.measurements import load_measurements
from stagevar_runtime import Pipeline, load
from stagevar_runtime.errors import StagevarError
from stagevar_runtime.profile import load_profile
from stagevar_runtime.profile.presets import PRESETS

pytestmark = pytest.mark.slow
KILLS, GENERATIONS = 50, 1_000
GROWTH_MB = 30  # from the second half of the generations
OUTPUTS = {"m.stagevar.yaml", "m.stagevar.measurements.json", "m.stagevar.report.html"}


def calibrating(folder: Path, pipeline: Pipeline) -> int:
    """The process of a calibration that runs by itself."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            small_job(folder, pipeline).run()
            code = 0
        finally:
            os._exit(code)
    return child


def check_whole(folder: Path) -> None:
    """What lies there was written to its end."""
    for path in folder.rglob("*.json"):
        json.loads(path.read_text())
    if (folder / "m.stagevar.yaml").exists():
        load_profile(folder / "m.stagevar.yaml")
        load_measurements(folder / "m.stagevar.measurements.json")


def test_killed_at_random_points_it_always_goes_on(tmp_path: Path) -> None:
    pipeline = load(write_tiny(tmp_path), profile=None)
    folder = tmp_path / "out"
    folder.mkdir()
    chance, whole_s, done = random.Random(0), 0.0, 0
    for kill in range(KILLS + 1):
        begun = time.monotonic()
        child = calibrating(folder, pipeline)
        if kill not in (0, KILLS):  # the first says how long it takes, the last goes on to the end
            time.sleep(chance.uniform(0, whole_s))
            os.kill(child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status in (0, -signal.SIGKILL), f"kill {kill}: ended with {status}"
        check_whole(folder)
        if status == 0:
            whole_s = whole_s or time.monotonic() - begun
            found = {path.name for path in folder.iterdir() if not path.name.endswith(".tmp")}
            assert found - {"m.stagevar.safetensors"} == OUTPUTS, kill
            done += 1
            for path in folder.iterdir():
                path.unlink()
    assert done >= 2 and not any(folder.glob("*.yaml"))


@pytest.mark.parametrize("family", ["var", "infinity"])
def test_memory_stays_as_it_was(tmp_path: Path, family: str) -> None:
    path, options = write_family(family, "pth", tmp_path)
    pipeline = load(path, profile=None, options=options)
    chance, at = random.Random(0), []
    names = [None, *(name for name in PRESETS if "int8" not in name)]
    for turn in range(GENERATIONS):
        name = chance.choice(names)
        try:
            pipeline.disable() if name is None else pipeline.enable(name)
        except StagevarError:
            pipeline.disable()
        given = inputs_of(family, chance.randint(1, 3))
        if family == "infinity":
            given["aspect_ratio"] = chance.choice((0.5, 0.8, 1.0, 1.25, 2.0))
        made = pipeline.generate(seed=turn, guidance=chance.uniform(0, 4), **given)
        assert bool(torch.isfinite(made.images).all())
        del made
        if turn % (GENERATIONS // 10) == GENERATIONS // 10 - 1:
            gc.collect()
            at.append(resident_mb())
    assert at[-1] - at[len(at) // 2 - 1] < GROWTH_MB, at
