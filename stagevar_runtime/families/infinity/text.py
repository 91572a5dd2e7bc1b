"""Checked text features: what :meth:`Infinity.condition` takes, made into padded rows."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import StagevarError
from ...model.inputs import finite, tensor
from .blocks import InfinityConfig


def check_text(
    name: str, mask_name: str, text: Tensor, mask: Tensor, config: InfinityConfig
) -> tuple[Tensor, Tensor]:
    """Features ``(B, T, text width)`` float32 and mask ``(B, T)`` bool, cut to the longest prompt.

    Tokens are moved to the front and padding is set to zero, so that what a caller left in it
    (even NaN) cannot reach a result.

    Raises:
        StagevarError: saying which of the two was got in which shape, and what was expected.
    """
    text, mask = tensor(name, text), tensor(mask_name, mask)
    if text.ndim != 3 or not text.is_floating_point() or 0 in text.shape:
        raise StagevarError(
            f"{name} is {text.dtype} of shape {tuple(text.shape)}, expected floats "
            f"(prompts, tokens, {config.text_width})"
        )
    if text.shape[2] != config.text_width:
        raise StagevarError(
            f"{name} has features of width {text.shape[2]}, expected {config.text_width}: use the "
            f"text encoder the model was trained with"
        )
    if mask.shape != text.shape[:2]:
        raise StagevarError(
            f"{mask_name} has shape {tuple(mask.shape)}, expected {tuple(text.shape[:2])} as {name}"
        )
    if mask.dtype != torch.bool and not ((mask == 0) | (mask == 1)).all():
        raise StagevarError(f"{mask_name} holds other numbers than 0 and 1")
    mask = mask.to(text.device) != 0
    lengths = mask.sum(1).tolist()
    for i, length in enumerate(lengths):
        if length == 0:
            raise StagevarError(
                f"{mask_name} row {i} is empty, expected at least one token a prompt"
            )
        if length > config.text_length:
            raise StagevarError(
                f"prompt {i} of {name} has {length} tokens, expected at most {config.text_length}"
            )
    order = (~mask).long().argsort(dim=1, stable=True)[:, : max(lengths)]
    mask = mask.gather(1, order)
    chosen = text.float().gather(1, order[..., None].expand(-1, -1, text.shape[2]))
    return finite(name, chosen.masked_fill(~mask[..., None], 0.0)), mask


def padded(text: Tensor, mask: Tensor, length: int) -> dict[str, Tensor]:
    """Rows of one branch: text and mask, zero beyond each prompt, ``length`` tokens long."""
    extra = length - mask.shape[1]
    text = torch.nn.functional.pad(text.masked_fill(~mask[..., None], 0.0), (0, 0, 0, extra))
    return {"text": text, "mask": torch.nn.functional.pad(mask, (0, extra))}
