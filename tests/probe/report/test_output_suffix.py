"""The suffix of an output decides its format; 16-bit pictures are read as deep as they are.

pytest tests/probe/report/test_output_suffix.py
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stagevar_probe.metrics.features import _pixels
from stagevar_probe.report.contact_sheet import save_picture
from stagevar_runtime.errors import StagevarError
from stagevar_runtime.profile.files import plan_steps
from stagevar_runtime.profile.schema import PlanStep


@pytest.mark.parametrize(("suffix", "kind"), [(".png", "PNG"), (".JPG", "JPEG"), (".webp", "WEBP")])
def test_suffixes(tmp_path: Path, suffix: str, kind: str) -> None:
    save_picture(torch.rand(3, 8, 8), tmp_path / f"a{suffix}")
    with Image.open(tmp_path / f"a{suffix}") as picture:
        assert picture.format == kind and picture.size == (8, 8)


def test_what_is_refused(tmp_path: Path) -> None:
    for name in ("a", "a.gif", "a.png.txt"):
        with pytest.raises(StagevarError, match="suffix"):
            save_picture(torch.rand(3, 8, 8), tmp_path / name)
    with pytest.raises(StagevarError, match="not finite"):
        save_picture(torch.full((3, 8, 8), torch.nan), tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_sixteen_bits(tmp_path: Path) -> None:
    deep = np.full((4, 4), 32768, dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "a.png")
    assert torch.allclose(_pixels(tmp_path / "a.png"), torch.tensor(32768 / 65535), atol=1e-3)


def test_steps_as_dicts() -> None:
    assert plan_steps([{"scale": 4, "guidance": "cond"}]) == (PlanStep(scale=4, guidance="cond"),)
    for wrong in ([{"scale": "x"}], [3], 3, {"scale": 1}, [{"a": 1}]):
        with pytest.raises(StagevarError, match="step"):
            plan_steps(wrong)
