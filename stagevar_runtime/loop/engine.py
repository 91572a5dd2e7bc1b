"""The only loop over scales. Everything that varies was decided in the plan."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from ..accelerate.graphs import Graphs
from ..errors import StagevarError
from ..model.kvcache import cache_bytes
from ..model.protocol import Conditioning, ScaleModel, ScaleSpec, State
from ..model.sampling import Noise, Sampling
from ..options.guidance import combine
from ..options.low_rank import low_rank_layers
from ..options.tokens import resize
from .plan import Plan, ScaleStep, plan_for
from .scale import Network, run_step


class Observer:
    """Watches a generation. Override what you need; tensors are live, clone what you keep."""

    def group(self, state: State, step: ScaleStep, number: int, x: Tensor) -> None:
        """Before group ``number`` runs, with its input ``(rows, n, d)``."""

    def logits(self, state: State, step: ScaleStep, logits: Tensor, guided: Tensor) -> None:
        """Tempered logits of all rows ``(rows, n, V')`` and after guidance ``(B, n, V')``."""

    def advanced(self, state: State, step: ScaleStep, ids: Tensor) -> None:
        """After the ids of this scale were added to the canvas."""


@dataclass
class Generation:
    """What one call made. ``images`` ``(B, 3, H, W)`` RGB in [0, 1]; ``ids`` one tensor a scale
    that ran; ``scale_ms`` one figure a scale (0 where skipped); ``loop_ms``, of which
    ``transformer_ms`` (the rest is guidance, drawing and canvas), ``decode_ms`` and, where prompts
    were read, ``text_ms``. ``cache_bytes``: memory of keys and values after each scale."""

    images: Tensor
    ids: list[Tensor]
    canvas: Tensor
    plan: Plan
    scale_ms: list[float] = field(default_factory=list)
    transformer_ms: float = 0.0
    loop_ms: float = 0.0
    decode_ms: float = 0.0
    text_ms: float = 0.0
    cache_bytes: list[int] = field(default_factory=list)


@dataclass
class Replay:
    """Logits of given ids: ``logits`` raw, one ``(rows, n, V')`` a scale; ``guided`` after
    temperature and guidance; ``canvas``; ``image`` ``(B, 3, H, W)`` in [0, 1]."""

    logits: list[Tensor]
    guided: list[Tensor]
    canvas: Tensor
    image: Tensor


class Clock:
    """Time stamps that never make the host wait for the device inside the loop."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.stamps: list[float | torch.cuda.Event] = []

    def mark(self) -> None:
        """Take a stamp."""
        if self.cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.stamps.append(event)
        else:
            self.stamps.append(time.perf_counter())

    def spans_ms(self) -> list[float]:
        """Milliseconds between consecutive stamps; waits for the device once."""
        if self.cuda:
            torch.cuda.synchronize()
        return [
            1000 * (b - a) if isinstance(a, float) else a.elapsed_time(b)  # type: ignore[operator,arg-type]
            for a, b in zip(self.stamps[:-1], self.stamps[1:], strict=True)
        ]


@torch.inference_mode()
def generate(
    model: ScaleModel,
    conditioning: Conditioning,
    plan: Plan | None = None,
    sampling: Sampling | None = None,
    seed: int | Sequence[int] = 0,
    scales: tuple[ScaleSpec, ...] | None = None,
    observer: Observer | None = None,
    graphs: Graphs | None = None,
) -> Generation:
    """Generate ``conditioning.batch`` images.

    Args:
        plan: from :func:`~stagevar_runtime.loop.plan.compile_plan`; None is the exact path.
        sampling: None is the family's published default.
        seed: one number (the whole batch draws from one generator, as published) or one an image.
        scales: the schedule; None is the model's default.
        observer: watches; the transformer then runs eagerly.
        graphs: records the transformer's work and replays it, where that is right and faster.
    """
    sampling = sampling or model.default_sampling
    scales = scales or model.scales()
    plan = plan or plan_for(model, (), sampling, scales)
    clock = Clock(model.device)
    clock.mark()
    state = start(model, conditioning, plan, seed)
    network = graphs.begin(state, plan) if graphs else run_step
    ids, held = [], []
    for step in plan:
        drawn = advance(model, state, step, sampling, None, observer, clock, network)
        if drawn is not None:
            ids.append(drawn)
        held.append(cache_bytes(state.kv))
        clock.mark()
    state.kv, state.stored, state.null = [], {}, None  # their memory is free for the decoder
    images = model.decode(state)
    clock.mark()
    *spans, decode = clock.spans_ms()
    blocks, drawing = spans[::2], spans[1::2]
    return Generation(
        images=images,
        ids=ids,
        canvas=state.canvas,
        plan=plan,
        scale_ms=[a + b for a, b in zip(blocks, drawing, strict=True)],
        transformer_ms=sum(blocks),
        loop_ms=sum(spans),
        decode_ms=decode,
        cache_bytes=held,
    )


@torch.inference_mode()
def replay(
    model: ScaleModel,
    conditioning: Conditioning,
    ids: Sequence[Tensor],
    plan: Plan | None = None,
    scales: tuple[ScaleSpec, ...] | None = None,
    sampling: Sampling | None = None,
    observer: Observer | None = None,
    seed: int | Sequence[int] = 0,
) -> Replay:
    """The same loop with the ids given, one tensor ``(B, n)`` a scale (``(B, n, bits)`` for bits).

    ``logits`` has the cond rows, then the null rows. Skipped scales still take their entry of
    ``ids`` (it is ignored) and give no logits. ``seed`` matters where a family draws more than
    ids (HART's diffusion stage).
    """
    sampling = sampling or model.default_sampling
    scales = scales or model.scales()
    plan = plan or plan_for(model, (), sampling, scales)
    if len(ids) != len(plan):
        raise StagevarError(f"got ids for {len(ids)} scales, expected {len(plan)}")
    recorder = _Recorder()
    state = start(model, conditioning, plan, seed)
    for step, given in zip(plan, ids, strict=True):
        given = _checked_ids(given, conditioning.batch, step.scale).to(model.device)
        advance(model, state, step, sampling, given, recorder)
    return Replay(recorder.raw, recorder.guided, state.canvas, model.decode(state))


def start(
    model: ScaleModel, conditioning: Conditioning, plan: Plan, seed: int | Sequence[int]
) -> State:
    """The state before the first scale of ``plan``, with the weights it needs made."""
    for step in plan:
        low_rank_layers(model, step.scale.index, step.features)
    noise = Noise(seed, conditioning.batch, model.device)
    scales = tuple(step.scale for step in plan)
    guided = any("null" in step.branches for step in plan)
    return model.begin(conditioning.to(model.device), scales, noise, guided)


def advance(
    model: ScaleModel,
    state: State,
    step: ScaleStep,
    sampling: Sampling,
    ids: Tensor | None = None,
    observer: Observer | None = None,
    clock: Clock | None = None,
    network: Network = run_step,
) -> Tensor | None:
    """Run one scale: transformer, guidance, draw (or take ``ids``), add to the canvas.

    ``clock`` is stamped where the transformer ends and drawing begins. ``network`` runs the
    transformer: plainly, or by recorded graphs.
    """
    if step.run == "skip":
        if clock:
            clock.mark()
        return None
    if not step.null_tokens:
        state.null = None
    if state.null is None and state.branches != step.branches:
        model.keep(state, step.branches[0] if len(step.branches) == 1 else None)
    state.weights = step.weights if len(step.branches) == 2 else None
    state.narrow = low_rank_layers(model, step.scale.index, step.features)
    for cache in state.kv:
        cache.reserve(step.capacity)
    watch = partial(observer.group, state, step) if observer else None
    logits, difference = network(model, state, step, watch)
    if clock:
        clock.mark()
    if step.keep_difference:
        state.difference = (step.scale, torch.sub(*logits.chunk(2)))
    if step.delta:
        assert state.difference is not None
        source, kept = state.difference
        difference = resize(kept, source.grid, step.scale.grid)
    if step.temperature != 1.0:
        logits = logits / step.temperature
        difference = None if difference is None else difference / step.temperature
    guided = combine(logits, step.weights, difference)
    if observer:
        observer.logits(state, step, logits, guided)
    if ids is None:
        if sampling.smooth_from is not None and not step.smooth:
            sampling = replace(sampling, smooth_from=None)
        ids = model.sample(state, step.scale, guided, sampling)
    model.advance(state, step.scale, ids)
    if observer:
        observer.advanced(state, step, ids)
    return ids


def _checked_ids(ids: Tensor, batch: int, scale: ScaleSpec) -> Tensor:
    wanted = 1 if scale.height == scale.width == 1 else scale.tokens
    if ids.ndim == 1 and wanted == 1:
        ids = ids[:, None]
    if tuple(ids.shape[:2]) != (batch, wanted):
        raise StagevarError(
            f"ids of scale {scale.index} have shape {tuple(ids.shape)}, "
            f"expected ({batch}, {wanted}, ...)"
        )
    return ids.long()


class _Recorder(Observer):
    def __init__(self) -> None:
        self.raw: list[Tensor] = []
        self.guided: list[Tensor] = []

    def logits(self, state: State, step: ScaleStep, logits: Tensor, guided: Tensor) -> None:
        self.raw.append(logits * step.temperature if step.temperature != 1.0 else logits)
        self.guided.append(guided)
