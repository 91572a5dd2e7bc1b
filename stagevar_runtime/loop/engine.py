"""The only loop over scales. Everything that varies was decided in the plan."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial, wraps
from typing import Concatenate, ParamSpec, Protocol, TypeVar

import torch
from torch import Tensor

from ..errors import StagevarError
from ..kernels.settings import running
from ..model.kvcache import cache_bytes
from ..model.protocol import Conditioning, ScaleModel, ScaleSpec, State
from ..model.sampling import Drawn, Noise
from ..model.surroundings import isolated
from ..options.guidance import combine
from ..options.layers import stand_ins
from .finite import check_finite, decode_finite, refused_draws, watch
from .plan import Plan, ScaleStep, plan_for
from .scale import Network, Ran, Watch, look_back, prepare, run_step


class Observer:
    """Watches a generation. Override what you need; tensors are live, clone what you keep."""

    def group(self, state: State, step: ScaleStep, number: int, x: Tensor) -> None:
        """Before group ``number`` runs, with its input ``(rows, n, d)``."""

    def watch(self, state: State, step: ScaleStep) -> Watch | None:
        """Calls :meth:`group` at one scale; None where nobody needs to see inside it."""
        return partial(self.group, state, step)

    def logits(self, state: State, step: ScaleStep, logits: Tensor, guided: Tensor) -> None:
        """Raw logits of all rows ``(rows, n, V')``; after temperature and guidance
        ``(B, n, V')``."""

    def advanced(self, state: State, step: ScaleStep, ids: Tensor) -> None:
        """After the ids of this scale were added to the canvas."""


class Unseen(Observer):
    """Nobody watches, so that whole scales may be replayed."""

    def watch(self, state: State, step: ScaleStep) -> Watch | None:
        return None


UNSEEN = Unseen()


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

    def timed(self, network: Network) -> Network:
        """``network`` with a stamp where it ends."""

        def timed(
            model: ScaleModel, state: State, step: ScaleStep, watch: Watch | None = None
        ) -> Ran:
            made = network(model, state, step, watch)
            self.mark()
            return made

        return timed

    def spans_ms(self) -> list[float]:
        """Milliseconds between consecutive stamps; waits for the device once."""
        if self.cuda:
            torch.cuda.synchronize()
        return [
            1000 * (b - a) if isinstance(a, float) else a.elapsed_time(b)  # type: ignore[operator,arg-type]
            for a, b in zip(self.stamps[:-1], self.stamps[1:], strict=True)
        ]


class Networks(Protocol):
    """Makes what runs the transformer of one generation: recorded graphs, or whatever is faster."""

    def begin(self, state: State) -> Network:
        """What runs the scales of any plan from this fresh ``state`` and from its forks."""


P = ParamSpec("P")
R = TypeVar("R")


def with_settings(
    function: Callable[Concatenate[ScaleModel, P], R],
) -> Callable[Concatenate[ScaleModel, P], R]:
    """The settings of PyTorch that the model needs hold while ``function`` runs."""

    @wraps(function)
    def entered(model: ScaleModel, *args: P.args, **kwargs: P.kwargs) -> R:
        with running(model.device, model.dtype):
            return function(model, *args, **kwargs)

    return entered


@isolated
@with_settings
def generate(
    model: ScaleModel,
    conditioning: Conditioning,
    plan: Plan | None = None,
    *,
    seed: int | Sequence[int] = 0,
    observer: Observer | None = None,
    graphs: Networks | None = None,
) -> Generation:
    """Generate ``conditioning.batch`` images.

    Args:
        plan: from :func:`~stagevar_runtime.loop.plan.plan_for`, which knows the sampling and the
            schedule; None is the exact path.
        seed: one number (the whole batch draws from one generator, as published) or one per image.
        observer: watches; the transformer then runs eagerly.
        graphs: records the transformer's work and replays it, where nobody watches; None is the
            model's own, where it was made fast.

    The result is the same in any surroundings (:mod:`..model.surroundings`), of normal tensors.

    Raises:
        NotFiniteError: logits, canvas or images overflowed. Found when the loop is over.
    """
    plan = plan or plan_for(model)
    clock = Clock(model.device)
    clock.mark()
    state = start(model, conditioning, plan, seed)
    timed = clock.timed(network_of(model, state, graphs))
    ids, held = [], []
    with refused_draws(model, state):
        for step in plan:
            drawn = advance(model, state, step, observer=observer or UNSEEN, network=timed)
            if drawn is None:
                clock.mark()  # no transformer either
            else:
                ids.append(drawn)
            held.append(cache_bytes(state.kv))
            clock.mark()
    state.kv, state.stored, state.null = [], {}, None  # their memory is free for the decoder
    images = decode_finite(model, state)
    clock.mark()
    check_finite(model, state)
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


@isolated
@with_settings
def replay(
    model: ScaleModel,
    conditioning: Conditioning,
    ids: Sequence[Tensor],
    plan: Plan | None = None,
    *,
    seed: int | Sequence[int] = 0,
) -> Replay:
    """The same loop with the ids given, one tensor ``(B, n)`` a scale (``(B, n, bits)`` for bits).

    ``logits`` has the cond rows, then the null rows. Skipped scales still take their entry of
    ``ids`` (it is ignored) and give no logits. ``seed`` matters where a family draws more than
    ids (HART's diffusion stage). The same bits in any surroundings, as :func:`generate`.

    Raises:
        NotFiniteError: as :func:`generate`.
    """
    plan = plan or plan_for(model)
    if len(ids) != len(plan):
        raise StagevarError(f"got ids for {len(ids)} scales, expected {len(plan)}")
    recorder = _Recorder()
    state = start(model, conditioning, plan, seed)
    for step, given in zip(plan, ids, strict=True):
        given = _checked_ids(given, conditioning.batch, step.scale).to(model.device)
        advance(model, state, step, ids=given, observer=recorder)
    image = decode_finite(model, state)
    check_finite(model, state)
    return Replay(recorder.raw, recorder.guided, state.canvas, image)


def start(
    model: ScaleModel, conditioning: Conditioning, plan: Plan, seed: int | Sequence[int]
) -> State:
    """The state before the first scale of ``plan``, with the weights it needs made."""
    for step in plan:
        stand_ins(model, step.scale.index, step.layers)
    noise = Noise(seed, conditioning.batch, model.device)
    scales = tuple(step.scale for step in plan)
    guided = any("null" in step.branches for step in plan)
    return model.begin(conditioning.to(model.device), scales, noise, guided)


def network_of(model: ScaleModel, state: State, graphs: Networks | None = None) -> Network:
    """What runs the scales of a fresh ``state`` and of its forks: graphs, or plain calls."""
    graphs = graphs or model.networks
    return graphs.begin(state) if graphs else run_step


def advance(
    model: ScaleModel,
    state: State,
    step: ScaleStep,
    *,
    ids: Tensor | None = None,
    observer: Observer = UNSEEN,
    network: Network = run_step,
) -> Tensor | None:
    """Run one scale: transformer, guidance, draw (or take ``ids``), add to the canvas.

    ``network`` runs the transformer: plainly, timed, or by recorded graphs.
    Returns the ids; None where the scale is skipped.
    """
    if step.run == "skip":
        return None
    prepare(model, state, step)
    logits, difference = network(model, state, step, observer.watch(state, step))
    if difference is None:
        difference = look_back(state, step, logits)
    guided = combine(logits, step.weights, difference, step.temperature)
    watch(state, f"the logits at scale {step.scale.index}", guided)
    observer.logits(state, step, logits, guided)
    drawn = model.sample(state, step.scale, guided, step.sampling) if ids is None else Drawn(ids)
    model.advance(state, step.scale, drawn)
    observer.advanced(state, step, drawn.ids)
    return drawn.ids


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
        self.raw.append(logits)
        self.guided.append(guided)
