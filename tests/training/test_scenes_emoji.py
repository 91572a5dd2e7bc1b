"""Scenes and emoji trained together, in seconds.

pytest tests/training/test_scenes_emoji.py
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from stagevar_probe.datasets.scenes import VOCABULARY
from stagevar_runtime.errors import StagevarError
from stagevar_runtime.loading import load
from stagevar_runtime.pipeline import Pipeline
from stagevar_runtime.text.words import load_words
from training import train_scenes
from training.data import DataError
from training.scenes.export import restore
from training.scenes.presets import PRESETS, emoji_beside
from training.train_scenes import Run, fill, main, parse

STYLES = ("noto", "flat", "3d")
LABELS = {"red apple": (220, 30, 30), "green apple": (30, 200, 30), "blue hat": (30, 30, 220)}
OPTIONS = ("--tokenizer-minutes 0.02 --decoder-minutes 0.01 --minutes 0.03 --width 64 --depth 1 "
           "--pictures 12 --device cpu").split()  # fmt: skip


def write_zip(path: Path) -> Path:
    """Nine pictures of three labels in three styles; one is held out, with a word of its own."""
    rows = []
    with zipfile.ZipFile(path, "w") as file:
        for label, color in LABELS.items():
            for style in STYLES:
                name, buffer = f"{len(rows) + 1:05d}.webp", io.BytesIO()
                picture = Image.new("RGB", (128, 128), (240, 240, 240))
                picture.paste(color, (30, 30, 98, 98))
                picture.save(buffer, "WEBP", quality=90)
                file.writestr(name, buffer.getvalue())
                split = "held_out_pair" if (label, style) == ("blue hat", "3d") else "train"
                prompt = f"{label}, {style} style"
                row = {"file": name, "prompt": prompt, "split": split, "style": style}
                rows.append(row | {"concept": label, "label": label, "group": "objects"})
        file.writestr("index.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        file.writestr("about.json", json.dumps({"side": 128}))
    return path


@pytest.fixture(scope="module")
def small() -> Iterator[None]:
    """The command's own preset, with few pictures and small batches."""
    cpu = PRESETS["cpu"]
    with pytest.MonkeyPatch.context() as patch:
        for name in ("TOKENIZER_PICTURES", "CEILING_PICTURES", "CHUNK"):
            patch.setattr(train_scenes, name, 6)
        patch.setattr("training.scenes.export.PROMPTS", {"calibration": 6, "held_out": 7})
        tokenizer, decoder = replace(cpu.tokenizer, batch=4), replace(cpu.decoder, batch=2)
        plan = replace(cpu.fit, prefixes=((7, 8, 0.6), (10, 4, 0.4)))
        patch.setitem(PRESETS, "cpu", replace(cpu, tokenizer=tokenizer, decoder=decoder, fit=plan))
        yield


@pytest.fixture(scope="module")
def trained(small: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training on both."""
    folder = tmp_path_factory.mktemp("emoji")
    write_zip(folder / "emoji.zip")
    assert main(command(folder)) == 0
    return folder


def command(folder: Path, *more: str) -> list[str]:
    """The command line of a training in a folder."""
    paths = ["--runs", str(folder / "runs"), "--output", str(folder / "out")]
    return [*paths, "--emoji", str(folder / "emoji.zip"), *OPTIONS, *more]


@pytest.fixture(scope="module")
def pipeline(trained: Path) -> Pipeline:
    return load(trained / "out/scenes.safetensors", device="cpu", profile=None)


@pytest.mark.parametrize("prompt", ["red apple, noto style", "a red circle left of a blue square"])
def test_what_is_trained_on_both_draws_both(pipeline: Pipeline, prompt: str) -> None:
    images = pipeline.generate(prompts=[prompt], seed=0).images
    assert images.shape == (1, 3, 128, 128) and images.isfinite().all()


def test_words_of_captions_join_the_vocabulary(trained: Path) -> None:
    words = load_words(trained / "out/scenes.words.safetensors").vocabulary
    assert words[: len(VOCABULARY)] == VOCABULARY
    assert set(words[len(VOCABULARY) :]) == {"apple", "hat", "noto", "flat", "3d", "style"}


def test_half_of_the_pictures_are_emoji_and_none_is_held_out(trained: Path) -> None:
    saved = {
        path.stem: torch.load(path, weights_only=True)
        for path in (trained / "runs/features").glob("*.pt")
    }
    assert saved.keys() == {"emoji", "0000", "0001"}
    assert all(len(part["features"]) == len(part["captions"]) for part in saved.values())
    emoji = saved.pop("emoji")["captions"]
    assert len(emoji) == sum(len(part["captions"]) for part in saved.values()) == 12
    assert all(text.endswith("style") for text in emoji)
    assert len(set(emoji)) == 8 and "blue hat, 3d style" not in emoji
    assert json.loads((trained / "runs/tokenizer.json").read_text())["l1_emoji"] > 0


def test_an_unknown_word_names_near_ones(pipeline: Pipeline) -> None:
    with pytest.raises(StagevarError, match=r"appel.*did you mean apple"):
        pipeline.generate(prompts=["red appel, noto style"])


def test_the_run_says_what_it_will_do_and_goes_on(trained: Path, capsys) -> None:
    assert main(command(trained)) == 0
    out = capsys.readouterr().out
    assert "preset cpu on cpu: tokenizer, features" in out
    assert "12 scenes and 12 emoji (8 of" in out
    assert "transformer: width 64, 1 blocks, 0." in out
    assert "0.03 min, batches 8 to scale 7, 4 to scale 10" in out


def test_other_pictures_in_the_same_folder_are_refused(trained: Path, capsys) -> None:
    assert main(command(trained, "--emoji-share", "0.25")) == 1
    assert "was begun with emoji_share 0.5, not 0.25" in capsys.readouterr().err
    assert main(command(trained, "--emoji-share", "0")) == 1
    assert main(command(trained, "--width", "32")) == 1


def test_a_larger_vocabulary_goes_on_from_a_smaller(trained: Path, tmp_path: Path) -> None:
    write_zip(tmp_path / "emoji.zip")
    run = Run(fill(parse(command(tmp_path))))
    run.vocabulary = (*VOCABULARY, "more", "apple", "style")
    model = run.model()
    before = model.words.embedding.weight.detach().clone()
    restore(model, trained / "out")
    old = load_words(trained / "out/scenes.words.safetensors")
    rows = model.words.embedding.weight
    for word in ("circle", "apple"):
        new, kept = model.words.numbers[word], old.numbers[word]
        assert torch.equal(rows[new], old.embedding.weight[kept])
    assert torch.equal(rows[model.words.numbers["more"]], before[model.words.numbers["more"]])


def test_a_tokenizer_that_cannot_encode_is_refused_before_any_work(
    trained: Path, tmp_path: Path, capsys
) -> None:
    tensors = load_file(trained / "out/infinity_vae_scenes.safetensors")
    blind = {name: t for name, t in tensors.items() if not name.startswith("encoder.")}
    save_file(blind, tmp_path / "blind.safetensors")
    (tmp_path / "text.safetensors").write_text("no tensors")
    runs = tmp_path / "runs"
    for name, message in (
        ("blind", "has no encoder and 16 bits, expected an encoder and 16 bits"),
        ("text", "cannot be read as a tokenizer"),
        ("absent", "cannot be read as a tokenizer"),
    ):
        path = tmp_path / f"{name}.safetensors"
        assert main(["--runs", str(runs), "--tokenizer", str(path)]) == 1
        assert message in capsys.readouterr().err
    assert not list(runs.glob("*.pt"))


def test_presets_fit_their_times_and_options_win(tmp_path: Path) -> None:
    args = fill(parse(["--preset", "gpu", "--minutes", "7", "--emoji", "x.zip"]))
    assert (args.minutes, args.width, args.depth, args.emoji) == (7, 256, 8, Path("x.zip"))
    cpu = fill(parse([]))
    assert (cpu.width, cpu.depth, cpu.minutes, cpu.pictures) == (192, 6, 76, 36000)
    assert cpu.learning_rate == PRESETS["cpu"].fit.learning_rate > 0
    assert cpu.wrong_captions == PRESETS["cpu"].fit.wrong_captions > 0
    given = ["--wrong-captions", "0.3", "--runs", str(tmp_path)]
    assert Run(fill(parse(given))).fit == replace(PRESETS["cpu"].fit, wrong_captions=0.3)
    with pytest.raises(DataError, match="--wrong-captions 1 is no share"):
        fill(parse(["--wrong-captions", "1"]))
    assert cpu.emoji is None and cpu.output == Path("checkpoints/scenes")
    gpu = PRESETS["gpu"]
    assert gpu.tokenizer.minutes + gpu.decoder.minutes + gpu.fit.minutes <= 25 - 2
    assert fill(parse(["--preset", "gpu", "--emoji-share", "0"])).emoji is None
    for preset in PRESETS.values():
        assert sum(share for *_, share in preset.fit.prefixes) == pytest.approx(1)


def test_the_gpu_preset_has_about_ten_million_parameters(tmp_path: Path) -> None:
    write_zip(tmp_path / "e.zip")
    arguments = ["--preset", "gpu", "--emoji", str(tmp_path / "e.zip"), "--runs", str(tmp_path)]
    model = Run(fill(parse(arguments))).model()
    assert 8e6 < sum(p.numel() for p in model.parameters()) < 12e6


def test_without_the_zip_it_says_how_to_make_it(tmp_path: Path, capsys) -> None:
    assert main(["--preset", "gpu", "--emoji", str(tmp_path / "e.zip"), "--runs", str(tmp_path)])
    assert "python -m training.data.emoji --output" in capsys.readouterr().err
    assert main(["--emoji-share", "1", "--runs", str(tmp_path)]) == 1


def test_shares() -> None:
    assert [emoji_beside(36000, share) for share in (0.5, 0.25, 0.1)] == [36000, 12000, 4000]
