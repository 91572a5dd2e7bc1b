"""What pictures are seen through, and real pictures.

pytest tests/probe/metrics/test_features.py
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL, invoke
from PIL import Image
from torch import Tensor

from stagevar_probe.measure.measurements import load_measurements
from stagevar_probe.metrics.classifier import ClassifierConfig, Scorer, SmallClassifier, save_scorer
from stagevar_probe.metrics.features import PIXELS, find_features, with_reference
from stagevar_probe.metrics.images import ssim
from stagevar_probe.metrics.perceptual import UNLIKENESS
from stagevar_probe.metrics.quality import Agreement, Likeness, find_quality
from stagevar_runtime.errors import CalibrationError
from stagevar_runtime.profile import load_profile


def images(count: int = 4, side: int = 16, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def folder_of(path: Path, pictures: Tensor) -> Path:
    path.mkdir()
    for i, picture in enumerate(pictures):
        values = picture.permute(1, 2, 0).mul(255).round().byte().numpy()
        Image.fromarray(values).save(path / f"{i:03d}.png")
    return path


@pytest.fixture
def scorer() -> Scorer:
    torch.manual_seed(0)
    model = SmallClassifier(ClassifierConfig(classes=5, side=16, widths=(4, 8), features=12))
    reference = model.eval().requires_grad_(False).features(images(32, seed=9))
    return Scorer(model, reference, tuple("abcde"), 0.9)


def test_the_best_at_hand_is_taken(scorer: Scorer) -> None:
    assert find_features(None, None) is PIXELS
    own = find_features(None, scorer)
    assert (own.name, own.kid, own.reference) == ("scorer", "KID", scorer.reference_features)
    torch.testing.assert_close(own(images()), scorer.model.features(images()))
    assert find_features("pixels", scorer) is PIXELS


@pytest.mark.parametrize(
    ("name", "expected"),
    [("scorer", "no scorer fits this checkpoint"), ("dino", "effnet-64"), ("effnet-x", "known")],
)
def test_unknown_features_are_refused(name: str, expected: str) -> None:
    with pytest.raises(CalibrationError, match=expected):
        find_features(name)


def test_a_folder_of_real_pictures(tmp_path: Path) -> None:
    real = images(5, 8)
    look = with_reference(PIXELS, folder_of(tmp_path / "real", real))
    assert look.source == "5 pictures in real" and look.name == "pixels" and look.size == (8, 8)
    torch.testing.assert_close(look.reference, PIXELS(real), atol=1 / 255, rtol=0)
    torch.testing.assert_close(look(real), PIXELS(real))
    with pytest.raises(CalibrationError, match="pictures are 8x8, the model draws 16x16"):
        look(images())


def test_bad_folders_are_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "real", images(1))
    with pytest.raises(CalibrationError, match=r"real: 1 pictures in it .*expected 2 or more"):
        with_reference(PIXELS, folder)
    (folder / "text.png").write_text("no picture")
    with pytest.raises(CalibrationError, match=r"text\.png: cannot be read as a picture"):
        with_reference(PIXELS, folder)
    Image.fromarray(np.zeros((8, 9, 3), np.uint8)).save(folder / "text.png")
    with pytest.raises(CalibrationError, match=r"text\.png is 8x9, 000\.png is 16x16"):
        with_reference(PIXELS, folder)


def test_metric_and_features_are_chosen_apart(tmp_path: Path, scorer: Scorer) -> None:
    checkpoint = tmp_path / "m.pth"
    path = tmp_path / "m.scorer.safetensors"
    save_scorer(path, scorer.model, scorer.reference_features, scorer.class_names, 0.9)
    both = find_quality(None, checkpoint, 5)
    assert isinstance(both, Agreement) and both.features.name == "scorer"
    assert both.reference is not None and both.perceptual is UNLIKENESS
    likeness = find_quality("ssim-to-exact", checkpoint, 5)
    assert isinstance(likeness, Likeness) and likeness.features.name == "scorer"
    assert likeness.reference is not None
    plain = find_quality("agreement", checkpoint, 5, "pixels")
    assert isinstance(plain, Agreement) and plain.features is PIXELS and plain.reference is None


def test_unlikeness_is_named_as_what_it_is() -> None:
    a, b = images(), images(seed=1)
    torch.testing.assert_close(UNLIKENESS(a, b), 1 - ssim(a, b))
    assert (UNLIKENESS.name, UNLIKENESS.likeness) == ("1 - SSIM", "SSIM")


def test_profile_and_measurements_say_what_was_looked_through(
    tiny_files: Path, tmp_path: Path
) -> None:
    options = (tiny_files, *SMALL, "--features", "pixels", "--reference")
    wrong = invoke("calibrate", *options, folder_of(tmp_path / "small", images(3, 4)))
    assert "reference pictures are 4x4, the model draws 8x8" in str(wrong.exception)
    real = folder_of(tmp_path / "real", images(6, 8))
    result = invoke("calibrate", *options, real, "--no-resume")
    assert result.exception is None, result.exception
    assert "pixel-KID" in result.output
    measured = load_measurements(tiny_files.with_suffix(".stagevar.measurements.json"))
    job = measured.job
    assert (job.features, job.likeness, job.reference) == ("pixels", "SSIM", "6 pictures in real")
    assert measured.validation.plans["balanced"].kid_name == "pixel-KID"
    profile = load_profile(tiny_files.with_suffix(".stagevar.yaml"))
    assert profile.calibration is not None and profile.stages is not None
    assert (profile.calibration.features, profile.calibration.likeness) == ("pixels", "SSIM")
    assert profile.stages.structure is not None
    assert "semantic similarity (pixels)" in str(profile.stages.structure.evidence)
