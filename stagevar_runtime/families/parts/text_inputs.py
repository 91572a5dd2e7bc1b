"""Checks of text features that families condition on: shapes named, padding made equal."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ...errors import StagevarError
from ...model.inputs import finite, tensor
from ...model.protocol import Conditioning


def text_and_pooled(
    context: Tensor,
    pooled: Tensor,
    mask: Tensor,
    null_context: Tensor | None,
    null_pooled: Tensor | None,
    null_mask: Tensor | None,
    context_width: int,
    pooled_width: int,
) -> Conditioning:
    """Text features, pooled features and masks of the prompts and of the null prompt.

    Padding is set to zero, so that nothing a caller left in it reaches a result.
    ``context`` ``(B, T, context_width)``, ``pooled`` ``(B, pooled_width)``, ``mask`` ``(B, T)``,
    True where there is a token; the null ones alike, or with one row for all images.

    Raises:
        StagevarError: a shape is wrong, a row has no token, or the null features are missing.
    """
    if null_context is None or null_pooled is None or null_mask is None:
        raise StagevarError(
            "got no null_context, null_pooled and null_mask, expected the features of the empty "
            "prompt. Encode it once: stagevar_runtime.text.clip keeps them"
        )
    context = tensor("context", context)
    batch = context.shape[0] if context.ndim else 0
    cond = _side("", context, pooled, mask, batch, context_width, pooled_width)
    null = _side("null_", null_context, null_pooled, null_mask, batch, context_width, pooled_width)
    longest = max(cond["mask"].shape[1], null["mask"].shape[1])
    return Conditioning(_padded(cond, longest), _padded(null, longest))


def _side(
    prefix: str,
    context: Tensor,
    pooled: Tensor,
    mask: Tensor,
    batch: int,
    context_width: int,
    pooled_width: int,
) -> dict[str, Tensor]:
    context = checked_text(f"{prefix}context", context, batch, context_width)
    mask = checked_mask(f"{prefix}mask", mask, context.shape[:2], batch)
    pooled = tensor(f"{prefix}pooled", pooled).float()
    if pooled.ndim != 2 or pooled.shape[1] != pooled_width or pooled.shape[0] not in (1, batch):
        raise StagevarError(
            f"{prefix}pooled has shape {tuple(pooled.shape)}, expected ({batch}, {pooled_width})"
        )
    context = context.masked_fill(~mask.to(context.device)[..., None], 0.0)
    return {
        "context": finite(f"{prefix}context", context).expand(batch, -1, -1),
        "pooled": finite(f"{prefix}pooled", pooled).expand(batch, -1),
        "mask": mask.expand(batch, -1),
    }


def checked_text(name: str, text: Tensor, batch: int, width: int) -> Tensor:
    """``text`` ``(B or 1, T, width)`` as float32."""
    text = tensor(name, text)
    if text.ndim != 3 or text.shape[2] != width or text.shape[0] not in (1, batch) or batch == 0:
        raise StagevarError(
            f"{name} has shape {tuple(text.shape)}, expected ({batch or 'B'}, T, {width})"
        )
    return text.float()


def checked_mask(name: str, mask: Tensor, shape: torch.Size, batch: int) -> Tensor:
    """``mask`` ``(B or 1, T)`` as booleans, True where there is a token."""
    mask = tensor(name, mask)
    if mask.ndim != 2 or mask.shape[1] != shape[1] or mask.shape[0] not in (1, batch):
        raise StagevarError(f"{name} has shape {tuple(mask.shape)}, expected {tuple(shape)}")
    if mask.dtype != torch.bool and not ((mask == 0) | (mask == 1)).all():
        raise StagevarError(f"{name} holds other numbers than 0 and 1: pass True where a token is")
    mask = mask.bool()
    if not mask.any(dim=1).all():
        raise StagevarError(f"{name} has a row without any token, expected at least one True")
    return mask


def _padded(side: dict[str, Tensor], longest: int) -> dict[str, Tensor]:
    missing = longest - side["mask"].shape[1]
    if missing == 0:
        return side
    context = F.pad(side["context"], (0, 0, 0, missing))
    return side | {"context": context, "mask": F.pad(side["mask"], (0, missing))}


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A boolean mask ``(rows, T)`` as a bias on attention scores, ``(rows, 1, 1, T)``."""
    bias = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return bias.masked_fill(~mask, -torch.inf)[:, None, None]
