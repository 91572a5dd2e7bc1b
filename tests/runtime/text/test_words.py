"""The closed-vocabulary encoder that ships beside a model.

pytest tests/runtime/text/test_words.py
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from stagevar_runtime.errors import CheckpointError, StagevarError
from stagevar_runtime.text import encoder_for
from stagevar_runtime.text.words import (
    WordEncoder,
    load_words,
    save_words,
    split_words,
    words_beside,
)

WORDS = ("a", "red", "circle", "square", "and")


@pytest.fixture
def encoder() -> WordEncoder:
    torch.manual_seed(0)
    made = WordEncoder(WORDS, length=6, width=16, depth=2, heads=2).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_((parameter + 0.1 * torch.randn_like(parameter)).half())
    return made


def test_what_is_saved_is_loaded(encoder: WordEncoder, tmp_path: Path) -> None:
    path = tmp_path / "m.words.safetensors"
    save_words(path, encoder)
    again = load_words(path)
    assert again.vocabulary == WORDS and again.blocks[0].heads == 2
    prompts = ["a red circle", "a square"]
    one, two = encoder.encode(prompts), again.encode(prompts)
    assert torch.equal(one["mask"], two["mask"])
    assert torch.allclose(one["text"], two["text"], atol=1e-6)


def test_padding_changes_nothing(encoder: WordEncoder) -> None:
    both = encoder.encode(["a circle", "a red circle and a square"])
    alone = encoder.encode(["a circle"])
    assert both["text"].shape == (2, 6, 16) and both["mask"].sum(1).tolist() == [2, 6]
    assert torch.allclose(both["text"][0, :2], alone["text"][0], atol=1e-6)
    assert both["text"][0, 2:].abs().max() == 0


def test_order_matters(encoder: WordEncoder) -> None:
    text = encoder.encode(["a red circle", "circle red a"])["text"]
    assert (text[0, 1] - text[1, 1]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("prompt", "match"),
    [
        ("a red circel", "'circel'; did you mean circle"),
        ("a zzz", "it knows a, red"),
        ("...", "0 words, expected 1 to 6"),
        ("a a a a a a a", "7 words, expected 1 to 6"),
    ],
)
def test_bad_prompts_are_one_clear_error(encoder: WordEncoder, prompt: str, match: str) -> None:
    with pytest.raises(StagevarError, match=match):
        encoder.encode([prompt])


def test_found_beside_a_checkpoint(encoder: WordEncoder, tmp_path: Path) -> None:
    checkpoint = tmp_path / "m.safetensors"
    checkpoint.touch()
    assert words_beside(checkpoint) is None
    save_words(tmp_path / "m.words.safetensors", encoder)
    encode = encoder_for("infinity", None, torch.device("cpu"), checkpoint)
    assert encode(["a circle"])["text"].shape == (1, 2, 16)


def test_another_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.words.safetensors"
    path.write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="not a word encoder"):
        load_words(path)


def test_an_error_lists_sixty_words_of_many_at_most() -> None:
    encoder = WordEncoder([f"w{i}" for i in range(1500)], length=4, width=8)
    with pytest.raises(StagevarError, match=r"w58, w59 and 1440 more$") as caught:
        encoder.numbered(["xyzzyx"])
    assert len(str(caught.value)) < 500


def test_split_words_keeps_hyphens_and_apostrophes() -> None:
    assert split_words("T-Rex, a woman's hat; 3D style!") == "t-rex a woman's hat 3d style".split()


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("a red \u5706 circle", "\u5706"),
        ("a \u043a\u0440\u0430\u0441\u043d\u044b\u0439 circle", "\u043a\u0440\u0430\u0441"),
        ("a red circle \U0001f642", "\U0001f642"),
        ("a red circle e\u0301", "\u00e9"),
        ("a red + circle", r"\+"),
        ("a red \u0661 circle", "\u0661"),
    ],
)
def test_words_of_any_script_are_not_passed_over(text: str, word: str) -> None:
    encoder = WordEncoder(("a", "red", "circle"), 6, 16, 1, 2).eval()
    with pytest.raises(StagevarError, match=f"knows no word '{word}"):
        encoder.numbered([text])
    plain = encoder.numbered(["a red circle"])[0]
    for same in ("A Red, circle!", "a\u00a0red\u3000circle\u2026", "\uff41 red \u201ccircle\u201d"):
        assert torch.equal(encoder.numbered([same])[0], plain)
