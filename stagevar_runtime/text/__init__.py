"""Text encoders, each behind an optional extra. Models take features; these make them."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import StagevarError
from .clip import SWITTI_ENCODERS, ClipEncoder
from .qwen import QwenEncoder
from .t5 import T5Encoder
from .words import SUFFIX, load_words, words_beside

__all__ = ["ClipEncoder", "Encode", "QwenEncoder", "T5Encoder", "encoder_for"]

logger = logging.getLogger("stagevar_runtime")

Encode = Callable[[Sequence[str]], Mapping[str, Tensor]]
"""Prompts → what the family's ``condition`` takes, by name."""


def encoder_for(
    family: str,
    source: str | Path | None,
    device: torch.device,
    checkpoint: Path | None = None,
) -> Encode:
    """The encoder a family was trained with, loaded by the first call that needs it.

    ``source``: a local folder, a name on the Hub (Switti: two, with a comma between), a word
    encoder's file, or ``module:function`` for one's own :data:`Encode`. None is the word encoder
    beside ``checkpoint`` if there is one, else the published one.

    Raises:
        StagevarError: the family takes no text, or ``module:function`` cannot be imported.
    """
    if source is None and checkpoint is not None:
        source = words_beside(checkpoint)
    said = str(source) if source is not None else None
    if said is not None and said.endswith(SUFFIX):
        return load_words(Path(said), device).encode
    if said is not None and ":" in said and not Path(said).exists():
        return _imported(said)
    how: dict[str, Any] = {"device": device} | ({} if said is None else {"source": said})
    if family == "infinity":
        t5 = T5Encoder(**how)
        return lambda prompts: dict(zip(("text", "mask"), t5.encode(prompts), strict=True))
    if family == "switti":
        both = SWITTI_ENCODERS if said is None else tuple(said.split(","))
        return ClipEncoder.switti(both, device=device).encode
    if family == "star":
        return ClipEncoder.star(**how).encode
    if family == "hart":
        logger.warning(
            "prompts are read without HART's published system prompt, which it was trained with: "
            "pass text_encoder=QwenEncoder(system_prompt).encode to give it"
        )
        return QwenEncoder("", **how).encode
    raise StagevarError(f"the {family} family has no text encoder of its own: pass module:function")


def _imported(name: str) -> Encode:
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise StagevarError(
            f"text encoder {name}: {error}; expected a folder, a Hub name or module:function"
        ) from error
