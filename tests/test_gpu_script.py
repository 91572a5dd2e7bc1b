"""Benchmarks/gpu.sh as far as a machine without a GPU goes.

pytest tests/test_gpu_script.py
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks/gpu.sh"
STEPS = ["tests", "kernels", "2b", "d30", "calibrate", "8b"]

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell")


def run(results: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "DRY": "1", "RESULTS": str(results), **settings}
    return subprocess.run(
        ["sh", str(SCRIPT)], env=environment, capture_output=True, text=True, timeout=120
    )


def test_a_step_that_fails_stops_no_other(tmp_path: Path) -> None:
    ran = run(tmp_path, PYTHON="false")
    assert ran.returncode == 1
    status = (tmp_path / "gpu_logs/status.txt").read_text().splitlines()
    assert [line.split(":")[0] for line in status] == STEPS
    assert all(": exit 1 after " in line for line in status)


def test_a_step_writes_its_json(tmp_path: Path) -> None:
    ran = run(tmp_path, PYTHON=sys.executable, STEPS="kernels 8b", OMP_NUM_THREADS="1")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    said = json.loads((tmp_path / "gpu_8b.json").read_text())
    assert list(said["batches"][0]["runs"]) == ["published", "exact", "balanced-like"]
    assert sorted(path.name for path in tmp_path.glob("*.json")) == [
        "gpu_8b.json",
        "gpu_kernels.json",
    ]
    assert "written to" in (tmp_path / "gpu_logs/8b.log").read_text()


def test_the_steps_fit_five_minutes() -> None:
    limits = re.findall(r"^\s*(?:step|bench) \w+ (\d+) ", SCRIPT.read_text(), re.MULTILINE)
    assert len(limits) == len(STEPS) and sum(map(int, limits)) <= 300
