"""The checkpoint that ships is the one measured: pytest tests/training/test_shipped.py"""

import json
from pathlib import Path

import pytest
import torch

from stagevar_probe.metrics.classifier import load_scorer
from stagevar_runtime.loading import load
from training.evaluate_fashion import SETTINGS, binomial_interval, draw, file_hash, measure
from training.export import SCORER_FILE, TOKENIZER_FILE, TRANSFORMER_FILE
from training.transformer import Transformer, TransformerConfig

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "checkpoints" / "fashion"


def test_figures_belong_to_these_files():
    figures = json.loads((ROOT / "docs" / "fashion" / "evaluation.json").read_text())
    for name in (TRANSFORMER_FILE, TOKENIZER_FILE, SCORER_FILE):
        assert figures["files"][name]["hash"] == file_hash(FOLDER / name)
    assert figures["settings"].keys() == {setting.name for setting in SETTINGS}
    sizes = [(FOLDER / name).stat().st_size for name in (TRANSFORMER_FILE, TOKENIZER_FILE)]
    assert sum(sizes) <= 20e6


def test_weights_load_under_the_published_names():
    state = torch.load(FOLDER / TRANSFORMER_FILE, weights_only=True)
    model = Transformer(TransformerConfig((1, 2, 3, 4, 5, 6, 8), 512, 16))
    model.load_state_dict(state, strict=True)


def test_guided_samples_show_the_asked_class():
    pipeline = load(FOLDER / TRANSFORMER_FILE, device="cpu", profile=None)
    scorer = load_scorer(FOLDER / SCORER_FILE)
    labels = torch.arange(10).repeat(4)
    ramp = next(setting for setting in SETTINGS if setting.name == "ramp-4")
    images, _ = draw(pipeline, ramp, labels, first_seed=0)
    assert images.shape == (40, 3, 32, 32)
    _, predicted = scorer.score(images)
    assert (predicted == labels).float().mean() >= 0.85  # .987 of 2,000 images


def test_noise_is_far_from_clothing():
    scorer = load_scorer(FOLDER / SCORER_FILE)
    record = measure(scorer, torch.rand(500, 3, 32, 32), torch.zeros(500, dtype=torch.long))
    assert record["kid"] > 1
    assert 0 <= record["agreement_ci95"][0] <= record["agreement"] <= record["agreement_ci95"][1]


@pytest.mark.parametrize(("right", "low", "high"), [(0, 0.0, 0.3085), (10, 0.6915, 1.0)])
def test_binomial_interval_is_exact(right, low, high):
    assert binomial_interval(right, 10) == pytest.approx((low, high), abs=1e-4)
