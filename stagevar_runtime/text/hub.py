"""Loading encoders through ``transformers``, with errors that say what to do."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import torch

from ..errors import CheckpointError, StagevarError, one_line

T = TypeVar("T")


def transformers_module(source: str, extra: str, inputs: str) -> ModuleType:
    """The ``transformers`` package.

    Raises:
        StagevarError: it is not installed; names the extra that brings it.
    """
    try:
        import transformers
    except ImportError as error:
        raise StagevarError(
            f"encoding prompts with {source} needs transformers: pip install 'stagevar[{extra}]', "
            f"or pass precomputed features ({inputs})"
        ) from error
    return transformers


def from_hub(source: str, what: str, load: Callable[[bool], T]) -> T:
    """What ``load`` makes; it is told whether ``source`` is a local folder.

    Raises:
        CheckpointError: the files cannot be found or read.
    """
    try:
        return load(Path(source).exists())
    except (OSError, ValueError) as error:
        said = one_line(error, named=False)
        raise CheckpointError(
            f"{source}: not a {what} that can be loaded ({said}). Pass the folder of the published "
            "one, or precomputed features"
        ) from error


class Loaded:
    """A tokenizer and an encoder, loaded by the first prompts that need them."""

    device: torch.device
    _parts: tuple[Any, Any] | None = None

    def to(self, device: torch.device) -> None:
        """Encode there from now on; what was loaded moves along."""
        self.device = device
        if self._parts is not None:
            self._parts[1].to(device)

    def drop(self) -> None:
        """Forget the encoder and free its memory; the next new prompt loads it again."""
        self._parts = None
        free(self.device)


def ready(model: Any, device: torch.device) -> Any:
    """A module on its device, for inference."""
    return model.to(device).eval().requires_grad_(False)


def free(device: torch.device) -> None:
    """Give dropped modules' memory back."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def checked_prompts(prompts: object) -> None:
    """Raise StagevarError unless ``prompts`` is a list with at least one string."""
    if isinstance(prompts, str) or not prompts:
        raise StagevarError(f"got {prompts!r}, expected a list of prompts")
