"""How much memory each plan needs, before anything runs: counted on meta tensors, which hold none.

Weights, keys and values and the decoder are counted; what a block works on is estimated from its
widths. Text encoders are those that were published.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stagevar_runtime.loop.plan import Plan, ScaleStep, plan_for
from stagevar_runtime.model.protocol import ScaleModel

META = torch.device("meta")
TEXT_PARAMETERS = {  # of the published encoders, in billions
    "infinity": 1.22,  # flan-T5-XL's encoder half
    "switti": 0.82,  # CLIP ViT-L/14 and ViT-bigG/14
    "star": 0.34,  # Stable Diffusion 2.1's
    "hart": 1.54,  # Qwen2-VL-1.5B's language model
}
HALF_ON_CUDA = ("infinity", "hart")  # their encoders' dtype there; the others stay in float32


@dataclass(frozen=True)
class PlanMemory:
    """MB of one plan at one batch size. ``total``: keys and values make room for the decoder."""

    batch: int
    weights: float
    text: float
    cache: float
    blocks: float
    decoder: float

    @property
    def total(self) -> float:
        """The peak: weights and encoder, and the larger of the loop and the decoder."""
        return self.weights + self.text + max(self.cache + self.blocks, self.decoder)


ON_CPU = 16
LARGEST = 128  # more images are no faster
CELL_PIXELS = 16 * 16  # of the picture, behind a token
PIXEL_BYTES = 2048  # of a decoder's activations, generously


def plan_memory(model: ScaleModel, plan: Plan, batch: int, text: float = 0.0) -> PlanMemory:
    """What ``plan`` needs for ``batch`` images. ``model``: on the meta device; ``text``: MB."""
    return PlanMemory(
        batch=batch,
        weights=weight_bytes(model) / 1e6,
        text=text,
        cache=cache_peak(model, plan, batch) / 1e6,
        blocks=block_peak(model, plan, batch) / 1e6,
        decoder=decoder_peak(model, plan, batch) / 1e6,
    )


def weight_bytes(model: ScaleModel) -> int:
    """Of every module the model holds, what is shared counted once."""
    tensors = {id(tensor): tensor for tensor in _tensors(model)}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _tensors(model: ScaleModel) -> Iterator[Tensor]:
    for value in vars(model).values():
        if isinstance(value, nn.Module):
            yield from (*value.parameters(), *value.buffers())


def text_mb(model: ScaleModel, encoder: Any, device: str) -> float:
    """MB of the text encoder: a loaded module's, else the published one's; 0 for labels."""
    if model.info.classes:
        return 0.0
    owner = getattr(getattr(encoder, "encode", None), "__self__", None)
    if isinstance(owner, nn.Module):
        return sum(p.numel() * p.element_size() for p in owner.parameters()) / 1e6
    size = 2 if device == "cuda" and model.info.family in HALF_ON_CUDA else 4
    return 1000 * size * TEXT_PARAMETERS.get(model.info.family, 0.0)


def cache_peak(model: ScaleModel, plan: Plan, batch: int) -> int:
    """Bytes of keys and values at their largest, as the buffers of the engine grow and shrink."""
    token = 2 * model.info.depth * model.info.width * model.dtype.itemsize
    if not model.info.causal:
        return 0
    rows = capacity = length = null = peak = 0
    for step in plan:
        if step.run == "skip":
            continue
        if step.null_tokens and not null:
            null = length
        null = null + step.null_tokens if step.null_tokens else 0
        length += _run_tokens(step)
        if max(step.capacity, length) > capacity or step.null_tokens:
            rows, capacity = batch * len(step.branches), max(step.capacity, length)
            rows = batch if step.null_tokens else rows
        peak = max(peak, rows * capacity + batch * null)
    return peak * token


def block_peak(model: ScaleModel, plan: Plan, batch: int) -> int:
    """Bytes a block works on at its largest: residual, queries, keys, values, hidden layer twice,
    and logits three times in float32. An estimate."""
    info = model.info
    words = 2 * info.bits or int(getattr(getattr(model, "config", None), "vocabulary", 0))
    sizes = [
        batch
        * len(step.branches)
        * (
            _run_tokens(step) * 14 * info.width * model.dtype.itemsize
            + step.scale.tokens * 12 * words
        )
        for step in plan
        if step.run != "skip"
    ]
    return max(sizes)


def _run_tokens(step: ScaleStep) -> int:
    return max(g.tokens.keep if g.tokens else step.scale.tokens for g in step.groups)


def decoder_peak(model: ScaleModel, plan: Plan, batch: int) -> int:
    """Bytes that live at once while the canvas is decoded, counted on the meta device.

    0 where a family's decoder cannot be run so, or the model is on another device.
    """
    canvas = canvas_of(model, plan, batch)
    if canvas is None:
        return 0
    state = SimpleNamespace(canvas=canvas, batch=batch, extra={})
    with torch.inference_mode(), LiveBytes() as live:
        model.decode(state)  # type: ignore[arg-type]
    return live.peak


def canvas_of(model: ScaleModel, plan: Plan, batch: int) -> Tensor | None:
    """A canvas of the last scale on the meta device: ``(B, C, H, W)``."""
    tokenizer = getattr(model, "tokenizer", None)
    channels = getattr(tokenizer, "bits", None) or getattr(
        getattr(tokenizer, "config", None), "z_channels", None
    )
    if model.device.type != "meta" or channels is None:
        return None
    fold = 2 if getattr(model, "patchify", False) else 1
    height, width = plan[-1].scale.grid
    return torch.empty(batch, channels, fold * height, fold * width, device=META)


class LiveBytes(TorchDispatchMode):
    """Counts the storage that operations make while it is entered: ``live`` now, ``peak`` so far.

    What was there before counts nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        before = {_key(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and _key(tensor) not in before:
                self._count(tensor)
        return made

    def _count(self, tensor: Tensor) -> None:
        storage, key = tensor.untyped_storage(), _key(tensor)
        if key in self._known:
            return
        size = storage.nbytes()

        def gone(_: Any) -> None:
            self.live -= size
            self._known.pop(key, None)

        self._known[key] = weakref.ref(storage, gone)
        self.live += size
        self.peak = max(self.peak, self.live)


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def device_memory() -> tuple[str, float]:
    """What plans would run on here, and its memory in MB."""
    if torch.cuda.is_available():
        found = torch.cuda.get_device_properties(0)
        return found.name, found.total_memory / 1e6
    pages = os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    return "this CPU", pages * os.sysconf("SC_PAGE_SIZE") / 1e6 if pages else 0.0


def default_batch(model: ScaleModel) -> int:
    """Images at once where nobody says: 16, on CUDA what half of the free memory holds."""
    if model.device.type != "cuda":
        return ON_CPU
    free, _ = torch.cuda.mem_get_info(model.device)
    last = model.scales()[-1]
    pixels = last.height * last.width * CELL_PIXELS
    per_image = 3 * cache_peak(model, plan_for(model), 1) + pixels * PIXEL_BYTES
    return fitting(free / 2, per_image)


def fitting(room: float, per_image: float) -> int:
    """The largest power of two up to 128 whose images fit; at least one."""
    most = max(1, int(min(LARGEST, room / max(per_image, 1))))
    return 1 << (most.bit_length() - 1)
