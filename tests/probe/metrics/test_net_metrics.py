"""CLIP score and FID, with stubs for their libraries.

pytest tests/probe/metrics/test_net_metrics.py
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from stagevar_probe.metrics.clip_score import ClipScore
from stagevar_probe.metrics.features import PIXELS
from stagevar_probe.metrics.fid import fid
from stagevar_probe.metrics.quality import find_quality
from stagevar_runtime.errors import CalibrationError

WORDS = {"red": [1.0, 0, 0], "blue": [0, 0, 1.0]}


class Model:
    """Embeds a picture as its mean colour, a word as its colour."""

    @classmethod
    def from_pretrained(cls, source: str, local_files_only: bool = False) -> Model:
        if source == "nowhere":
            raise OSError("nowhere is not a folder\nand more")
        return cls()

    def eval(self) -> Model:
        return self

    def __call__(self, pixels: Tensor, words: Tensor) -> SimpleNamespace:
        return SimpleNamespace(image_embeds=pixels, text_embeds=words)


class Processor(Model):
    def __call__(self, text: list[str], images: list[Any], **options: Any) -> dict[str, Tensor]:  # type: ignore[override]
        assert options == {"return_tensors": "pt", "padding": True, "truncation": True}
        assert all(image.shape == (4, 4, 3) and image.dtype == "uint8" for image in images)
        pixels = torch.stack([torch.from_numpy(image).float().mean((0, 1)) for image in images])
        return {"pixels": pixels, "words": torch.tensor([WORDS[word] for word in text])}


@pytest.fixture
def transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("transformers")
    module.CLIPModel, module.CLIPProcessor = Model, Processor  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "transformers", module)


def flat(*colours: tuple[float, float, float]) -> Tensor:
    return torch.tensor(colours)[:, :, None, None].expand(-1, 3, 4, 4)


def test_clip_score_is_the_cosine_with_the_prompt(transformers: None) -> None:
    metric = find_quality("clip-score=/models/clip-tiny", Path("m.pth"), 0)
    assert isinstance(metric, ClipScore) and metric.name == "clip-score=clip-tiny"
    assert metric.features is PIXELS and 0 < metric.default_loss < 0.01
    pictures = flat((1, 0, 0), (1, 0, 0), (0.6, 0, 0.8))
    for ask in (metric.score, metric.smooth):
        assert ask(pictures, ["red", "blue", "blue"], pictures).tolist() == pytest.approx(
            [1, 0, 0.8], abs=1e-3
        )
    assert find_quality("clip-score", Path("m.pth"), 0).name == "clip-score=clip-vit-base-patch16"


def test_clip_score_says_why_not(transformers: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CalibrationError, match="this model draws from labels"):
        find_quality("clip-score", Path("m.pth"), 10)
    with pytest.raises(CalibrationError, match=r"nowhere: no CLIP model .*clip-score=FOLDER") as e:
        ClipScore("nowhere")
    assert "\n" not in str(e.value)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(CalibrationError, match=r"pip install 'stagevar\[metrics-net\]'"):
        ClipScore()


class Distance:
    def __init__(self, feature: int) -> None:
        assert feature == 2048
        self.sums = {True: 0, False: 0}

    def update(self, images: Tensor, real: bool) -> None:
        assert images.dtype == torch.uint8 and len(images) <= 2
        self.sums[real] += int(images.sum())

    def compute(self) -> Tensor:
        return torch.tensor(self.sums[True] - self.sums[False])


def test_fid_hands_over_real_and_made_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torchmetrics", "torchmetrics.image", "torchmetrics.image.fid"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    inner: Any = sys.modules["torchmetrics.image.fid"]
    inner.FrechetInceptionDistance = Distance
    real, made = flat((1, 0, 0), (1, 0, 0), (1, 1, 1)), flat((0, 0.502, 0))
    assert fid(real, made, batch=2) == 16 * (5 * 255 - 128)

    def unreachable(feature: int) -> None:
        raise OSError("no network")

    inner.FrechetInceptionDistance = unreachable
    with pytest.raises(CalibrationError, match=r"weights cannot be loaded \(no network\)"):
        fid(real, made)
    monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", None)
    with pytest.raises(CalibrationError, match=r"pip install 'stagevar\[metrics-net\]'"):
        fid(real, made)
