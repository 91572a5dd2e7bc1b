"""Pictures to look at: one PNG with a grid of images."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from stagevar_runtime.errors import StagevarError

from ..files import write_whole

GAP = 2


def contact_sheet(rows: Sequence[Tensor], columns: int = 16, smallest: int = 64) -> Tensor:
    """Lay image batches ``(B, 3, H, W)`` in [0, 1] out as one ``(3, H', W')`` sheet.

    Batches are interleaved line by line, so that exact stands above accelerated. Images smaller
    than ``smallest`` pixels are enlarged by a whole factor.
    """
    batches = [batch.float().cpu().clamp(0, 1) for batch in rows]
    factor = max(1, math.ceil(smallest / batches[0].shape[-1]))
    batches = [b.repeat_interleave(factor, 2).repeat_interleave(factor, 3) for b in batches]
    count, _, height, width = batches[0].shape
    columns = min(columns, count)
    lines = []
    for begin in range(0, count, columns):
        for batch in batches:
            line = torch.ones(3, height + GAP, columns * (width + GAP))
            for i, image in enumerate(batch[begin : begin + columns]):
                line[:, :height, i * (width + GAP) : i * (width + GAP) + width] = image
            lines.append(line)
    return torch.cat(lines, 1)


FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


def check_format(path: Path) -> str:
    """The format that a name's suffix asks for.

    Raises:
        StagevarError: another than PNG, JPEG and WebP.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        return "PNG"  # a device or pipe says nothing
    found = FORMATS.get(path.suffix.lower())
    if found is None:
        raise StagevarError(
            f"{path}: got the suffix {path.suffix or 'none'}, expected one of {', '.join(FORMATS)}"
        )
    return found


def save_picture(sheet: Tensor, path: Path) -> None:
    """Write ``(3, H, W)`` in [0, 1] in the format of the suffix, whole or not at all.

    Raises:
        StagevarError: another suffix, or values that are not finite.
    """
    kind = check_format(path)
    if not bool(sheet.isfinite().all()):
        raise StagevarError(f"{path}: the pictures are not finite, nothing was written")
    pixels = (sheet.permute(1, 2, 0) * 255).round().byte().numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format=kind, **({} if kind == "PNG" else {"quality": 95}))
    write_whole(path, buffer.getvalue())
