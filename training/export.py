"""Writes trained weights in the published file format."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from .state import save_torch

TRANSFORMER_FILE = "var_fashion.pth"
TOKENIZER_FILE = "vae_fashion.pth"
SCORER_FILE = "var_fashion.scorer.safetensors"


def half(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Floating-point tensors in half precision, the others as they are, all on the CPU."""
    return {
        name: (t.detach().cpu().half() if t.is_floating_point() else t.detach().cpu()).contiguous()
        for name, t in state.items()
    }


def export_tokenizer(state: Mapping[str, Tensor], hits: Tensor, folder: Path) -> Path:
    """Write the tokenizer with ``hits`` (scales, V) under the name of the published statistic."""
    path = folder / TOKENIZER_FILE
    save_torch(path, half(state) | {"quantize.ema_vocab_hit_SV": hits.detach().cpu().float()})
    return path


def export_transformer(state: Mapping[str, Tensor], folder: Path) -> Path:
    """Write the transformer."""
    path = folder / TRANSFORMER_FILE
    save_torch(path, half(state))
    return path


@torch.no_grad()
def round_to_half(model: torch.nn.Module) -> None:
    """Round weights to what the exported file will hold, so that tokens match it exactly."""
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(tensor.half().float())
