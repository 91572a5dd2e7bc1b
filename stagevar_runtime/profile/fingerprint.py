"""Which model a profile belongs to: one hash of the architecture, one of the weights."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..checkpoint.weights import ZERO
from ..errors import CheckpointError
from ..model.protocol import ScaleModel, ScaleSpec

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""


@dataclass(frozen=True)
class Fingerprint:
    """Two hashes, ``sha256:`` and 64 hexadecimal digits each.

    ``architecture`` says that a plan fits; ``weights`` says that its measurements hold.
    ``architectures`` and ``earlier`` are what profiles made before call the same two.
    ``tokenizer`` is the hash of the image tokenizer, ``classes`` the number of labels (0: none).
    """

    architecture: str
    weights: str
    architectures: frozenset[str] = field(default=frozenset(), compare=False, repr=False)
    earlier: frozenset[str] = field(default=frozenset(), compare=False, repr=False)
    tokenizer: str | None = field(default=None, compare=False, repr=False)
    classes: int = field(default=0, compare=False, repr=False)

    def fits(self, architecture: str) -> bool:
        """Whether a profile of this architecture can be used."""
        return architecture == self.architecture or architecture in self.architectures

    def holds(self, weights: str | None) -> bool:
        """Whether a profile of these weights was measured on them."""
        return weights == self.weights or weights in self.earlier


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
    """Hashes of what the model is and of its weights, whichever way they were saved.

    Training-only buffers are left out, and biases that are zero by definition are there whether a
    file holds them or not.
    """
    own = whole(tensors, model.unused_tensors)
    weights = weights_hash(own)
    return joined(model, tensors, weights, also_weights(tensors, model.unused_tensors))


def joined(
    model: ScaleModel,
    tensors: Mapping[str, Tensor],
    weights: str,
    earlier: frozenset[str] = frozenset(),
    tokenizer: str | None = None,
) -> Fingerprint:
    """A fingerprint from hashes of weights that are there already: of ``tensors`` shapes count."""
    here = architecture(model, tensors)
    size = [schedule(model.scales())]
    if model.info.native is not None:
        size.append([list(side) for side in model.info.native])
    plain = {n: t for n, t in tensors.items() if n not in set(model.unused_tensors)}
    every = {
        _architecture(model, named, at)
        for named in (whole(tensors, model.unused_tensors), plain)
        for at in size
    }
    others = frozenset(every - {here})
    return Fingerprint(here, weights, others, earlier, tokenizer, model.info.classes)


def also_weights(tensors: Mapping[str, Tensor], unused: Collection[str]) -> frozenset[str]:
    """What earlier versions called the same weights: without the zeros that the file left out."""
    plain = {name: tensor for name, tensor in tensors.items() if name not in set(unused)}
    return (
        frozenset()
        if len(whole(tensors, unused)) == len(plain)
        else frozenset({weights_hash(plain)})
    )


def architecture(model: ScaleModel, tensors: Mapping[str, Tensor]) -> str:
    """The first of the two hashes, which needs no values: meta tensors will do.

    A size asked for is no other architecture: a model's own one counts.
    """
    native = model.info.native
    at = schedule(model.scales()) if native is None else [list(side) for side in native]
    return _architecture(model, whole(tensors, model.unused_tensors), at)


def _architecture(
    model: ScaleModel, tensors: Mapping[str, Tensor], sizes: Sequence[Sequence[int]]
) -> str:
    return architecture_hash(
        model.info.family,
        model.info.config,
        {name: tuple(tensor.shape) for name, tensor in tensors.items()},
        {f"{sizes[-1][0]}x{sizes[-1][1]}": sizes},
    )


def whole(tensors: Mapping[str, Tensor], unused: Collection[str]) -> dict[str, Tensor]:
    """Tensors without the unused ones, and with the zeros that converters leave out.

    Attention has a bias of keys that is zero beside one of values.
    """
    skip = set(unused)
    own = {name: tensor for name, tensor in tensors.items() if name not in skip}
    for name in [name for name in own if name.endswith(".v_bias")]:
        zero = name.removesuffix("v_bias") + ZERO
        if zero not in own:
            own[zero] = torch.zeros_like(own[name])
    return own
