"""What the distribution and semantic likeness are seen through: features of pictures, by name."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from stagevar_runtime.errors import CalibrationError

from . import effnet
from .classifier import Scorer

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
CHOICES = "scorer, effnet, effnet-SIDE (such as effnet-64: faster) or pixels"


@dataclass(frozen=True)
class Features:
    """A function of pictures ``(B, 3, H, W)`` in [0, 1] that gives ``(B, F)``.

    Attributes:
        name: what goes into the profile; it tells the network and the size it looks at.
        kid: what a kernel distance over these features is called.
        function: the network.
        reference: features ``(N, F)`` of real pictures.
        source: where the real pictures are from, if not from the scorer.
        size: their height and width; made ones must have them too.
    """

    name: str
    kid: str
    function: Callable[[Tensor], Tensor]
    reference: Tensor | None = None
    source: str | None = None
    size: tuple[int, int] | None = None

    def __call__(self, images: Tensor) -> Tensor:
        """Features ``(B, F)``, on the CPU."""
        made = (images.shape[-2], images.shape[-1])
        if self.size not in (None, made):
            raise CalibrationError(
                f"the reference pictures are {self.size[0]}x{self.size[1]}, "
                f"the model draws {made[0]}x{made[1]}. Resize the reference"
            )
        return self.function(images.float()).cpu()


def thumbnail(images: Tensor) -> Tensor:
    """Pixels of a 16 x 16 thumbnail, ``(B, 768)``: what a glance sees."""
    return F.interpolate(images, size=(16, 16), mode="area").flatten(1)


PIXELS = Features("pixels", "pixel-KID", thumbnail)


def scorer_features(scorer: Scorer) -> Features:
    """Those of the classifier beside the checkpoint, which brings features of real pictures."""

    def seen(images: Tensor) -> Tensor:
        return scorer.model.features(scorer.fitting(images))

    return Features("scorer", "KID", seen, scorer.reference_features)


def effnet_features(side: int = effnet.SIDE) -> Features:
    """Those of EfficientNet-Lite0 (the extra ``metrics``), at ``side`` x ``side`` pixels."""
    return Features(f"effnet-{side}", "EffNet-KID", remembering(effnet.EffNet(side)))


def remembering(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A slow function that, asked about the same tensor again and at once, does not run again.

    A metric over features looks twice, the distribution once more.
    """
    last: list[Tensor] = []

    def seen(images: Tensor) -> Tensor:
        if not (last and last[0] is images):
            last[:] = [images, function(images)]
        return last[1]

    return seen


def find_features(name: str | None = None, scorer: Scorer | None = None) -> Features:
    """The features asked for, or the best at hand: the scorer's, EffNet's, pixels.

    Raises:
        CalibrationError: they are not known, or what they need is not there.
    """
    if name is None:
        name = "scorer" if scorer else "effnet" if effnet.installed() else "pixels"
    if name == "pixels":
        return PIXELS
    if name == "scorer" and scorer is not None:
        return scorer_features(scorer)
    if found := re.fullmatch(r"effnet(?:-(\d+))?", name):
        return effnet_features(int(found[1] or effnet.SIDE))
    fault = "no scorer fits this checkpoint" if name == "scorer" else "they are not known"
    raise CalibrationError(f"features {name!r}: {fault}; expected {CHOICES}")


def with_reference(features: Features, folder: Path) -> Features:
    """The same features with those of the real pictures in a folder, all of one size.

    Raises:
        CalibrationError: fewer than two pictures, one that cannot be read or has another size.
    """
    paths = sorted(
        path
        for path in folder.glob("*")
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    )
    if len(paths) < 2:
        raise CalibrationError(
            f"{folder}: {len(paths)} pictures in it ({', '.join(SUFFIXES)}), expected 2 or more"
        )
    size = _pixels(paths[0]).shape[1:]
    seen = []
    for begin in range(0, len(paths), effnet.BATCH):
        pictures = [_pixels(path) for path in paths[begin : begin + effnet.BATCH]]
        for path, picture in zip(paths[begin:], pictures, strict=False):
            if picture.shape[1:] != size:
                raise CalibrationError(
                    f"{path} is {picture.shape[1]}x{picture.shape[2]}, "
                    f"{paths[0].name} is {size[0]}x{size[1]}; expected one size"
                )
        seen.append(features.function(torch.stack(pictures)))
    return replace(
        features,
        reference=torch.cat(seen),
        source=f"{len(paths)} pictures in {folder.name}",
        size=(size[0], size[1]),
    )


def _pixels(path: Path) -> Tensor:
    try:
        with Image.open(path) as picture:
            if picture.mode.startswith(("I", "F")):  # 16 bits: converting would cut them off
                deep = np.asarray(picture, dtype=np.float32)
                if picture.mode == "F" or deep.max(initial=0) > 65535:
                    raise CalibrationError(
                        f"{path}: is a picture of mode {picture.mode}, expected 8 or 16 bits"
                    )
                values = np.repeat(deep[..., None] / 257, 3, axis=2)
            else:
                values = np.asarray(picture.convert("RGB"), dtype=np.float32)
    except (OSError, UnidentifiedImageError) as error:
        raise CalibrationError(f"{path}: cannot be read as a picture ({error})") from error
    return torch.from_numpy(values / 255).permute(2, 0, 1)
