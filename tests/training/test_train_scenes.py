"""The command that trains the scenes checkpoint, in seconds.

pytest tests/training/test_train_scenes.py
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stagevar_probe.datasets.scenes import VOCABULARY
from stagevar_runtime.errors import StagevarError
from stagevar_runtime.loading import load
from stagevar_runtime.text.words import load_words
from training import train_scenes
from training.train_scenes import FIT, Run, main, parse

OPTIONS = ("--tokenizer-minutes 0.02 --decoder-minutes 0.01 --minutes 0.03 --width 64 --depth 1 "
           "--pictures 12 --device cpu").split()  # fmt: skip


@pytest.fixture(scope="module")
def small() -> Iterator[None]:
    """The command's own plans, with few pictures and small batches."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("TOKENIZER_PICTURES", "CEILING_PICTURES", "CHUNK"):
            patch.setattr(train_scenes, name, 6)
        patch.setattr("training.scenes.export.PROMPTS", {"calibration": 6, "held_out": 7})
        patch.setattr(train_scenes, "TOKENIZING", replace(train_scenes.TOKENIZING, batch=4))
        patch.setattr(train_scenes, "DECODING", replace(train_scenes.DECODING, batch=2))
        patch.setattr(train_scenes, "FIT", replace(FIT, prefixes=((7, 8, 0.6), (10, 4, 0.4))))
        yield


@pytest.fixture(scope="module")
def trained(small: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training."""
    folder = tmp_path_factory.mktemp("scenes")
    assert main(command(folder)) == 0
    return folder


def command(folder: Path, *more: str) -> list[str]:
    """The command line of a training in a folder."""
    return ["--runs", str(folder / "runs"), "--output", str(folder / "out"), *OPTIONS, *more]


def test_what_was_trained_draws(trained: Path) -> None:
    pipeline = load(trained / "out/scenes.safetensors", device="cpu", profile=None)
    images = pipeline.generate(prompts=["a red circle left of a blue square"], seed=0).images
    assert images.shape == (1, 3, 128, 128) and images.isfinite().all()
    with pytest.raises(StagevarError, match=r"circel.*did you mean circle"):
        pipeline.generate(prompts=["a red circel"])
    assert load_words(trained / "out/scenes.words.safetensors").vocabulary == VOCABULARY


def test_every_picture_is_encoded_with_its_caption(trained: Path) -> None:
    saved = [torch.load(p, weights_only=True) for p in (trained / "runs/features").glob("*.pt")]
    assert len(saved) == 2 and all(len(part["features"]) == 6 for part in saved)
    assert all(len(part["captions"]) == 6 for part in saved)


def test_the_run_says_what_it_will_do_and_goes_on(trained: Path, capsys) -> None:
    assert main(command(trained)) == 0
    out = capsys.readouterr().out
    assert "on cpu: tokenizer, features" in out and "pictures: 12 scenes" in out
    assert "transformer: width 64, 1 blocks, 0." in out
    assert "0.03 min, batches 8 to scale 7, 4 to scale 10" in out


def test_another_size_in_the_same_folder_is_refused(trained: Path, capsys) -> None:
    assert main(command(trained, "--width", "32")) == 1
    assert "was begun with width 64, not 32" in capsys.readouterr().err


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


def test_options_win_over_the_plan(tmp_path: Path, capsys) -> None:
    args = parse(["--wrong-captions", "0.3", "--runs", str(tmp_path)])
    fit = Run(args).fit
    assert (fit.wrong_captions, fit.minutes, fit.learning_rate) == (0.3, 76, FIT.learning_rate)
    assert (args.width, args.depth, args.minutes, args.pictures) == (192, 6, 76, 36000)
    with pytest.raises(SystemExit):
        parse(["--wrong-captions", "1"])
    assert "--wrong-captions 1 is no share" in capsys.readouterr().err
    assert sum(share for *_, share in FIT.prefixes) == pytest.approx(1)
