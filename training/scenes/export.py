"""Writes the trained weights as an Infinity checkpoint: published names, safetensors, half."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from stagevar_probe.datasets.scenes import VOCABULARY, parse
from stagevar_probe.datasets.scenes.prompts import UNSEEN, prompt_lines, suite_prompts
from stagevar_runtime.checkpoint.reader import OWN
from stagevar_runtime.text.words import SUFFIX, WordEncoder, load_words, save_words

from ..export import half
from .settings import SIZES
from .transformer import TextToImage

NAME = "scenes"
SETTINGS = {"metric": "scenes", "guidance": "2.5", "temperature": "1", "top_p": "0"}
PROMPTS = {"calibration": 240, "held_out": 1050}


def export(
    state: Mapping[str, Tensor],
    tokenizer: Mapping[str, Tensor],
    folder: Path,
    vocabulary: Sequence[str] = VOCABULARY,
    name: str = NAME,
    sizes: Sequence[tuple[int, int]] = SIZES,
) -> list[Path]:
    """Write transformer, tokenizer and words as ``name.*``; the paths written.

    Args:
        state: of a :class:`TextToImage`, trained on scales of ``sizes`` with words ``vocabulary``.
        tokenizer: its tokenizer's state.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [
        folder / f"{name}.safetensors",
        folder / f"infinity_vae_{name}.safetensors",
        folder / (name + SUFFIX),
        folder / f"{name}.prompts.jsonl",
    ]
    own = {n.removeprefix("transformer."): t for n, t in state.items() if n[:12] == "transformer."}
    schedule = " ".join(f"{h}x{w}" for h, w in sizes)
    settings = {"schedule": schedule, **SETTINGS}
    save_file(half(own), str(paths[0]), {OWN + key: value for key, value in settings.items()})
    save_file(half(tokenizer), str(paths[1]))
    length, width = state["words.position"].shape
    words = WordEncoder(vocabulary, length, width)
    with torch.no_grad():
        for part, parameter in words.state_dict().items():
            parameter.copy_(state[f"words.{part}"])
    save_words(paths[2], words)
    lines = [("calibration", text) for text in prompt_lines(PROMPTS["calibration"], seed=0)]
    lines += [
        ("held_out", text)
        for kind, text in suite_prompts(PROMPTS["held_out"], seed=1)
        if kind != UNSEEN
    ]
    rows = [parse(text).metadata(text) | {"split": split} for split, text in lines]
    paths[3].write_text("".join(json.dumps(row) + "\n" for row in rows))
    return paths


def restore(model: TextToImage, folder: Path) -> None:
    """Put exported weights back into a training model of the same size.

    Words that the model has and the file has not keep their random start.
    """
    own = load_file(folder / f"{NAME}.safetensors")
    state = {f"transformer.{name}": tensor.float() for name, tensor in own.items()}
    words = load_words(folder / (NAME + SUFFIX))
    known = [word for word in words.vocabulary if word in model.words.numbers]
    rows = model.words.embedding.weight.detach().clone()
    rows[[model.words.numbers[word] for word in known]] = words.embedding.weight[
        [words.numbers[word] for word in known]
    ]
    state |= {f"words.{name}": tensor for name, tensor in words.state_dict().items()}
    state["words.embedding.weight"] = rows
    model.load_state_dict(state)
