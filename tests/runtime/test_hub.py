"""Fetching from the Hub, against a small one on a loopback port.

pytest tests/runtime/test_hub.py
"""

from __future__ import annotations

import logging
import os
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import write_tiny
from hub_server import Files, Hub
from tiny_files import RED, seeded, write_infinity

from stagevar_runtime import CheckpointError, Pipeline, Profile, ProfileError, StagevarError, load
from stagevar_runtime.hub import HubName, local_checkpoint, output_beside, snapshot_of
from stagevar_runtime.profile import CreatedBy, ModelRef, PlanEntry, PlanStep, dump_profile
from stagevar_runtime.profile.fingerprint import schedule_name
from stagevar_runtime.source import main_checkpoints

ROOT = Path(__file__).resolve().parents[2]
FENCED = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
constants = pytest.importorskip("huggingface_hub.constants")


@pytest.fixture(scope="module")
def infinity(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_infinity(tmp_path_factory.mktemp("infinity"))


def profile_of(pipe: Pipeline, family: str, scales: Any) -> Profile:
    """One that drops guidance at the last scale."""
    found = pipe.fingerprint
    return Profile(
        created_by=CreatedBy(tool="test", version="1"),
        model=ModelRef(
            family=family,
            architecture=found.architecture,
            weights=found.weights,
            schedules={schedule_name(scales): tuple((s.height, s.width) for s in scales)},
        ),
        provenance="measured",
        plans={"balanced": PlanEntry(steps=(PlanStep(scale=3, guidance="cond"),))},
    )


def content(folder: Path, *names: str) -> Files:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    found = {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}
    return {name: data for name, data in found.items() if not names or name in names}


def picture(pipe: Pipeline) -> torch.Tensor:
    return pipe(RED, generator=seeded(7), output_type="pt").images


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("owner/name", HubName("owner/name")),
        ("owner/name@v1.0", HubName("owner/name", "v1.0")),
        ("owner/name:var.pth", HubName("owner/name", None, "var.pth")),
        ("o-w.n/na_me@a/b:sub/var.pth", HubName("o-w.n/na_me", "a/b", "sub/var.pth")),
        ("models/var.pth", None),
        ("tests/nothing", None),  # in a folder that exists
        ("var.pth", None),
        ("/owner/name", None),
        ("a/b/c", None),
        ("../name", None),
    ],
)
def test_names_are_told_from_paths(text: str, name: HubName | None) -> None:
    assert HubName.parse(text) == name
    assert name is None or str(name) == text


def test_a_model_is_recognised_among_files() -> None:
    names = ["var_d16.pth", "vae_x.pth", "README.md", "var_d16.stagevar.safetensors"]
    assert main_checkpoints(names) == ["var_d16.pth"]
    shards = ["big/model-00001-of-00002.safetensors", "big/model.safetensors.index.json"]
    assert main_checkpoints([*shards, "big/vae_x.pth", "scenes.words.safetensors"]) == ["big"]
    assert main_checkpoints(["llm/model.safetensors", "tokenizer/pytorch_model.bin"]) == ["llm"]
    assert main_checkpoints(["model.safetensors", "config.json"]) == [""]


def test_a_model_is_fetched_and_draws_the_same(hub: Hub, infinity: Path) -> None:
    more = {"README.md": b"# hello", "other/big.txt": b"x", "optimizer.txt": b"x"}
    hub.add("owner/name", content(infinity.parent) | more)
    pipe = load("owner/name", profile=None)
    assert torch.equal(picture(pipe), picture(load(infinity, profile=None)))
    fetched = {line.rsplit("/", 1)[1] for line in hub.downloads()}
    assert fetched == {"tiny.safetensors", "tiny.words.safetensors", "infinity_vae_tiny.pth"}
    assert snapshot_of(pipe.path) is not None


def test_what_is_cached_needs_no_hub(
    hub: Hub, infinity: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hub.add("owner/name", content(infinity.parent))
    first = picture(load("owner/name", profile=None))
    hub.asked.clear()
    assert torch.equal(picture(load("owner/name", profile=None, local_files_only=True)), first)
    with monkeypatch.context() as offline:
        offline.setattr(constants, "HF_HUB_OFFLINE", True)
        assert torch.equal(picture(load("owner/name", profile=None)), first)
        with pytest.raises(CheckpointError, match=r"owner/other.*not in the Hub's cache"):
            load("owner/other")
    assert hub.asked == []
    hub.close()
    caplog.set_level(logging.WARNING, "stagevar_runtime")
    assert torch.equal(picture(load("owner/name", profile=None)), first)
    assert "cannot be reached" in caplog.text


def test_revisions_and_files_are_named(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one = content(write_tiny(tmp_path / "one").parent)
    two = content(write_tiny(tmp_path / "two", seed=5).parent)
    several = one | {"var_other.pth": two["var_tiny.pth"], "vae_more.pth": one["vae_tiny.pth"]}
    hub.add("owner/name", one)
    hub.add("owner/name", two, revision="v2")
    hub.add("owner/several", several)
    prints = {
        name: load(name, profile=None).fingerprint.weights
        for name in ("owner/name", "owner/name@v2")
    }
    assert len(set(prints.values())) == 2
    with pytest.raises(CheckpointError, match=r"var_other.pth, var_tiny.pth, expected one check"):
        load("owner/several")
    assert not any("/several/" in line for line in hub.downloads())  # said before any download
    with pytest.raises(CheckpointError, match=r"vae_more.pth, vae_tiny.pth, expected one image"):
        load("owner/several:var_other.pth")
    found = load("owner/several:var_other.pth", "owner/several:vae_tiny.pth", profile=None)
    assert found.fingerprint.weights == prints["owner/name@v2"]
    with pytest.raises(CheckpointError, match=r"no such file in it, it holds var_other\.pth"):
        load("owner/several:var_d99.pth")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("owner/missing", "no such repository on the Hub, or a private one.*hf auth login"),
        ("owner/gated", "is gated: accept its terms"),
        ("owner/name@v9", "no such revision"),
        ("owner/empty", "holds none, expected one checkpoint"),
    ],
)
def test_refusals_say_what_to_do(hub: Hub, name: str, said: str) -> None:
    hub.add("owner/gated", {"var_d16.pth": b"x"}, gated=True)
    hub.add("owner/name", {"var_d16.pth": b"x"})
    hub.add("owner/empty", {"README.md": b"x"})
    with pytest.raises(CheckpointError, match=said) as caught:
        load(name)
    assert "\n" not in str(caught.value)


def test_without_the_library_a_wrong_path_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(StagevarError, match=r"no such path.*stagevar\[hub\]"):
        load("owner/name")


def test_the_profile_in_the_repository_is_used(hub: Hub, calibrated: Path) -> None:
    hub.add("owner/name", content(calibrated.parent))
    pipe, local = load("owner/name"), load(calibrated)
    assert pipe.profile == local.profile and pipe.plan_name == local.plan_name
    assert not any(name.endswith((".html", ".measurements.json")) for name in hub.downloads())
    how = {"labels": [1, 2], "seed": [1, 2], "output_type": "pt"}
    assert torch.equal(pipe(**how).images, local(**how).images)


def test_a_repository_of_profiles(hub: Hub, calibrated: Path, monkeypatch) -> None:
    profile = calibrated.with_suffix(".stagevar.yaml")
    text = profile.read_bytes()
    weights = load(calibrated).fingerprint.weights.encode()
    other = text.replace(weights, b"sha256:" + b"0" * 64)
    files = {"a.stagevar.yaml": other, "deep/b.stagevar.yaml": text, "c.txt": b""}
    hub.add("me/profiles", files)
    profile.unlink()
    pipe = load(calibrated, profile="me/profiles")
    assert pipe.profile_source.endswith("deep/b.stagevar.yaml (from me/profiles)")
    named = load(calibrated, profile="me/profiles:a.stagevar.yaml")
    assert named.notes and "weights" in named.notes[0]
    monkeypatch.setenv("STAGEVAR_PROFILE", "me/profiles")
    assert load(calibrated).profile == pipe.profile
    hub.add(
        "me/none",
        {"a.stagevar.yaml": text.replace(b"architecture: sha256:", b"architecture: sha256:0")[:0]},
    )
    hub.add("me/none", {"readme.txt": b""})
    with pytest.raises(ProfileError, match="holds 0 profiles"):
        load(calibrated, profile="me/none")
    with pytest.raises(ProfileError, match="no such file in it"):
        load(calibrated, profile="me/none:a.yaml")


def test_a_cache_that_cannot_be_written_to_is_only_read(hub: Hub, calibrated: Path) -> None:
    hub.add("owner/name", content(calibrated.parent))
    path = load("owner/name").path
    before = content(Path(constants.HF_HUB_CACHE))
    folders = [path.parent, *path.parent.parents[:2]]
    for folder in folders:
        folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        pipe = load(path)  # by its path, links and all
        assert pipe.profile is not None and path.is_symlink()
        assert output_beside(path) == Path("var_tiny.pth")
        assert content(Path(constants.HF_HUB_CACHE)) == before
    finally:
        for folder in folders:
            folder.chmod(stat.S_IRWXU)


def test_the_environment_is_enough(hub: Hub, infinity: Path, tmp_path: Path) -> None:
    """In a process of its own, as a newcomer's script has it."""
    hub.add("owner/name", content(infinity.parent))
    script = (
        "import stagevar_runtime, torch\n"
        "pipe = stagevar_runtime.Pipeline.from_pretrained('owner/name')\n"
        f"pipe({RED!r}, generator=torch.Generator().manual_seed(7)).images[0].save('cube.png')\n"
    )
    more = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_TELEMETRY": "1"}
    paths = os.pathsep.join(path for path in sys.path if path)
    subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | more | {"PYTHONPATH": paths},
        cwd=tmp_path,
        check=True,
    )
    assert (tmp_path / "cube.png").stat().st_size > 0


def test_the_script_of_the_readme_runs(
    hub: Hub,
    infinity: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    here = load(infinity, profile=None)
    scales = here.model.scales()
    profile = profile_of(here, "infinity", scales)
    hub.add(
        "owner/name",
        content(infinity.parent) | {"tiny.stagevar.yaml": dump_profile(profile).encode()},
    )
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (script,) = [block for block in FENCED.findall(text) if '"owner/name"' in block]
    monkeypatch.chdir(tmp_path)
    exec(compile(script, "README.md", "exec"), {})
    assert "plan balanced" in capsys.readouterr().out
    drawn = load(infinity, profile=profile)(RED, generator=seeded(7)).images[0]
    drawn.save("here.png")
    assert (tmp_path / "cube.png").read_bytes() == (tmp_path / "here.png").read_bytes()


def test_paths_are_left_alone(tiny_files: Path) -> None:
    assert local_checkpoint(tiny_files) == tiny_files
    assert output_beside(tiny_files) == tiny_files
