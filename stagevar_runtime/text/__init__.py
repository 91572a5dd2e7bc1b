"""Text encoders, each behind an optional extra. Models take features; these make them."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import StagevarError
from .clip import SWITTI_ENCODERS, ClipEncoder
from .qwen import QwenEncoder
from .t5 import T5Encoder
from .words import SUFFIX, load_words, words_beside

__all__ = ["ClipEncoder", "Encode", "QwenEncoder", "T5Encoder", "TextEncoder", "encoder_for"]

logger = logging.getLogger("stagevar_runtime")

Encode = Callable[[Sequence[str]], Mapping[str, Tensor]]
"""Prompts → what the family's ``condition`` takes, by name."""


@dataclass(frozen=True)
class TextEncoder:
    """An :data:`Encode` that can be moved: ``encode`` reads prompts, ``to`` takes a device.

    ``check`` raises StagevarError for prompts that it cannot read, without reading them.
    """

    encode: Encode
    to: Callable[[torch.device], object]
    check: Callable[[Sequence[str]], object] = len

    def __call__(self, prompts: Sequence[str]) -> Mapping[str, Tensor]:
        return self.encode(prompts)


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
        words = load_words(Path(said), device)
        return TextEncoder(words.encode, words.to, words.numbered)
    if said is not None and ":" in said and not Path(said).exists():
        return _imported(said)
    how: dict[str, Any] = {"device": device} | ({} if said is None else {"source": said})
    if family == "infinity":
        t5 = T5Encoder(**how)
        return TextEncoder(
            lambda prompts: dict(zip(("text", "mask"), t5.encode(prompts), strict=True)), t5.to
        )
    if family == "switti":
        both = SWITTI_ENCODERS if said is None else tuple(said.split(","))
        clip = ClipEncoder.switti(both, device=device)
        return TextEncoder(clip.encode, clip.to)
    if family == "star":
        clip = ClipEncoder.star(**how)
        return TextEncoder(clip.encode, clip.to)
    if family == "hart":
        logger.warning(
            "prompts are read without HART's published system prompt, which it was trained with: "
            "pass text_encoder=QwenEncoder(system_prompt).encode to give it"
        )
        qwen = QwenEncoder("", **how)
        return TextEncoder(qwen.encode, qwen.to)
    raise StagevarError(f"the {family} family has no text encoder of its own: pass module:function")


def _imported(name: str) -> Encode:
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise StagevarError(
            f"text encoder {name}: {error}; expected a folder, a Hub name or module:function"
        ) from error
