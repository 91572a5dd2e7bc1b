"""Archives of pictures, retrieval, and the emoji suite.

pytest tests/probe/evaluate/test_emoji_suite.py
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CHECKPOINT, invoke
from PIL import Image, ImageDraw

from stagevar_probe.commands import evaluate as evaluate_command
from stagevar_probe.datasets.archive import Archive, open_archive
from stagevar_probe.datasets.scenes import VOCABULARY
from stagevar_probe.evaluate import evaluation as evaluate
from stagevar_probe.evaluate.emoji import bounds, emoji_suite
from stagevar_probe.evaluate.suites import Suite, find_suite
from stagevar_probe.metrics.features import remembering
from stagevar_probe.metrics.quality import find_quality
from stagevar_probe.metrics.retrieval import Retrieval, make_gallery
from stagevar_probe.report.evaluation import ceiling_lines
from stagevar_probe.validate import rows as row_module
from stagevar_runtime.errors import CalibrationError
from stagevar_runtime.families.tokenizers.bsq_vae import BSQVAE
from stagevar_runtime.loading import load
from stagevar_runtime.pipeline import Pipeline
from stagevar_runtime.text.words import WordEncoder, save_words
from training.scenes.export import export
from training.scenes.settings import SIZES, TEXT_LENGTH, TEXT_WIDTH, TOKENIZER, transformer_config
from training.scenes.transformer import TextToImage

LABELS = ("apple", "boat", "cat", "drum")
STYLES = {"noto": "red", "openmoji": "green", "twemoji": "blue"}
WORDS = (*LABELS, *STYLES, "style")


def pattern(concept: int, color: str) -> bytes:
    """A quarter of the picture in the style's colour: which one tells the concept."""
    picture = Image.new("RGB", (128, 128), "white")
    x, y = 64 * (concept % 2), 64 * (concept // 2)
    ImageDraw.Draw(picture).rectangle((x, y, x + 63, y + 63), fill=color)
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", lossless=True)
    return buffer.getvalue()


def rows() -> list[dict[str, str]]:
    """Four concepts in three styles: the last concept is never trained, nor is one pair."""
    out = []
    for c, label in enumerate(LABELS):
        for style in STYLES:
            split = "held_out_concept" if c == 3 else "train"
            split = "held_out_pair" if (c, style) in ((0, "noto"), (1, "twemoji")) else split
            out.append(
                {
                    "file": f"{len(out):05d}.webp",
                    "prompt": f"{label}, {style} style",
                    "concept": f"1f34{c}",
                    "label": label,
                    "style": style,
                    "group": "things",
                    "split": split,
                }
            )
    return out


def write_archive(path: Path, lines: list[Any], side: object = 128) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for number, line in enumerate(rows()):
            file.writestr(line["file"], pattern(number // 3, STYLES[line["style"]]))
        text = (line if isinstance(line, str) else json.dumps(line) for line in lines)
        file.writestr("index.jsonl", "".join(f"{line}\n" for line in text))
        file.writestr("about.json", json.dumps({"side": side, "seed": 0, "packages": {}}))
    return path


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_archive(tmp_path_factory.mktemp("emoji") / "emoji.zip", rows())


@pytest.fixture(scope="module")
def opened(archive: Path) -> Archive:
    return open_archive(archive)


@pytest.fixture(scope="module")
def suite(archive: Path) -> Suite:
    return find_suite("emoji", archive)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model, and beside it the words of scenes; emoji.words.safetensors has others."""
    torch.manual_seed(0)
    words = WordEncoder(VOCABULARY, TEXT_LENGTH, TEXT_WIDTH)
    model = TextToImage(transformer_config(32, 1), words, SIZES)
    path = export(
        model.state_dict(), BSQVAE(TOKENIZER).state_dict(), tmp_path_factory.mktemp("model")
    )[0]
    own = WordEncoder(WORDS, TEXT_LENGTH, TEXT_WIDTH)
    save_words(path.with_name("emoji.words.safetensors"), own)
    return path


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_module, "PRESETS", {"skip-2": row_module.PRESETS["skip-2"]})


def test_archive_is_read(opened: Archive) -> None:
    assert (len(opened.pictures), opened.side) == (12, 128) and re.fullmatch(
        "[0-9a-f]{64}", opened.sha256
    )
    assert [p.concept for p in opened.of("held_out_pair")] == ["1f340", "1f341"]
    images = opened.read(opened.of("held_out_pair"))
    assert images.shape == (2, 3, 128, 128)
    assert images[0, :, 10, 10].tolist() == [1.0, 0.0, 0.0]
    assert images[1, :, 10, 100].tolist() == [0.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"split": "test"}, "line 2: split 'test', expected one of train, held_out_pair"),
        ({"label": 3}, "line 2: label is 3, expected text"),
        ({"file": "no.webp"}, "1 pictures of the index are not in it, the first 'no.webp'"),
    ],
)
def test_lines_that_are_wrong(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    lines = rows()
    with pytest.raises(CalibrationError, match=re.escape(said)):
        open_archive(write_archive(tmp_path / "a.zip", [lines[0], lines[1] | change]))


@pytest.mark.parametrize("line", ['{"file": "1.webp"}', "3", "no json"])
def test_lines_that_are_none(tmp_path: Path, line: str) -> None:
    with pytest.raises(CalibrationError, match=r"line 1: .*expected an object with file, prompt"):
        open_archive(write_archive(tmp_path / "a.zip", [line]))


def test_what_is_no_archive(tmp_path: Path, archive: Path) -> None:
    with pytest.raises(CalibrationError, match=r"no such file.*python -m training\.data\.shard"):
        open_archive(tmp_path / "none.zip")
    (tmp_path / "text.zip").write_text("no zip")
    with pytest.raises(CalibrationError, match="no archive of captioned pictures"):
        open_archive(tmp_path / "text.zip")
    with zipfile.ZipFile(tmp_path / "empty.zip", "w") as file:
        file.writestr("index.jsonl", "")
    with pytest.raises(CalibrationError, match=r"about\.json"):
        open_archive(tmp_path / "empty.zip")
    with pytest.raises(CalibrationError, match=r"index\.jsonl is empty"):
        open_archive(write_archive(tmp_path / "a.zip", []))
    with pytest.raises(CalibrationError, match="side '128', expected pixels"):
        open_archive(write_archive(tmp_path / "a.zip", rows(), "128"))
    small = open_archive(write_archive(tmp_path / "a.zip", rows(), 64))
    with pytest.raises(CalibrationError, match=r"is 128x128, about\.json says 64x64"):
        small.read(small.pictures[:1])
    wrong = replace(small.pictures[0], file="about.json")
    with pytest.raises(CalibrationError, match=r"about\.json is no picture"):
        small.read([wrong])


def test_real_pictures_are_found_and_others_are_not(opened: Archive) -> None:
    metric = Retrieval(opened)
    real = opened.read(opened.pictures)
    prompts = [picture.prompt for picture in opened.pictures]
    assert metric.score(real, prompts, real).tolist() == [1.0] * 12
    assert metric.smooth(real, prompts, real).min() > 0.9
    other = real.roll(3, 0)  # the same styles, another concept
    assert metric.score(other, prompts, real).tolist() == [0.0] * 12
    assert metric.smooth(other, prompts, real).max() < 0.1
    assert metric.within(metric.features(other), prompts, 4).tolist() == [1.0] * 12
    torch.manual_seed(0)
    noise = torch.rand(600, 3, 4, 4).repeat_interleave(32, 2).repeat_interleave(32, 3)
    share = metric.score(noise, prompts * 50, noise).mean()
    assert 0.2 < share < 0.3


def test_ties_count_against_the_asked_concept(opened: Archive) -> None:
    metric = Retrieval(opened)
    blank = metric.galleries["noto"].centre[None]
    assert metric.judged(blank, ["cat, noto style"])[0].tolist() == [4.0]
    features = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-2.0, 1.0]])
    metric.galleries["noto"] = make_gallery(features, ["1f340", "1f341", "1f342"])
    prompts = ["apple, noto style", "boat, noto style", "cat, noto style"]
    assert metric.judged(features, prompts)[0].tolist() == [2.0, 2.0, 1.0]


def test_a_concept_is_as_like_as_its_best_picture() -> None:
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    gallery = make_gallery(features, ["a", "b", "a"])
    assert gallery.concepts == ("a", "b")
    likeness = gallery.likeness(features)
    assert likeness[0, 0] == pytest.approx(1) and likeness[2, 0] == pytest.approx(1)
    far = make_gallery(features + 100, ["a", "b", "a"])
    torch.testing.assert_close(far.likeness(features + 100), likeness, atol=1e-4, rtol=0)


def test_prompts_that_are_not_in_the_archive(opened: Archive) -> None:
    metric = Retrieval(opened)
    with pytest.raises(CalibrationError, match=r"'a dog' is no prompt .* 'apple, noto style'"):
        metric.score(torch.zeros(1, 3, 128, 128), ["a dog"], torch.zeros(1, 3, 128, 128))
    first, *rest = opened.pictures
    mixed = replace(opened, pictures=(first, *(replace(p, prompt=first.prompt) for p in rest)))
    with pytest.raises(CalibrationError, match="is of styles noto and openmoji, expected one"):
        _ = Retrieval(mixed).asked
    with pytest.raises(CalibrationError, match="fewer than two held-out pictures"):
        Retrieval(replace(opened, pictures=tuple(opened.of("train"))))


def test_the_metric_is_found_by_name(archive: Path) -> None:
    quality = find_quality(f"retrieval={archive}", Path("m.safetensors"), 0, "pixels")
    assert quality.name == "retrieval=emoji.zip"
    assert quality.reference is not None and quality.reference.shape == (5, 768)
    assert quality.features.source == "held-out pictures of emoji.zip"
    with pytest.raises(CalibrationError, match="draws from labels"):
        find_quality(f"retrieval={archive}", Path("m.safetensors"), 10)


def test_a_slow_network_looks_once() -> None:
    calls = []
    look = remembering(lambda images: calls.append(1) or images.sum())
    a, b = torch.ones(2), torch.zeros(2)
    assert [look(a), look(a), look(b), look(a)] == [2, 2, 0, 2] and len(calls) == 3


def test_prompts_by_kind(suite: Suite, opened: Archive) -> None:
    asked = suite.ask(30, 0)
    kinds = {"held_out_pair": 10, "held_out_concept": 10, "train": 10}
    assert Counter(kind for kind, _ in asked) == kinds
    split = {picture.prompt: picture.split for picture in opened.pictures}
    assert all(split[prompt] == kind for kind, prompt in asked)
    trained = [prompt for kind, prompt in asked if kind == "train"]
    assert len(set(trained[:7])) == 7  # none twice before all were asked
    assert asked == suite.ask(30, 0) != suite.ask(30, 1)


def test_bounds(suite: Suite, opened: Archive) -> None:
    found = suite.bounds(suite.metric)
    assert found["chance"] == [0.25] * 3 and found["chance R@5"] == [1.0] * 3
    assert found["other_style"][0] == 1.0  # here the quarter tells, whatever its colour
    real, prompts = suite.real(3, None)
    assert real.shape == (3, 3, 128, 128) and len(prompts) == 3
    assert suite.real(3, 64)[0].shape == (3, 3, 64, 64)  # as a model's tokenizer takes them
    assert suite.training(suite.metric).shape == (7, 768)
    metric = Retrieval(opened)
    metric.real_features = torch.eye(12)  # no picture is like that of another style
    assert bounds(metric)["other_style"][0] == 0.0
    held_out = replace(opened, pictures=tuple(opened.of("held_out_pair")))
    with pytest.raises(CalibrationError, match="no training pictures"):
        emoji_suite(held_out)


def test_rates_are_of_what_was_drawn(
    checkpoint: Path, suite: Suite, opened: Archive, few: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = checkpoint.with_name("emoji.words.safetensors")
    pipeline: Pipeline = load(checkpoint, device="cpu", profile=None, text_encoder=words)
    inputs, kinds = evaluate.suite_inputs(suite, 24, 0, pipeline.read_condition)
    of = {picture.prompt: i for i, picture in enumerate(opened.pictures)}
    numbers = torch.tensor([of[str(item)] for item in inputs.items])
    real = opened.read(opened.pictures)
    drawn = {"exact": real[numbers], "no guidance": real[(numbers + 3) % 12]}
    drawn["exact, cooler"] = drawn["exact"]
    pairs = torch.tensor([kind == "held_out_pair" for kind in kinds])
    drawn["skip-2"] = torch.where(pairs[:, None, None, None], drawn["no guidance"], real[numbers])
    model, sampling = pipeline.model, pipeline.sampling()
    made = evaluate.suite_rows(model, sampling, None)
    begin = iter(range(10**6))

    def decode(state: Any) -> torch.Tensor:
        # rows run exact first, then the others, batch after batch; the warm-up comes before
        number = next(begin) - len(made.plans)
        batch, row = divmod(max(number, 0), len(made.plans))
        part = slice(batch * state.batch, (batch + 1) * state.batch)
        return drawn[list(made.plans)[row]][part].clone()

    monkeypatch.setattr(model, "decode", decode)
    monkeypatch.setattr(evaluate, "rebuild", lambda model, images, one: images)
    quality = find_quality(suite.metric, checkpoint, 0, "pixels")
    found = evaluate.run_suite(model, suite, inputs, kinds, made, sampling, quality, 12, True)
    exact, other, some = (found.figures[n] for n in ("exact", "no guidance", "skip-2"))
    assert exact.passed[0] == 1.0 and exact.beside["R@5"][0] == 1.0
    assert other.passed[0] == 0.0 and other.passed_loss[0] == 1.0
    assert some.kinds["held_out_pair"][0] == 0.0 and some.kinds["train"][0] == 1.0
    assert some.passed[0] == pytest.approx(0.5)  # over held-out kinds alone
    assert exact.nearest[0] == pytest.approx(found.ceiling["nearest_real"][0], rel=0.3)
    assert found.ceiling["rebuilt"][0] == found.ceiling["real R@5"][0] == 1.0
    head, *lines = evaluate.as_table(found).splitlines()
    assert head.split()[4:7] == ["R@1", "lost", "R@5"] and lines[0].startswith("exact")
    said = ceiling_lines(found)
    assert said[0].startswith("real pictures pass 1.000 [0.566, 1.000], R@5 1.000")
    assert any("drawn at random, passes 0.250" in line for line in said)


def test_one_command_writes_everything(
    checkpoint: Path, archive: Path, tmp_path: Path, few: None
) -> None:
    words = ("--text-encoder", checkpoint.with_name("emoji.words.safetensors"))
    options = ("--suite", "emoji", "--pictures", archive, "--count", 15, "--features", "pixels")
    result = invoke("evaluate", checkpoint, *options, *words, "--dry-run")
    assert "suite emoji, 15 images, 4 different rows, metric retrieval=emoji.zip" in result.stdout
    page = tmp_path / "page.html"
    result = invoke("evaluate", checkpoint, *options, *words, "--json", "-q", "--output", page)
    assert result.exception is None, result
    found = json.loads(result.stdout)
    assert found["job"]["features"] == "pixels"
    assert found["job"]["pictures"].startswith("emoji.zip, 12 pictures, index sha256:")
    assert set(found["rows"][0]["kinds"]) == {"held_out_pair", "held_out_concept", "train"}
    assert {"real", "rebuilt", "other_style", "chance", "nearest_real"} <= set(found["ceiling"])
    assert "R@1: the asked concept is what a picture is most like" in page.read_text()


def test_what_is_refused_at_once(
    checkpoint: Path, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the model was run")

    monkeypatch.setattr(evaluate_command, "forecast", run)
    emoji = ("--suite", "emoji", "--pictures", archive)
    result = invoke("evaluate", checkpoint, *emoji)  # the words of scenes
    assert "this model knows no word" in str(result.exception)
    assert "draws from class labels" in str(invoke("evaluate", CHECKPOINT, *emoji).exception)
    for options, said in (
        (("--suite", "emoji"), "needs real pictures: --pictures FILE, made by python -m training"),
        (("--pictures", archive), "suite scenes renders its own pictures, got --pictures"),
    ):
        error = invoke("evaluate", checkpoint, *options).exception
        assert said in str(error) and getattr(error, "exit_code", None) == 2
    gone = invoke("evaluate", checkpoint, *emoji[:3], archive.with_name("gone.zip"))
    assert "gone.zip: no such file" in str(gone.exception)
