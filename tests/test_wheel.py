"""The wheel and the sdist: what is in them, and the wheel at work in a clean environment.

pytest -m slow tests/test_wheel.py
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCENES = ROOT / "checkpoints/scenes/scenes.safetensors"
SCRIPT = f"""
import sys, stagevar_runtime
from stagevar_runtime.profile.discovery import shipped_folder
pipe = stagevar_runtime.load({str(SCENES)!r}, profile=None)
pipe("a red circle").images[0].save("picture.png")
print(stagevar_runtime.__file__)
print(*sorted(path.name for path in shipped_folder().glob("*.yaml")))
print(*sorted({{"transformers", "click", "huggingface_hub", "scipy"}} & set(sys.modules)), "none")
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and, built from it, the sdist."""
    pytest.importorskip("build", reason="needs the package build: pip install build")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.mark.slow
def test_what_is_in_them(built: Path) -> None:
    (wheel,), (sdist,) = built.glob("*.whl"), built.glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    tracked = subprocess.run(
        ["git", "ls-files", "stagevar_runtime", "stagevar_probe"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert {*tracked} <= names
    shipped = {f"stagevar_runtime/profiles/{p.name}" for p in (ROOT / "profiles").glob("*.yaml")}
    assert shipped and shipped <= names
    assert not any(name.startswith(("tests/", "training/", "checkpoints/")) for name in names)
    with tarfile.open(sdist) as archive:
        inner = {name.partition("/")[2] for name in archive.getnames()}
    assert {"README.md", "LICENSE", "pyproject.toml", *tracked} <= inner


@pytest.mark.slow
def test_the_wheel_works_alone(built: Path, tmp_path: Path) -> None:
    """Without extras: what it depends on is taken from here, so that nothing is downloaded."""
    (wheel,) = built.glob("*.whl")
    venv.create(tmp_path / "env", with_pip=True)
    python = next((tmp_path / "env").glob("*/python"), tmp_path / "env/Scripts/python.exe")
    install = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    own = next((tmp_path / "env").rglob("site-packages"))
    here = {str(Path(path)) for path in sys.path if path.endswith("site-packages")}
    (own / "here.pth").write_text("\n".join(sorted(here)) + "\n", encoding="utf-8")
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "STAGEVAR_PROFILE")}
    done = subprocess.run(
        [str(python), "-c", SCRIPT],
        cwd=tmp_path,
        env=clean,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    where, profiles, loaded = done.stdout.splitlines()
    assert Path(where).is_relative_to(tmp_path / "env")
    assert profiles.split() == sorted(p.name for p in (ROOT / "profiles").glob("*.yaml"))
    assert loaded == "none"
    assert (tmp_path / "picture.png").stat().st_size > 0
