"""The families this installation knows, and which of them a checkpoint belongs to.

A family is a class with the attributes of :class:`Family`. Others register theirs under the entry
point group ``stagevar.families``.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from typing import Any, Protocol

import torch

from ..checkpoint.reader import Checkpoint
from ..errors import UnsupportedModelError
from ..model.protocol import ScaleModel
from .hart import HART
from .infinity.model import Infinity
from .star import STAR
from .switti import Switti
from .var import VAR

BUILT_IN: tuple[Any, ...] = (VAR, Infinity, Switti, STAR, HART)


class Family(Protocol):
    """What a registered family class offers besides the model protocol of its instances.

    ``tokenizer_patterns``: where the image tokenizer lies, as globs from the checkpoint's folder.
    ``unused_tensors``: names that a fingerprint leaves out (masks and other training-only buffers).
    ``options``: names :func:`stagevar_runtime.load` takes for what tensors cannot tell.
    """

    family: str
    tokenizer_patterns: tuple[str, ...]
    unused_tensors: tuple[str, ...]
    options: tuple[str, ...]

    @staticmethod
    def recognise(names: Mapping[str, Any]) -> bool:
        """Whether these tensor names are this family's."""

    @classmethod
    def from_checkpoint(
        cls,
        opened: Checkpoint,
        tokenizer: Checkpoint,
        device: torch.device,
        dtype: torch.dtype,
        options: Mapping[str, Any],
    ) -> ScaleModel:
        """Build a model from the transformer's and the image tokenizer's files."""


@cache
def families() -> dict[str, type[Family]]:
    """Every registered family by name: the built-in ones, then those of entry points."""
    found: dict[str, type[Family]] = {f.family: f for f in BUILT_IN}
    for entry in entry_points(group="stagevar.families"):
        found.setdefault(entry.name, entry.load())
    return found


def recognise(tensors: Mapping[str, Any], source: object) -> type[Family]:
    """The family whose tensors these are.

    Raises:
        UnsupportedModelError: none; the message says what was seen and what is known.
    """
    for family in families().values():
        if family.recognise(tensors):
            return family
    some = ", ".join(sorted(tensors)[:3])
    hint = ""
    if any(name.startswith("decoder.") for name in tensors):
        hint = " This is an image tokenizer: pass the transformer, and this file as the tokenizer."
    raise UnsupportedModelError(
        f"{source}: no known family has tensors like {some}, ... ({len(tensors)} in all); "
        f"known: {', '.join(families())}.{hint}"
    )
