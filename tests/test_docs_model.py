"""The family in docs/extending.md works as it stands.

pytest tests/test_docs_model.py
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from conftest import SMALL, invoke, random_state

from stagevar_runtime import load
from stagevar_runtime.profile import load_profile

PAGE = Path(__file__).resolve().parents[1] / "docs/extending.md"
BLOCKS = dict(
    re.findall(r"```(python|toml)\n(.*?)```", PAGE.read_text().split("## A method")[0], re.DOTALL)
)
CLASSES, COLOURS = 3, 12


@pytest.fixture(scope="module")
def mosaic(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The documented module on sys.path, registered by its entry point; a random checkpoint."""
    folder = tmp_path_factory.mktemp("mosaic")
    (folder / "mosaic.py").write_text(BLOCKS["python"])
    name, value = re.findall(r'(\w+) = "(.+)"', BLOCKS["toml"])[0]
    group = re.findall(r'entry-points\."(.+)"', BLOCKS["toml"])[0]
    entry = EntryPoint(name, value, group)
    package = sys.modules["stagevar_runtime.families"]  # its name is taken by the function
    cached = package.families
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setattr(
            package, "entry_points", lambda *, group: [entry] if group == entry.group else []
        )
        cached.cache_clear()
        module = importlib.import_module("mosaic")
        network = module.Network(CLASSES, COLOURS)
        torch.save(random_state(network, 0), folder / "model.pth")
        palette = torch.rand(COLOURS, 3, generator=torch.Generator().manual_seed(1))
        torch.save({"colours": palette}, folder / "palette.pth")
        yield folder / "model.pth"
    cached.cache_clear()
    sys.modules.pop("mosaic", None)


def test_it_is_about_a_hundred_lines() -> None:
    assert 80 <= len(BLOCKS["python"].splitlines()) <= 130


def test_it_is_registered_and_recognised(mosaic: Path) -> None:
    result = invoke("inspect", mosaic, "--json")
    assert result.exception is None, result
    assert json.loads(result.stdout)["family"] == "mosaic"


def test_it_generates_and_a_batch_is_its_images(mosaic: Path) -> None:
    pipeline = load(mosaic, device="cpu", profile=None)
    made = pipeline.generate(labels=[0, 1, 2], seed=[5, 6, 7])
    assert made.images.shape == (3, 3, 8, 8)
    alone = pipeline.generate(labels=[1], seed=[6])
    torch.testing.assert_close(alone.images[0], made.images[1], atol=1e-5, rtol=0)
    assert not torch.equal(pipeline.generate(labels=[0], seed=[6]).images, alone.images)


def test_presets_run_on_it(mosaic: Path) -> None:
    pipeline = load(mosaic, device="cpu", profile=None)
    exact = pipeline.generate(labels=[0, 1], seed=[5, 6])
    for name in ("cfg-off", "stagevar", "skip-2"):
        pipeline.enable(name)
        fast = pipeline.generate(labels=[0, 1], seed=[5, 6])
        assert not torch.equal(fast.images, exact.images), name


def test_it_calibrates(mosaic: Path) -> None:
    result = invoke("calibrate", mosaic, *SMALL, "--json", "-q")
    assert result.exception is None, result
    profile = load_profile(Path(json.loads(result.stdout)["profile"]))
    assert profile.model.family == "mosaic" and len(profile.measurements) == 4
    assert set(profile.plans) == {"quality", "balanced", "fast"}
    assert load(mosaic, device="cpu").profile is not None
