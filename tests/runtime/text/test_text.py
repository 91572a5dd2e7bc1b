"""Prompts to features: padding, cache, what is missing.

pytest tests/runtime/text/test_text.py
"""

import sys
from pathlib import Path

import pytest
import torch

from stagevar_runtime.errors import CheckpointError, StagevarError
from stagevar_runtime.text import T5Encoder


class Words:
    """A tokenizer: a word a token, and an end mark."""

    def __call__(self, text: list[str], padding: bool, return_tensors: str) -> dict:
        assert padding and return_tensors == "pt"
        ids = [torch.tensor([len(word) for word in p.split()] + [1]) for p in text]
        padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
        return {"input_ids": padded, "attention_mask": (padded > 0).long()}


class Halves:
    """An encoder: every token's features are half its id; padding is left dirty."""

    calls = 0

    def __call__(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict:
        Halves.calls += 1
        features = input_ids[..., None].expand(-1, -1, 3).float() / 2
        return {"last_hidden_state": features.masked_fill(attention_mask[..., None] == 0, 9.0)}


def encoder(**changes: object) -> T5Encoder:
    Halves.calls = 0
    options = {"device": "cpu", "load": lambda: (Words(), Halves())} | changes
    return T5Encoder("fake", **options)  # type: ignore[arg-type]


def test_features_are_cut_to_each_prompt() -> None:
    text, mask = encoder().encode(["red cube", "a", "one two three four"])
    assert text.shape == (3, 5, 3) and text.dtype == torch.float32
    assert mask.sum(1).tolist() == [3, 2, 5] and mask.dtype == torch.bool
    assert text[0, :, 0].tolist() == [1.5, 2.0, 0.5, 0.0, 0.0]


def test_a_batch_equals_one_at_a_time() -> None:
    prompts = ["red cube", "a", "one two three four", "red cube"]
    text, _ = encoder().encode(prompts, batch=2)
    assert Halves.calls == 2, "the same prompt is encoded once"
    for i, prompt in enumerate(prompts):
        alone, mask = encoder().encode([prompt])
        assert torch.equal(alone[0], text[i, : mask.sum()])


def test_cached_features_need_no_encoder(tmp_path: Path) -> None:
    first, mask = encoder(cache=tmp_path).encode(["red cube", "a"])
    assert len(list(tmp_path.iterdir())) == 2

    def refuse() -> tuple:
        raise AssertionError("loaded although every prompt is cached")

    again, same = encoder(cache=tmp_path, load=refuse).encode(["a", "red cube"])
    assert torch.equal(again, first.flip(0)) and torch.equal(same, mask.flip(0))
    with pytest.raises(AssertionError):
        encoder(cache=tmp_path, load=refuse, dtype=torch.float16).encode(["a"])
    damaged = next(tmp_path.iterdir())
    damaged.write_bytes(b"no")
    with pytest.raises(CheckpointError, match="damaged features"):
        encoder(cache=tmp_path).encode(["a", "red cube"])


def test_a_dropped_encoder_is_loaded_again() -> None:
    loads = []
    made = encoder(load=lambda: loads.append(1) or (Words(), Halves()))
    made.encode(["a"])
    made.encode(["b"])
    assert len(loads) == 1
    made.drop()
    made.encode(["c"])
    assert len(loads) == 2


def test_bad_prompts_are_named() -> None:
    with pytest.raises(StagevarError, match=r"'one two three'.* has 4 tokens, expected at most 3"):
        encoder(max_length=3).encode(["a", "one two three"])
    with pytest.raises(StagevarError, match="got 'a cube', expected a list"):
        encoder().encode("a cube")
    with pytest.raises(StagevarError, match=r"got \[\], expected a list"):
        encoder().encode([])


def test_without_transformers_the_message_says_what_to_do(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    made = T5Encoder("google/flan-t5-xl", device="cpu")
    with pytest.raises(StagevarError, match=r"pip install 'stagevar\[t5\]', or pass precomputed"):
        made.encode(["a cube"])


@pytest.mark.filterwarnings("ignore")
def test_a_tiny_t5_through_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    words = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2, "cube": 3}, "<unk>")
    )
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    words.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    fast.save_pretrained(tmp_path)
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=4, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2
    )
    transformers.T5EncoderModel(config).save_pretrained(tmp_path)
    made = T5Encoder(tmp_path, device="cpu")
    text, mask = made.encode(["cube cube cube", "cube"])
    assert text.shape == (2, 4, 16) and mask.sum(1).tolist() == [4, 2]
    alone, _ = made.encode(["cube"])
    torch.testing.assert_close(alone[0], text[1, :2], atol=1e-5, rtol=0)
    assert (text[1, 2:] == 0).all()
    with pytest.raises(CheckpointError, match="not a T5 encoder that can be loaded"):
        T5Encoder(tmp_path / "nothing", device="cpu").encode(["a"])
