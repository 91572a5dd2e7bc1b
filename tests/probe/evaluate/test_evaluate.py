"""The scenes suite on a tiny model, and its table.

pytest tests/probe/evaluate/test_evaluate.py
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import CHECKPOINT, invoke

from stagevar_probe.datasets.scenes import VOCABULARY, passed
from stagevar_probe.datasets.scenes import prompts as suite
from stagevar_probe.evaluate import evaluation as evaluate
from stagevar_probe.evaluate import scenes as scenes_suite
from stagevar_probe.evaluate.suites import find_suite
from stagevar_probe.metrics import scene_rules
from stagevar_probe.metrics.quality import find_quality
from stagevar_probe.validate import rows as row_module
from stagevar_runtime.families.tokenizers.bsq_vae import BSQVAE
from stagevar_runtime.loading import load
from stagevar_runtime.pipeline import Pipeline
from stagevar_runtime.text.words import WordEncoder
from training.scenes.export import export
from training.scenes.settings import SIZES, TEXT_LENGTH, TEXT_WIDTH, TOKENIZER, transformer_config
from training.scenes.transformer import TextToImage


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer pictures to compare with, and presets that differ most."""
    monkeypatch.setattr(scenes_suite, "TRAINING", 40)
    monkeypatch.setattr(evaluate, "CEILING", 14)
    monkeypatch.setattr(scene_rules, "REFERENCES", 60)
    chosen = ("stagevar", "fastvar", "skip-2")
    monkeypatch.setattr(row_module, "PRESETS", {name: row_module.PRESETS[name] for name in chosen})


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    words = WordEncoder(VOCABULARY, TEXT_LENGTH, TEXT_WIDTH)
    model = TextToImage(transformer_config(32, 1), words, SIZES)
    folder = tmp_path_factory.mktemp("scenes")
    return export(model.state_dict(), BSQVAE(TOKENIZER).state_dict(), folder)[0]


@pytest.fixture(scope="module")
def pipeline(checkpoint: Path) -> Pipeline:
    return load(checkpoint, device="cpu", profile=None)


def test_one_command_writes_everything(checkpoint: Path) -> None:
    result = invoke("evaluate", checkpoint, "--count", 14, "--batch", 7, "--json", "-q")
    assert result.exception is None, result
    found = json.loads(result.stdout)
    names = [row["name"] for row in found["rows"]]
    assert names[:3] == ["exact", "no guidance", "exact, cooler"] and {
        "stagevar",
        "fastvar",
        "skip-2",
    } <= set(names)
    assert found["job"]["metric"] == "scenes" and found["job"]["features"] == "pixels"
    exact = found["rows"][0]
    assert set(exact["kinds"]) == set(suite.suite_kinds())
    assert exact["passed_loss"] == [0.0, 0.0, 0.0] and exact["images"] == 14
    assert exact["nearest"][0] > 0 and found["ceiling"]["real"][0] == 1.0
    assert found["ceiling"]["rebuilt"][0] < 0.1  # a random tokenizer keeps nothing
    assert json.loads(Path(found["json"]).read_text())["rows"][0]["name"] == "exact"
    assert "no guidance" in Path(found["report"]).read_text()


def test_dry_run_says_the_work(checkpoint: Path) -> None:
    result = invoke("evaluate", checkpoint, "--count", 14, "--dry-run")
    assert "different rows" in result.stdout and "about" in result.stdout


def test_label_models_are_refused() -> None:
    result = invoke("evaluate", CHECKPOINT, "--count", 14)
    assert "draws from class labels" in str(result.exception)


def test_rates_are_of_what_was_drawn(pipeline: Pipeline, monkeypatch) -> None:
    scenes = find_suite("scenes")
    inputs, kinds = evaluate.suite_inputs(scenes, 28, 0, pipeline.read_condition)
    prompts = [str(item) for item in inputs.items]
    real = suite.real_pictures(prompts, seed=0)
    assert all(passed(real, prompts))
    drawn = real.clone()
    drawn[[i for i, kind in enumerate(kinds) if kind == "counting"]] = 0.5  # four empty pictures
    model, sampling = pipeline.model, pipeline.sampling()
    made = evaluate.suite_rows(model, sampling, None)
    quality = find_quality(scenes.metric, Path("m"), 0, "pixels")
    begin = iter(range(10**6))

    def decode(state):
        # rows run exact first, then the others, batch after batch; the warm-up comes before
        number = next(begin) - len(made.plans)
        batch, row = divmod(number, len(made.plans))
        part = slice(batch * state.batch, (batch + 1) * state.batch)
        return (drawn if row else real)[part].clone() if number >= 0 else real[: state.batch]

    monkeypatch.setattr(model, "decode", decode)
    monkeypatch.setattr(evaluate, "tokenizer_ceiling", lambda *_: {"real": [1.0] * 3})
    found = evaluate.run_suite(model, scenes, inputs, kinds, made, sampling, quality, 14, True)
    exact, other = found.figures["exact"], found.figures["skip-2"]
    assert exact.passed[0] == 1.0 and all(rate[0] == 1.0 for rate in exact.kinds.values())
    assert other.kinds["counting"][0] == 0.0 and other.kinds["colors"][0] == 1.0
    assert other.passed_loss[0] == pytest.approx(4 / 24)
    assert other.passed[0] == pytest.approx(20 / 24)
    lines = evaluate.as_table(found).splitlines()
    assert lines[1].startswith("exact") and len(lines) == 1 + len(made)
