"""How far a picture is from the exact path's: ST-LPIPS where it is installed, else SSIM."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from . import stlpips
from .images import ssim


@dataclass(frozen=True)
class Perceptual:
    """A distance of pictures to a reference, ``(B, 3, H, W)`` twice → ``(B,)``; 0: the same.

    ``name`` says which; ``likeness`` names 1 minus it.
    """

    name: str
    likeness: str
    function: Callable[[Tensor, Tensor], Tensor]

    def __call__(self, images: Tensor, reference: Tensor) -> Tensor:
        """Distances ``(B,)``."""
        return self.function(images, reference)


def _unlike(images: Tensor, reference: Tensor) -> Tensor:
    return 1 - ssim(images, reference)


UNLIKENESS = Perceptual("1 - SSIM", "SSIM", _unlike)


def find_perceptual() -> Perceptual:
    """The better of the distances at hand."""
    if stlpips.installed():
        return Perceptual("ST-LPIPS", "1 - ST-LPIPS", stlpips.StLpips())
    return UNLIKENESS
