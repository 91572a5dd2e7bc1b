"""The three metrics, and which is taken.

pytest tests/probe/metrics/test_quality.py
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from stagevar_probe.metrics.classifier import (
    ClassifierConfig,
    Scorer,
    SmallClassifier,
    load_scorer,
    save_scorer,
)
from stagevar_probe.metrics.images import ssim
from stagevar_probe.metrics.quality import Agreement, Custom, Likeness, find_quality, scorer_beside
from stagevar_runtime.errors import CalibrationError, CheckpointError


def images(count: int = 4, side: int = 16, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    torch.manual_seed(0)
    model = SmallClassifier(ClassifierConfig(classes=5, side=16, widths=(4, 8), features=12))
    with torch.inference_mode():
        reference = model.eval().features(images(32, seed=9))
    return Scorer(model.requires_grad_(False), reference, tuple("abcde"), 0.9)


def write(path: Path, scorer: Scorer) -> Path:
    save_scorer(path, scorer.model, scorer.reference_features, scorer.class_names, 0.9)
    return path


def test_agreement(scorer: Scorer) -> None:
    metric, pictures = Agreement(scorer), images()
    probabilities = scorer.model.logits(pictures).softmax(1)
    best = probabilities.argmax(1).tolist()
    assert metric.score(pictures, best, pictures).tolist() == [1.0] * 4
    others = [(k + 1) % 5 for k in best]
    assert metric.score(pictures, others, pictures).tolist() == [0.0] * 4
    smooth = metric.smooth(pictures, others, pictures)
    assert smooth.tolist() == [probabilities[i, k].item() for i, k in enumerate(others)]
    assert metric.features(pictures).shape == (4, 12)
    assert metric.reference is scorer.reference_features and metric.default_loss == 0.01
    assert metric.smooth(pictures, ["0"] * 4, pictures).shape == (4,)  # labels from a file


def test_agreement_refuses_pictures_of_another_size(scorer: Scorer) -> None:
    for ask in (Agreement(scorer).features, lambda x: Agreement(scorer).score(x, [0] * 4, x)):
        with pytest.raises(CalibrationError, match="looks at 16x16 pixels, the model draws 32x32"):
            ask(images(side=32))


def test_likeness() -> None:
    metric, exact, other = Likeness(), images(), images(seed=1)
    assert metric.score(exact, [0] * 4, exact).tolist() == pytest.approx([1.0] * 4)
    score = metric.smooth(other, [0] * 4, exact)
    torch.testing.assert_close(score, ssim(other, exact).float())
    assert score.max() < 0.5
    assert metric.features(images(side=32)).shape == (4, 3 * 16 * 16)
    assert metric.reference is None


@pytest.mark.parametrize("kind", ["list", "column", "half"])
def test_custom_takes_what_functions_give(kind: str) -> None:
    seen = []

    def function(pictures, items, exact):
        seen.append((len(pictures), list(items), len(exact)))
        values = [0.25, 0.5, 0.75, 1.0]
        return {"list": values, "column": torch.tensor(values)[:, None]}.get(
            kind, torch.tensor(values).half()
        )

    metric = Custom("my:function", function)
    for ask in (metric.score, metric.smooth):
        got = ask(images(), ["x"] * 4, images())
        assert got.tolist() == [0.25, 0.5, 0.75, 1.0] and got.dtype == torch.float32
    assert seen[0] == (4, ["x"] * 4, 4)
    assert metric.name == "my:function" and metric.default_loss == 0.01


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (torch.zeros(3), "gave shape (3,) for 4 images"),
        (torch.tensor([0, 1, torch.inf, 0]), "one finite score each"),
        ("words", "metric m:f failed: "),
    ],
)
def test_custom_checks_what_it_gets(result, expected: str) -> None:
    with pytest.raises(CalibrationError) as caught:
        Custom("m:f", lambda *_: result).score(images(), [0] * 4, images())
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_interrupts_pass_through_a_custom_metric() -> None:
    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Custom("m:f", stop).score(images(), [0] * 4, images())


def test_scorer_beside(tmp_path: Path, scorer: Scorer) -> None:
    assert scorer_beside(tmp_path / "m.pth") is None and scorer_beside(tmp_path) is None
    path = write(tmp_path / "m.scorer.safetensors", scorer)
    assert scorer_beside(tmp_path / "m.pth") == path
    inside = write(tmp_path / "scorer.safetensors", scorer)
    assert scorer_beside(tmp_path) == inside


def test_find_quality(tmp_path: Path, scorer: Scorer, monkeypatch, caplog) -> None:
    checkpoint = tmp_path / "m.pth"
    assert isinstance(find_quality(None, checkpoint, 5), Likeness)
    with pytest.raises(CalibrationError, match=r"m\.scorer\.safetensors beside it"):
        find_quality("agreement", checkpoint, 5)
    write(tmp_path / "m.scorer.safetensors", scorer)
    for metric in (None, "agreement"):
        assert isinstance(find_quality(metric, checkpoint, 5), Agreement)
    assert type(find_quality("ssim-to-exact", checkpoint, 5)) is Likeness
    with pytest.raises(CalibrationError, match="scores 5 classes, the model has 1000"):
        find_quality("agreement", checkpoint, 1000)
    with caplog.at_level(logging.WARNING, "stagevar_probe"):
        assert type(find_quality(None, checkpoint, 1000)) is Likeness
    assert "5 classes, the model has 1000: using ssim-to-exact instead" in caplog.text
    monkeypatch.setattr(sys, "path", [*sys.path])
    found = find_quality("math:hypot", checkpoint, 5)
    assert isinstance(found, Custom) and found.name == "math:hypot"


def test_scorer_files(tmp_path: Path, scorer: Scorer) -> None:
    path = write(tmp_path / "s.safetensors", scorer)
    again = load_scorer(path)
    assert again.class_names == scorer.class_names and again.test_accuracy == 0.9
    got, want = (Agreement(s).features(images()) for s in (again, scorer))
    torch.testing.assert_close(got, want, atol=1e-2, rtol=1e-2)  # halves in the file
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="cannot read the scorer"):
        load_scorer(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "{}"}, "missing or unexpected"),
        ({"architecture": "[]"}, "damaged scorer"),
        ({"architecture": "x"}, "damaged scorer"),
        ({"architecture": '{"widths": [4194304]}'}, "damaged scorer .*architecture"),
        ({"architecture": '{"side": 2.5}'}, "damaged scorer .*architecture"),
        ({"class_names": "3"}, "damaged scorer"),
        ({"test_accuracy": "high"}, "damaged scorer .*high"),
    ],
)
def test_damaged_scorers(tmp_path: Path, scorer: Scorer, change: dict, message: str) -> None:
    path = write(tmp_path / "s.safetensors", scorer)
    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {n: file.get_tensor(n) for n in file.keys()}
    save_file(tensors, path, metadata | change)
    with pytest.raises(CheckpointError, match=rf"s\.safetensors.*{message}"):
        load_scorer(path)
    name = "classifier.head.bias"
    save_file(tensors | {name: torch.full_like(tensors[name], torch.inf)}, path, metadata)
    with pytest.raises(CheckpointError, match="infinity"):
        load_scorer(path)


def test_a_metric_that_is_given_stays_as_it_is(tmp_path: Path, scorer: Scorer) -> None:
    mine = Agreement(scorer)
    before = dict(vars(mine))
    found = find_quality(mine, tmp_path / "m.pth", 5, "pixels")
    assert found is not mine and found.features.name == "pixels" and found.reference is None
    assert vars(mine) == before and mine.features.name == "scorer"
