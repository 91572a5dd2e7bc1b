"""Weights that are not finite are found before they draw a black picture."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from torch import Tensor

from ..errors import CheckpointError

_CHUNK = 1 << 22  # elements looked at in one go


def check_finite(
    tensors: Mapping[str, Tensor],
    source: str | Path,
    progress: Callable[[int, int], None] | None = None,
    skip: Collection[str] = (),
) -> None:
    """Raise CheckpointError naming ``source`` and the tensor when one is not finite.

    ``skip``: names that may hold anything, attention masks with infinity above all. Reads every
    element of every other floating tensor once. ``progress`` is called with elements looked at and
    elements in all.
    """
    floating = {
        name: t for name, t in tensors.items() if t.is_floating_point() and name not in skip
    }
    total, done = sum(t.numel() for t in floating.values()), 0
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for (name, tensor), bad in zip(
            floating.items(), pool.map(count_not_finite, floating.values()), strict=True
        ):
            if bad:
                pool.shutdown(cancel_futures=True)
                what = "NaN" if bool(tensor.float().isnan().any()) else "infinity"
                raise CheckpointError(
                    f"{source}: tensor {name!r} holds {what} ({bad} of {tensor.numel()} values), "
                    f"expected finite weights. Download or export it again"
                )
            done += tensor.numel()
            if progress is not None:
                progress(done, total)


def count_not_finite(tensor: Tensor) -> int:
    """How many values of a floating tensor are NaN or infinite."""
    flat = tensor.detach().reshape(-1)
    small = flat.element_size() == 1  # 8-bit floats know no arithmetic
    chunks = (chunk.float() if small else chunk for chunk in flat.split(_CHUNK))
    # a sum is not finite if a value is not; the other way, it may overflow: the closer look
    return sum(int((~c.isfinite()).sum()) for c in chunks if not bool(c.sum().isfinite()))
