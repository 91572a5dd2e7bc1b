"""The five families' tiny checkpoints as files, in the formats of publishers and of training."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from conftest import infinity_states, prompts, var_states
from safetensors.torch import save_file
from tiny_text import hart_states, star_states, switti_states, take, text_features

State = Mapping[str, torch.Tensor]
Written = tuple[Path, dict[str, Any]]  # what is loaded, and the options it needs

STATES: dict[str, Callable[[], tuple[State, State]]] = {
    "var": var_states,
    "infinity": infinity_states,
    "switti": switti_states,
    "star": star_states,
    "hart": hart_states,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "infinity": {"size": "0.06M"},
    "star": {"patch_nums": "1_2_3_4"},
}
CONFIGS = {"switti": {"rope_size": 64}, "hart": {"num_sampling_steps": "2", "num_heads": 2}}
TOKENIZERS = {
    "var": "vae_tiny.pth",
    "infinity": "infinity_vae_tiny.pth",
    "star": "vae_tiny.pth",
    "switti": "vqvae",
    "hart": "tokenizer",
}
FORMS = ("pth", "safetensors", "training", "folder", "shards")


def pth(path: Path, state: State) -> Path:
    torch.save(dict(state), path.with_suffix(".pth"))
    return path.with_suffix(".pth")


def safetensors(path: Path, state: State, metadata: dict[str, str] | None = None) -> Path:
    plain = {name: tensor.contiguous().clone() for name, tensor in state.items()}
    save_file(plain, path.with_suffix(".safetensors"), metadata)
    return path.with_suffix(".safetensors")


def training(path: Path, state: State) -> Path:
    """As a training run saves it: wrapped, with other things beside it."""
    wrapped = {f"module.{name}": tensor for name, tensor in state.items()}
    torch.save({"epoch": 3, "args": {"lr": 0.1}, "state_dict": wrapped}, path.with_suffix(".pth"))
    return path.with_suffix(".pth")


def folder(path: Path, state: State) -> Path:
    path.mkdir()
    pth(path / "pytorch_model", state).rename(path / "pytorch_model.bin")
    return path


def shards(path: Path, state: State) -> Path:
    path.mkdir()
    names = sorted(state)
    weight_map = {}
    for i in range(2):
        part = {name: state[name] for name in names[i::2]}
        file = f"model-0000{i + 1}-of-00002"
        safetensors(path / file, part)
        weight_map |= dict.fromkeys(part, f"{file}.safetensors")
    index = {"metadata": {}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return path


WRITERS: dict[str, Callable[..., Path]] = {
    "pth": pth,
    "safetensors": safetensors,
    "training": training,
    "folder": folder,
    "shards": shards,
}


def write_family(family: str, form: str, at: Path, states: Any = None) -> Written:
    """Both files of a tiny model below the empty folder ``at``; ``states`` instead of its own."""
    state, tokenizer = states or STATES[family]()
    options = dict(OPTIONS.get(family, {}))
    if family in CONFIGS:  # published as folders
        form = "folder" if form in ("pth", "training", "safetensors") else form
    path = WRITERS[form](at / f"{family}_tiny", state)
    if family in CONFIGS:
        (path / "config.json").write_text(json.dumps(CONFIGS[family]))
        folder(at / TOKENIZERS[family], tokenizer)
    else:
        beside = path if path.is_dir() else at
        torch.save(
            {"vae": tokenizer} if family == "infinity" else tokenizer, beside / TOKENIZERS[family]
        )
        if path.is_dir():  # several files: the main one is named
            names = ("model.safetensors.index.json", "pytorch_model.bin")
            path = next(path / name for name in names if (path / name).exists())
    return path, options


def inputs_of(family: str, images: int = 1) -> dict[str, Any]:
    """What ``generate`` takes for so many pictures, three at most."""
    if family == "var":
        return {"labels": list(range(images))}
    if family == "infinity":
        return prompts(tuple(range(2, 2 + images)))
    wide = 40 if family == "switti" else 24
    features = take(text_features(3, wide, 24), list(range(images)))
    if family == "hart":
        return {"context": features["context"], "mask": features["mask"]}
    return features
