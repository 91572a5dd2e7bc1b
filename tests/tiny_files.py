"""A tiny random text-to-image checkpoint as files, and seeds as diffusers takes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from conftest import infinity_states
from safetensors.torch import save_file

from stagevar_runtime.text.words import SUFFIX, WordEncoder, save_words

RED = "a red cube"


def write_infinity(folder: Path) -> Path:
    """A random Infinity of four scales as files, with a word encoder of its own."""
    transformer, tokenizer = infinity_states()
    save_file(transformer, folder / "tiny.safetensors", {"stagevar.schedule": "1x1 2x2 3x3 4x4"})
    torch.save(tokenizer, folder / "infinity_vae_tiny.pth")
    torch.manual_seed(0)
    words = WordEncoder(["a", "red", "blue", "cube", "ball", "blurry"], 12, 24, depth=1, heads=2)
    save_words(folder / f"tiny{SUFFIX}", words)
    return folder / "tiny.safetensors"


def seeded(*seeds: int) -> Any:
    made = [torch.Generator().manual_seed(seed) for seed in seeds]
    return made[0] if len(made) == 1 else made
