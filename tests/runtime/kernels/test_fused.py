"""pytest tests/runtime/kernels/test_fused.py — fused kernels, interpreted and compiled."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
CHIPS = (80, 90, 120)
SHARED_BYTES = 48 * 1024  # every GPU gives a block that much without asking
triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")


def run(*args: str, **environment: str) -> str:
    inherited = {name: value for name, value in os.environ.items() if "COV" not in name}
    done = subprocess.run(
        [sys.executable, *args],
        env={**inherited, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    return done.stdout


@triton
def test_kernels_equal_their_definitions_when_interpreted() -> None:
    options = ("-p", "no:cacheprovider", "--no-header", "-W", "default")
    said = run("-m", "pytest", *options, str(HERE / "interpreted.py"), TRITON_INTERPRET="1")
    assert "passed" in said


@triton
@pytest.mark.slow
def test_families_run_on_interpreted_kernels() -> None:
    options = ("-m", "slow", "-p", "no:cacheprovider", "--no-header", "-W", "default")
    said = run("-m", "pytest", *options, str(HERE / "interpreted.py"), TRITON_INTERPRET="1")
    assert "6 passed" in said


@triton
@pytest.mark.parametrize(
    ("chip", "how"),
    [("sm_90", "few"), *(pytest.param(f"sm_{n}", "all", marks=pytest.mark.slow) for n in CHIPS)],
)
def test_kernels_compile_without_spilling(chip: str, how: str, tmp_path: Path) -> None:
    script = str(HERE / "compiling.py")
    said = run(script, chip, how, TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path))
    made = json.loads(said)
    assert len({kernel["name"].split()[0] for kernel in made}) == 6
    wrong = [k for k in made if k["spilled"] or k["shared"] > SHARED_BYTES]
    assert not wrong
