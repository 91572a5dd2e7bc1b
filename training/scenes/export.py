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
from stagevar_runtime.families.tokenizers.bsq_vae import BSQVAE
from stagevar_runtime.text.words import SUFFIX, WordEncoder, load_words, save_words

from ..export import half
from .settings import SIZES, TEXT_LENGTH, TEXT_WIDTH
from .transformer import TextToImage

NAME = "scenes"
TOKENIZER_NAME = "infinity_vae_scenes.safetensors"
SETTINGS = {"metric": "scenes", "guidance": "2.5", "temperature": "1", "top_p": "0"}
PROMPTS = {"calibration": 240, "held_out": 1050}


def export(
    state: Mapping[str, Tensor],
    tokenizer: BSQVAE,
    folder: Path,
    vocabulary: Sequence[str] = VOCABULARY,
) -> list[Path]:
    """Write transformer, tokenizer and words of a training state dict; the paths written."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [
        folder / f"{NAME}.safetensors",
        folder / TOKENIZER_NAME,
        folder / (NAME + SUFFIX),
        folder / f"{NAME}.prompts.jsonl",
    ]
    own = {n.removeprefix("transformer."): t for n, t in state.items() if n[:12] == "transformer."}
    schedule = " ".join(f"{h}x{w}" for h, w in SIZES)
    settings = {"schedule": schedule, **SETTINGS}
    save_file(half(own), str(paths[0]), {OWN + name: value for name, value in settings.items()})
    save_file(half(tokenizer.state_dict()), str(paths[1]))
    words = WordEncoder(vocabulary, TEXT_LENGTH, TEXT_WIDTH)
    with torch.no_grad():
        for name, parameter in words.state_dict().items():
            parameter.copy_(state[f"words.{name}"])
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
