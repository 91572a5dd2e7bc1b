"""Benchmarks/gpu.sh as far as a machine without a GPU goes.

pytest tests/test_gpu_script.py
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks/gpu.sh"
STEPS = ["tests", "2b_eager", "2b", "8b", "d30", "d30_auto", "2b_auto"]

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


def test_one_step_writes_its_json(tmp_path: Path) -> None:
    ran = run(tmp_path, PYTHON=sys.executable, STEPS="d30_auto", OMP_NUM_THREADS="1")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    said = json.loads((tmp_path / "gpu_d30_auto.json").read_text())
    assert list(said["batches"][0]["runs"]) == ["published", "exact"]
    assert [path.name for path in tmp_path.glob("*.json")] == ["gpu_d30_auto.json"]
    assert "written to" in (tmp_path / "gpu_logs/d30_auto.log").read_text()
