"""Decoding in half precision, where it gives the picture that float32 gives, as one graph."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..kernels.mounted import mount
from ..kernels.slots import NONE, Kernels
from .recorder import Recorder

logger = logging.getLogger("stagevar_runtime")

MAX_ERROR = 4 / 255  # of a picture in [0, 1], at any pixel
TYPES = (torch.float16, torch.bfloat16)  # tried in turn: the first is finer, and may overflow


@dataclass
class Shape:
    """How canvases of one shape are decoded: in which type, and by which graph once recorded."""

    dtype: torch.dtype | None
    description: str
    uses: int = 0
    replay: Callable[[], None] | None = None
    canvas: Tensor | None = None
    image: Tensor | None = None
    trusted: bool = False
    trouble: list[str] = field(default_factory=list)


class HalfDecoder(nn.Module):
    """Takes the place of a float32 decoder: ``(B, C, h, w)`` to ``(B, 3, H, W)``, about [-1, 1].

    The first picture of a shape is decoded in float32 and in half precision; later ones in half
    precision if no pixel was off by more than ``max_error``. One that is not finite is decoded
    again in float32, as are all that follow: the host waits for that answer, after the loop.
    With a ``recorder`` the second picture in half precision is recorded, the third compared with
    its graph's, later ones replayed. ``kernels`` are mounted on the copies in half precision.
    """

    def __init__(
        self,
        full: nn.Module,
        types: Sequence[torch.dtype] = TYPES,
        max_error: float = MAX_ERROR,
        kernels: Kernels = NONE,
        recorder: Recorder | None = None,
    ) -> None:
        super().__init__()
        self.full, self.types, self.max_error = full, tuple(types), max_error
        self._kernels, self._recorder = kernels, recorder
        self._half: dict[torch.dtype, nn.Module] = {}
        self._chosen: dict[torch.Size, Shape] = {}
        self._settings: dict[str, Any] | None = None

    def compile(self, **settings: Any) -> None:
        """Compile what will decode; the float32 decoder only where nothing else may."""
        self._settings = settings

    def forward(self, z: Tensor) -> Tensor:
        if z.shape not in self._chosen:
            exact = self.full(z)
            self._chosen[z.shape] = self._choice(z, exact)
            return exact
        shape = self._chosen[z.shape]
        if shape.dtype is not None:
            image = self._image(shape, z, shape.dtype)
            if bool(image.isfinite().all()):
                return image
            self._give_up(z.shape, f"{_name(shape.dtype)} overflowed")
        return self._float32(z)

    def description(self) -> list[str]:
        """What decodes each shape, and how far it was off."""
        return [
            f"decoder {size[2]}x{size[3]}, batch {size[0]}: "
            + ", ".join([shape.description, *["one graph"] * shape.trusted, *shape.trouble])
            for size, shape in self._chosen.items()
        ]

    def _image(self, shape: Shape, z: Tensor, dtype: torch.dtype) -> Tensor:
        """In half precision: eagerly, recorded, compared or replayed, by how often it was."""
        recorder = self._recorder
        if recorder is None or shape.trouble:
            return self._decoded(z, dtype)
        shape.uses += 1
        if shape.replay is None:
            own = z.clone()
            eager = recorder.warm(lambda: self._decoded(z, dtype))
            if shape.uses < 2:
                return eager
            try:
                shape.replay, shape.image = recorder.record(lambda: self._decoded(own, dtype))
                shape.canvas = own
            except Exception as error:
                self._without_graph(shape, f"{type(error).__name__}: {error}".splitlines()[0])
            return eager
        assert shape.canvas is not None and shape.image is not None
        shape.canvas.copy_(z)
        shape.replay()
        if shape.trusted:
            return shape.image.clone()
        eager = self._decoded(z, dtype)
        if (off := _picture_error(eager, shape.image)) > self.max_error / 4:
            self._without_graph(shape, f"off by {255 * off:.2g}/255")
        else:
            shape.trusted = True
        return eager

    def _without_graph(self, shape: Shape, why: str) -> None:
        shape.replay = shape.canvas = shape.image = None
        shape.trouble.append(f"no graph ({why})")
        logger.warning("the decoder runs eagerly: %s", why)

    def _float32(self, z: Tensor) -> Tensor:
        if self._settings is not None and self.full._compiled_call_impl is None:
            self.full.compile(**self._settings)
        image: Tensor = self.full(z)
        return image

    def _choice(self, z: Tensor, exact: Tensor) -> Shape:
        errors = []
        for dtype in self.types:
            error = _picture_error(exact, self._decoded(z, dtype))
            errors.append(f"{_name(dtype)} off by {255 * error:.2g}/255")
            if error <= self.max_error:
                return Shape(dtype, errors[-1])
            self._half.pop(dtype)
        said = f"float32 ({', '.join(errors)})"
        logger.warning("the decoder stays in %s", said)
        return Shape(None, said)

    def _give_up(self, size: torch.Size, why: str) -> None:
        self._chosen[size] = Shape(None, f"float32 ({why})")
        logger.warning("the decoder is back in float32: %s", why)

    def _decoded(self, z: Tensor, dtype: torch.dtype) -> Tensor:
        if dtype not in self._half:
            half: Any = copy.deepcopy(self.full)
            self._half[dtype] = half.to(dtype=dtype, memory_format=torch.channels_last)
            mount(half, self._kernels)
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
