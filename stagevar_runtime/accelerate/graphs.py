"""Recorded transformer work: one graph a scale, replayed instead of launched kernel by kernel.

A graph reads and writes fixed memory and knows no Python, so a wrong one gives wrong pictures
without an error. Therefore, for every shape of a generation (plan, batch, text length):

1. the first generation runs eagerly (kernels are chosen, memory is laid out);
2. the second runs each scale eagerly, records it, replays it, and compares: a graph stays if it is
   right and faster;
3. the third does the same with its own inputs, so that a graph that holds on to old ones is found;
4. from then on graphs are replayed. Inputs that are not where the graph reads are copied there;
   inputs of another kind, and everything unforeseen, make the scale run eagerly.

Keys and values live in rooms that outlive a generation and that all shapes share.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import one_line
from ..loop.plan import Plan, ScaleStep
from ..loop.scale import Network, Watch, draws, run_scale
from ..model.kvcache import KVBuffer, KVCache
from ..model.lru import LRU
from ..model.protocol import ModelInfo, ScaleModel, State, map_tensors
from .recorder import Recorder

logger = logging.getLogger("stagevar_runtime")

SHAPES = 6  # shapes whose graphs are kept
CHECKS = 2  # generations in which a graph must be right before it is trusted
FAILURES = 2  # scales that may fail before graphs are given up
FASTER = 0.97  # of the eager time is the most that a graph may take
TOLERANCE = {torch.float32: 1e-4}  # of the largest logit; other dtypes:
HALF_TOLERANCE = 2e-2


@dataclass
class Snapshot:
    """What the transformer changes in a state: references, no copies of tensors."""

    kv: list[KVCache]
    rows: dict[str, Any]
    features: dict[int, Any]
    extra: dict[str, Any]

    @classmethod
    def of(cls, state: State) -> Snapshot:
        """As it is now."""
        return cls(
            [replace(cache) for cache in state.kv],
            dict(state.rows),
            dict(state.stored),
            dict(state.extra),
        )

    def restore(self, state: State) -> None:
        """Make it so again."""
        state.kv = [replace(cache) for cache in self.kv]
        state.rows, state.stored = dict(self.rows), dict(self.features)
        state.extra = dict(self.extra)


@dataclass
class Graph:
    """One recorded scale: where it reads, where its results are, how it leaves the state.

    ``narrow``: the layers it was recorded with in place of the model's own, kept alive here.
    """

    replay: Callable[[], None]
    inputs: list[Tensor]
    caches: list[tuple[Any, ...]]
    narrow: Mapping[int, Any]
    logits: Tensor
    after: Snapshot

    def load(self, state: State) -> bool:
        """Put the state's inputs where the graph reads them; False if they are of another kind."""
        given = list(_inputs(state))
        if _places(state.kv) != self.caches or len(given) != len(self.inputs):
            return False
        if self.narrow is not state.narrow and (self.narrow or state.narrow):
            return False
        pairs = [(a, b) for a, b in zip(self.inputs, given, strict=True) if not _same_memory(a, b)]
        if any(_kind(a) != _kind(b) for a, b in pairs):
            return False
        for own, other in pairs:
            own.copy_(other)
        return True


@dataclass
class ScaleGraph:
    """What is known of one scale: its graph, if it has one, and what to say of it."""

    description: str = "not recorded yet"
    graph: Graph | None = None
    right: int = 0
    closed: bool = False  # runs eagerly for good

    def close(self, said: str) -> None:
        """Give up on a graph, and say why."""
        self.description, self.graph, self.closed = said, None, True


@dataclass
class Shape:
    """The graphs of one shape: every scale's, and where a generation of this shape begins.

    ``row_tokens``: the most rows · tokens that a block caches; ``capacity``: tokens until the rows
    first change. ``block``: heads, head_dim and type of every block's keys, once seen.
    """

    owner: Graphs
    row_tokens: int
    capacity: int
    recorded_scales: dict[int, ScaleGraph] = field(default_factory=dict)
    block: list[Tensor] = field(default_factory=list)
    inputs: tuple[dict[str, Any], dict[str, Any]] | None = None
    buffers: list[KVBuffer] = field(default_factory=list)
    generations: int = 0

    def begin(self, state: State) -> None:
        """Move a fresh state's conditioning and caches to where graphs read them."""
        self.generations += 1
        if self.generations == 1:
            for cache, buffer in zip(state.kv, self.owner.buffers, strict=False):
                cache.buffer = buffer  # used where it is large enough
            return
        if not self.buffers:
            self.buffers = self.owner.rooms_of(self.block, self.row_tokens)
        rows = state.batch * len(state.branches)
        for cache, buffer, seen in zip(state.kv, self.buffers, self.block, strict=True):
            cache.buffer, cache.capacity = buffer, self.capacity
            cache.k, cache.v = buffer.laid_out((rows, seen.shape[1], self.capacity, seen.shape[3]))
        fresh = (state.rows, state.extra)
        if self.inputs is None:  # copies: the caller's conditioning must not change later
            self.inputs = map_tensors(fresh, torch.clone)
        elif own := list(_tensors(self.inputs)):
            torch._foreach_copy_(own, list(_tensors(fresh)))
        state.rows, state.extra = (dict(part) for part in self.inputs)

    def __call__(
        self, model: ScaleModel, state: State, step: ScaleStep, watch: Watch | None = None
    ) -> Tensor:
        """Logits of this scale, as :func:`~stagevar_runtime.loop.scale.run_scale` gives them."""
        recorded = self.recorded_scales.setdefault(step.scale.index, ScaleGraph())
        if draws(step) and not recorded.closed:
            recorded.close("draws random numbers")
        if self.generations == 1 or recorded.closed or self.owner.off:
            logits = run_scale(model, state, step, watch)
            self.block = self.block or [_like(c.k) for c in state.kv if c.k is not None]
            return logits
        before = Snapshot.of(state) if recorded.right < CHECKS else None
        try:
            if before is None:
                return self._replayed(recorded, model, state, step)
            return self._tried(recorded, before, model, state, step)
        except Exception as error:
            recorded.close(f"failed ({one_line(error)})")
            self.owner.failed(error)
            if before is not None:
                before.restore(state)
            return run_scale(model, state, step, watch)

    def _replayed(
        self, recorded: ScaleGraph, model: ScaleModel, state: State, step: ScaleStep
    ) -> Tensor:
        graph = recorded.graph
        if graph is None or not graph.load(state):
            recorded.close("its inputs were of another kind")
            return run_scale(model, state, step)
        graph.replay()
        graph.after.restore(state)
        return graph.logits

    def _tried(
        self,
        recorded: ScaleGraph,
        before: Snapshot,
        model: ScaleModel,
        state: State,
        step: ScaleStep,
    ) -> Tensor:
        """Run eagerly, then by graph (recorded now if there is none), and compare the two."""

        def eagerly() -> Tensor:
            before.restore(state)
            return run_scale(model, state, step)

        logits = eagerly()
        ran = Snapshot.of(state)
        wanted = [t.clone() for t in (logits, *_tensors(state.stored))]
        recorder = self.owner.recorder
        if recorded.graph is None:
            eager_ms = recorder.time_ms(eagerly)
            before.restore(state)
            inputs, caches = list(_inputs(state)), _places(state.kv)
            replay, logits = recorder.record(eagerly)
            after = Snapshot.of(state)
            recorded.graph = Graph(replay, inputs, caches, state.narrow, logits, after)
        else:
            before.restore(state)
            eager_ms = 0.0
            if not recorded.graph.load(state):
                return eagerly()
        graph = recorded.graph
        _poison(before.kv, ran.kv)
        graph.replay()
        graph.after.restore(state)
        error = _error(wanted, [graph.logits, *_tensors(state.stored)])
        limit = TOLERANCE.get(model.dtype, HALF_TOLERANCE) * max(1.0, float(wanted[0].abs().max()))
        if not error <= limit:
            recorded.close(f"graph was off by {error:.2g}")
            logger.warning("scale %d runs eagerly: %s", step.scale.index, recorded.description)
            return eagerly()
        recorded.right += 1
        if eager_ms:
            graph_ms = recorder.time_ms(graph.replay)
            recorded.description = f"{eager_ms / max(graph_ms, 1e-6):.2f}x"
            if graph_ms > FASTER * eager_ms:
                recorded.close(f"graph no faster ({recorded.description})")
                return eagerly()
        return graph.logits


class Graphs:
    """The recorded shapes of one model. One generation at a time."""

    def __init__(self, info: ModelInfo, recorder: Recorder, limit: int = SHAPES) -> None:
        self.info, self.recorder = info, recorder
        self.off = ""  # why nothing is recorded or replayed any more
        self.shapes: LRU[Shape] = LRU(limit)
        self.buffers: list[KVBuffer] = []
        self._last: Shape | None = None
        self._failures = 0

    def begin(self, state: State, plan: Plan) -> Network:
        """What runs the scales of ``plan`` from this fresh ``state``."""
        if self.off:
            return run_scale
        kinds = tuple(_kind(t) for t in _tensors((state.rows, state.extra, state.canvas)))
        key = (tuple(self._network_part(step) for step in plan), state.batch, kinds)
        row_tokens = state.batch * max(len(step.branches) * step.capacity for step in plan)
        capacity = next(step.capacity for step in plan if step.run != "skip")
        shape = self.shapes.get(key, lambda: Shape(self, row_tokens, capacity))
        self._last = shape
        try:
            shape.begin(state)
        except Exception as error:
            self.give_up(error)
            return run_scale
        return shape

    def _network_part(self, step: ScaleStep) -> ScaleStep:
        """What the transformer sees of a step."""
        step = replace(step, asked=None, temperature=1.0, smooth=True, keep_difference=False)
        return replace(step, weights=None) if self.info.guides_logits else step

    def rooms_of(self, block: list[Tensor], row_tokens: int) -> list[KVBuffer]:
        """Rooms for blocks whose keys are like these: those there are, if they are large enough."""
        sizes = [row_tokens * seen.shape[1] * seen.shape[3] for seen in block]
        held = [(buffer.k.numel(), buffer.k.dtype) for buffer in self.buffers]
        wanted = [(size, seen.dtype) for size, seen in zip(sizes, block, strict=True)]
        fit = len(held) == len(wanted) and all(
            a >= b and c == d for (a, c), (b, d) in zip(held, wanted, strict=True)
        )
        if not fit:
            self.buffers = [
                KVBuffer(seen.new_empty(size), seen.new_empty(size))
                for seen, size in zip(block, sizes, strict=True)
            ]
        return self.buffers

    def failed(self, error: Exception) -> None:
        """Say that a scale failed; give up where it is no single scale's fault."""
        self._failures += 1
        if self._failures >= FAILURES or isinstance(error, torch.OutOfMemoryError):
            self.give_up(error)
        else:
            logger.warning("a scale runs eagerly, its graph failed: %s", one_line(error))

    def give_up(self, error: Exception) -> None:
        """Run eagerly from now on, and say why once."""
        self.off = one_line(error)
        self.clear()
        logger.warning("graphs are switched off: %s", self.off)

    def clear(self) -> None:
        """Forget all shapes and give their memory back."""
        self.shapes.clear()
        self.buffers = []

    def notes(self) -> list[str]:
        """Which scales of the last generation's shape run as graphs, and why others do not."""
        if self.off:
            return [f"graphs: off ({self.off})"]
        if self._last is None or self._last.generations < 2:
            return ["graphs: recorded from the second image of a shape on"]
        recorded_scales = self._last.recorded_scales
        running = [
            f"{k} ({recorded.description})"
            for k, recorded in recorded_scales.items()
            if recorded.graph
        ]
        reasons: dict[str, list[str]] = {}
        for k, recorded in recorded_scales.items():
            if recorded.graph is None:
                reasons.setdefault(recorded.description, []).append(str(k))
        eager = [f"{', '.join(ks)}: {why}" for why, ks in reasons.items()]
        held = self.recorder.held_bytes() / 1e6
        return [
            f"graphs: scales {', '.join(running) or 'none'}; eager: {'; '.join(eager) or 'none'}",
            f"graphs hold {held:.1f} MB of results, rooms for keys and values "
            f"{self.room_bytes() / 1e6:.1f} MB; {len(self.shapes)} of {self.shapes.limit} shapes",
        ]

    def room_bytes(self) -> int:
        """Memory of all rooms in use, in bytes."""
        buffers = {id(buffer): buffer for shape in self.shapes for buffer in shape.buffers}
        return sum(buffer.k.nbytes + buffer.v.nbytes for buffer in buffers.values())


def _tensors(tree: Any) -> Iterator[Tensor]:
    found: list[Tensor] = []
    map_tensors(tree, found.append)
    return iter(found)


def _inputs(state: State) -> Iterator[Tensor]:
    """What the transformer reads, but for keys and values."""
    return _tensors((state.canvas, state.rows, state.stored, state.extra))


def _places(caches: list[KVCache]) -> list[tuple[Any, ...]]:
    """Where keys and values are and how many: what must not differ from a graph's."""
    return [
        (cache.length, *((t.data_ptr(), *t.shape) for t in (cache.k, cache.v) if t is not None))
        for cache in caches
    ]


def _like(k: Tensor) -> Tensor:
    """No keys, of the same heads, head_dim and type."""
    return k.new_empty((0, k.shape[1], 0, k.shape[3]))


def _kind(t: Tensor) -> tuple[Any, ...]:
    return t.shape, t.dtype, t.stride()


def _same_memory(a: Tensor, b: Tensor) -> bool:
    return a is b or (a.data_ptr() == b.data_ptr() and _kind(a) == _kind(b))


def _poison(before: list[KVCache], after: list[KVCache]) -> None:
    """Overwrite the keys and values of this scale: a graph that does not write them is found."""
    for old, new in zip(before, after, strict=True):
        for t in (new.k, new.v):
            if t is not None:
                t[:, :, old.length : new.length] = torch.nan


def _error(wanted: list[Tensor], got: list[Tensor]) -> float:
    """The largest difference; NaN counts as the largest of all."""
    worst = [(a.float() - b.float()).abs().max() for a, b in zip(wanted, got, strict=True)]
    return float(torch.stack(worst).nan_to_num(torch.inf).max())
