"""Fashion-MNIST as the Debian package dataset-fashion-mnist installs it."""

from __future__ import annotations

import gzip
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from . import DataError

DEFAULT_ROOT = Path("/usr/share/datasets/fashion-mnist")
CLASS_NAMES = (
    "t-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
SIDE = 32
UNSIGNED_BYTES = 0x08


@dataclass(frozen=True)
class Images:
    """Grey images (N, 1, 32, 32) uint8 with labels (N,) int64."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, index: Tensor | slice, device: str | torch.device = "cpu") -> Tensor:
        """RGB images (B, 3, 32, 32) float32 in [0, 1]."""
        pixels = self.pixels[index].to(device)
        return pixels.float().div_(255).expand(-1, 3, -1, -1)


def read_idx(path: Path) -> np.ndarray:
    """Read one gzipped IDX file of unsigned bytes.

    Source: the format note on the MNIST page: two zero bytes, a type byte, the number of
    dimensions, one big-endian 32-bit length for each, then the values.
    """
    with gzip.open(path, "rb") as file:
        data = file.read()
    zero, kind, dimensions = struct.unpack_from(">HBB", data)
    shape = struct.unpack_from(f">{dimensions}I", data, 4)
    start = 4 + 4 * dimensions
    if zero != 0 or kind != UNSIGNED_BYTES or len(data) - start != int(np.prod(shape)):
        raise DataError(f"{path} is no IDX file of unsigned bytes, or was cut short")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def load_fashion(split: str, root: Path = DEFAULT_ROOT) -> Images:
    """Load one split, padded from 28x28 to 32x32 with black.

    Args:
        split: ``"train"`` (60,000 images) or ``"test"`` (10,000).
        root: folder of the four gzipped IDX files.

    Raises:
        DataError: a file is missing or damaged.
    """
    prefix = {"train": "train", "test": "t10k"}[split]
    paths = [root / f"{prefix}-images-idx3-ubyte.gz", root / f"{prefix}-labels-idx1-ubyte.gz"]
    for path in paths:
        if not path.is_file():
            raise DataError(
                f"no file {path}. Install the data with: apt-get install dataset-fashion-mnist "
                "(or name the folder of the four idx files with --data)"
            )
    pixels, labels = (torch.from_numpy(read_idx(path).copy()) for path in paths)
    if len(pixels) != len(labels):
        raise DataError(f"{root}: {len(pixels)} images but {len(labels)} labels")
    border = (SIDE - pixels.shape[-1]) // 2
    return Images(F.pad(pixels.unsqueeze(1), [border] * 4), labels.long())
