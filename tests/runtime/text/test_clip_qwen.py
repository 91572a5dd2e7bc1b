"""The encoders of Switti, STAR and HART, on stand-ins.

pytest tests/runtime/text/test_clip_qwen.py
"""

import sys
from types import SimpleNamespace

import pytest
import torch
from tiny_text import hart_states, star_states

from stagevar_runtime import Sampling
from stagevar_runtime.errors import CheckpointError, StagevarError
from stagevar_runtime.families.hart import HART
from stagevar_runtime.families.star import STAR
from stagevar_runtime.loop import engine
from stagevar_runtime.loop.plan import plan_for
from stagevar_runtime.text import ClipEncoder, QwenEncoder

CPU = torch.device("cpu")


class Words:
    """A tokenizer: one id a word, 0 for padding, 1 in front."""

    pad_token_id = 0

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, prompts, truncation, max_length, return_tensors, padding=False):
        assert truncation and return_tensors == "pt"
        self.calls += 1
        rows = [[1, *(2 + len(word) for word in prompt.split())][:max_length] for prompt in prompts]
        longest = max_length if padding == "max_length" else max(map(len, rows))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        return {"input_ids": ids, "attention_mask": (ids != 0).long()}


class Encoder:
    """Features that tell the token, its place and how many tokens are seen."""

    def __init__(self, width: int) -> None:
        self.width = width

    def __call__(self, input_ids, attention_mask, output_hidden_states=False):
        place = torch.arange(input_ids.shape[1]).expand_as(input_ids)
        facts = [input_ids, place, attention_mask.sum(1, keepdim=True).expand_as(input_ids)]
        hidden = torch.stack(facts, -1).float().repeat(1, 1, self.width // 3).half()
        pooled = hidden.sum(1)
        return {"last_hidden_state": hidden, "pooler_output": pooled, "hidden_states": [hidden]}


def test_clip_lays_encoders_side_by_side_and_keeps_the_null_prompt() -> None:
    parts = {"a": (Words(), Encoder(3)), "b": (Words(), Encoder(6))}
    loaded = []
    encoder = ClipEncoder.switti(
        ["a", "b"], device="cpu", load=lambda source: loaded.append(source) or parts[source]
    )
    got = encoder.encode(["red cube", "ball", "a b c"], batch=2)
    assert loaded == ["a", "b"] and parts["a"][0].calls == 3  # the null prompt, then two batches
    assert got["context"].shape == (3, 77, 9) and got["pooled"].shape == (3, 6)
    assert got["context"].dtype == got["pooled"].dtype == torch.float32
    assert got["mask"].dtype == torch.bool and got["mask"].sum(1).tolist() == [3, 2, 4]
    assert got["context"][0, :3, 0].tolist() == [1, 5, 6]
    assert got["null_context"].shape == (1, 77, 9) and got["null_mask"].sum() == 1
    again = encoder.encode(["ball"])
    assert parts["a"][0].calls == 4 and again["null_pooled"] is got["null_pooled"]
    torch.testing.assert_close(again["context"][0], got["context"][1])
    encoder.drop()
    encoder.encode(["ball"])
    assert loaded == ["a", "b", "a", "b"]


def test_clip_features_fit_star() -> None:
    options = {"patch_nums": (1, 2, 3, 4)}
    model = STAR.from_tensors(*star_states(), CPU, torch.float32, options)
    encoder = ClipEncoder.star(device="cpu", load=lambda source: (Words(), Encoder(24)))
    inputs = model.condition(**encoder.encode(["a red cube", "a ball"]))
    made = engine.generate(model, inputs, plan_for(model, (), Sampling(guidance=3.0)), seed=[1, 2])
    assert torch.isfinite(made.images).all()


def test_qwen_reads_the_system_prompt_and_cuts_it_off() -> None:
    plain = QwenEncoder("", device="cpu", tokens=7, load=lambda: (Words(), Encoder(24)))
    words = Words()
    told = QwenEncoder("draw it well", device="cpu", tokens=7, load=lambda: (words, Encoder(24)))
    alone, after = plain.encode(["a red cube", "x"]), told.encode(["a red cube", "x"])
    for got in (alone, after):
        assert got["context"].shape == (2, 7, 24) and got["context"].dtype == torch.float32
        assert got["mask"].sum(1).tolist() == [4, 2]
    assert torch.equal(alone["context"][..., 0], after["context"][..., 0])  # the same tokens,
    assert torch.equal(alone["context"][..., 1] + 4, after["context"][..., 1])  # four places later,
    assert torch.equal(
        alone["context"][..., 2] + 4, after["context"][..., 2]
    )  # seen with four more
    model = HART.from_tensors(*hart_states(tokens=7), CPU, torch.float32, {})
    made = engine.generate(
        model, model.condition(**after), plan_for(model, (), Sampling(guidance=3.0)), seed=[1, 2]
    )
    assert torch.isfinite(made.images).all()


@pytest.mark.parametrize(
    ("encoder", "extra"),
    [
        (lambda: ClipEncoder.switti(device="cpu"), "clip"),
        (lambda: ClipEncoder.star(device="cpu"), "clip"),
        (lambda: QwenEncoder("", device="cpu"), "qwen"),
    ],
)
def test_what_is_missing_is_named(encoder, extra, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StagevarError, match=r"got \[\], expected a list of prompts"):
        encoder().encode([])
    with pytest.raises(StagevarError, match="got 'one', expected a list of prompts"):
        encoder().encode("one")
    monkeypatch.setitem(sys.modules, "transformers", None)
    message = rf"pip install 'stagevar\[{extra}\]', or pass precomputed features \(context="
    with pytest.raises(StagevarError, match=message):
        encoder().encode(["one"])

    class Absent:
        @staticmethod
        def from_pretrained(*_: object, **__: object) -> None:
            raise OSError("no such folder\nmore")

    names = ("CLIPTokenizer", "CLIPTextModel", "AutoTokenizer", "AutoModel")
    monkeypatch.setitem(
        sys.modules, "transformers", SimpleNamespace(**dict.fromkeys(names, Absent))
    )
    with pytest.raises(CheckpointError, match=r"that can be loaded \(no such folder more\)"):
        encoder().encode(["one"])
