"""Which model a profile belongs to: one hash of the architecture, one of the weights."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError
from ..model.protocol import ScaleModel, ScaleSpec

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""


@dataclass(frozen=True)
class Fingerprint:
    """Two hashes, ``sha256:`` and 64 hexadecimal digits each.

    ``architecture`` says that a plan fits; ``weights`` says that its measurements hold.
    """

    architecture: str
    weights: str


def _canonical(value: Any) -> bytes:
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    ).encode()


def architecture_hash(
    family: str,
    config: Mapping[str, Any],
    shapes: Mapping[str, Sequence[int]],
    schedules: Mapping[str, Sequence[Sequence[int]]],
) -> str:
    """Hash of what fixes a model's shape, whatever the order of names.

    ``config``: JSON values that the shapes do not tell. ``shapes``: every tensor's, by name.
    ``schedules``: ``[[height, width], ...]`` of every scale, by size name. A tuple equals a list.

    Raises TypeError when ``config`` holds what JSON cannot say, ValueError for NaN or infinity.
    """
    content = {
        "family": family,
        "config": dict(config),
        "shapes": {name: [int(n) for n in shape] for name, shape in shapes.items()},
        "schedules": {
            name: [[int(n) for n in scale] for scale in scales]
            for name, scales in schedules.items()
        },
    }
    return "sha256:" + hashlib.sha256(_canonical(content)).hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    """A tensor's elements in row-major order; copies only what is not already so on the CPU."""
    flat = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data


def _tensor_digest(name: str, tensor: Tensor) -> bytes:
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
        raise CheckpointError(
            f"tensor {name!r} is {tensor.layout}, {tensor.dtype} on {tensor.device}, expected "
            f"dense weights in memory. Save the checkpoint with plain tensors"
        )
    digest = hashlib.sha256(_canonical([name, str(tensor.dtype), list(tensor.shape)]))
    digest.update(_bytes(tensor))
    return digest.digest()


def weights_hash(
    tensors: Mapping[str, Tensor],
    progress: Progress | None = None,
    threads: int | None = None,
) -> str:
    """Hash of names, dtypes, shapes and contents: the same for the same tensors in any file.

    Neither the order of names nor the file's format counts. Reads every byte once, in several
    threads (default: one a core, 8 at most; hashlib lets them run side by side) and without
    copies of contiguous CPU tensors. ``progress`` is called in this thread after every tensor.

    Raises CheckpointError for sparse, quantised or meta tensors.
    """
    total = sum(t.numel() * t.element_size() for t in tensors.values())
    digests: dict[str, bytes] = {}
    done = 0
    with ThreadPoolExecutor(threads or min(8, os.cpu_count() or 1)) as pool:
        largest_first = sorted(tensors, key=lambda name: -tensors[name].numel())
        jobs = {pool.submit(_tensor_digest, name, tensors[name]): name for name in largest_first}
        try:
            for job in as_completed(jobs):
                name = jobs[job]
                digests[name] = job.result()
                done += tensors[name].numel() * tensors[name].element_size()
                if progress is not None:
                    progress(done, total)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    whole = hashlib.sha256()
    for name in sorted(digests):
        whole.update(digests[name])
    return "sha256:" + whole.hexdigest()


def schedule(scales: Sequence[ScaleSpec]) -> list[list[int]]:
    """``[[height, width], ...]`` of every scale."""
    return [[scale.height, scale.width] for scale in scales]


def schedule_name(scales: Sequence[ScaleSpec]) -> str:
    """What a schedule is called in a profile, such as ``16x16``."""
    return f"{scales[-1].height}x{scales[-1].width}"


def fingerprint(model: ScaleModel, tensors: Mapping[str, Tensor]) -> Fingerprint:
    """Hashes of what the model is and of its weights, training-only buffers left out."""
    return Fingerprint(
        architecture=architecture(model, tensors), weights=weights_hash(_own(model, tensors))
    )


def architecture(model: ScaleModel, tensors: Mapping[str, Tensor]) -> str:
    """The first of the two hashes, which needs no values: meta tensors will do."""
    scales = model.scales()
    return architecture_hash(
        model.info.family,
        model.info.config,
        {name: tuple(tensor.shape) for name, tensor in _own(model, tensors).items()},
        {schedule_name(scales): schedule(scales)},
    )


def _own(model: ScaleModel, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    unused = set(model.unused_tensors)
    return {name: tensor for name, tensor in tensors.items() if name not in unused}
