"""Decoding in half precision, where it gives the picture that float32 gives."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

logger = logging.getLogger("stagevar_runtime")

MAX_ERROR = 4 / 255  # of a picture in [0, 1], at any pixel
TYPES = (torch.float16, torch.bfloat16)  # tried in turn: the first is finer, and may overflow


class HalfDecoder(nn.Module):
    """Takes the place of a float32 decoder: ``(B, C, h, w)`` to ``(B, 3, H, W)``, about [-1, 1].

    The first picture of a shape is decoded in float32 and in half precision; later ones in half
    precision if no pixel was off by more than ``max_error``. One that is not finite is decoded
    again in float32, as are all that follow: the host waits for that answer, after the loop.
    """

    def __init__(
        self, full: nn.Module, types: Sequence[torch.dtype] = TYPES, max_error: float = MAX_ERROR
    ) -> None:
        super().__init__()
        self.full, self.types, self.max_error = full, tuple(types), max_error
        self._half: dict[torch.dtype, nn.Module] = {}
        self._chosen: dict[torch.Size, tuple[torch.dtype | None, str]] = {}
        self._settings: dict[str, Any] | None = None

    def compile(self, **settings: Any) -> None:
        """Compile what will decode; the float32 decoder only where nothing else may."""
        self._settings = settings

    def forward(self, z: Tensor) -> Tensor:
        if z.shape not in self._chosen:
            exact = self.full(z)
            self._chosen[z.shape] = self._choice(z, exact)
            return exact
        dtype, _ = self._chosen[z.shape]
        if dtype is not None:
            image = self._decoded(z, dtype)
            if bool(image.isfinite().all()):
                return image
            self._give_up(z.shape, f"{_name(dtype)} overflowed")
        return self._float32(z)

    def description(self) -> list[str]:
        """What decodes each shape, and how far it was off."""
        return [
            f"decoder {shape[2]}x{shape[3]}, batch {shape[0]}: {what}"
            for shape, (_, what) in self._chosen.items()
        ]

    def _float32(self, z: Tensor) -> Tensor:
        if self._settings is not None and self.full._compiled_call_impl is None:
            self.full.compile(**self._settings)
        image: Tensor = self.full(z)
        return image

    def _choice(self, z: Tensor, exact: Tensor) -> tuple[torch.dtype | None, str]:
        errors = []
        for dtype in self.types:
            error = _picture_error(exact, self._decoded(z, dtype))
            errors.append(f"{_name(dtype)} off by {255 * error:.2g}/255")
            if error <= self.max_error:
                return dtype, errors[-1]
            self._half.pop(dtype)
        said = f"float32 ({', '.join(errors)})"
        logger.warning("the decoder stays in %s", said)
        return None, said

    def _give_up(self, shape: torch.Size, why: str) -> None:
        self._chosen[shape] = (None, f"float32 ({why})")
        logger.warning("the decoder is back in float32: %s", why)

    def _decoded(self, z: Tensor, dtype: torch.dtype) -> Tensor:
        if dtype not in self._half:
            half: Any = copy.deepcopy(self.full)
            self._half[dtype] = half.to(dtype=dtype, memory_format=torch.channels_last)
            if self._settings is not None:
                self._half[dtype].compile(**self._settings)
        image: Tensor = self._half[dtype](z.to(dtype, memory_format=torch.channels_last))
        return image.float()


def _picture_error(exact: Tensor, other: Tensor) -> float:
    """The largest difference of two pictures in [0, 1]; infinite if one is not finite."""
    error = (exact.clamp(-1, 1) - other.clamp(-1, 1)).abs().max() / 2
    return float(error.nan_to_num(torch.inf)) if bool(other.isfinite().all()) else float("inf")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
