"""Recorded transformer work: a graph for every way to run a scale, replayed instead of launched
kernel by kernel.

A graph reads and writes fixed memory and knows no Python. So generations of one shape (batch, text
length, schedule) live at one :class:`Home`: conditioning is copied there, and keys and values keep
their rows and their stride whatever a plan drops. Then a scale's graph depends on what that scale
does and on how many keys it starts from, not on the plan: one serves every plan, image and
intervention that runs the scale so.

A wrong graph gives wrong pictures without an error. Therefore a way to run a scale

1. runs eagerly at its first use (kernels are chosen, memory is laid out);
2. runs eagerly and is recorded at its second;
3. runs eagerly and by its graph at its third, from inputs the graph has never seen: it is kept if
   the two agree, keys and values included;
4. is replayed from then on.

What changes between scales (canvas, stored hidden states, random numbers of selectors) is copied to
where the graph reads it. Whatever is of another kind than expected runs eagerly.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ..loop.plan import ScaleStep
from ..loop.scale import Network, Ran, Watch, run_step
from ..model.kvcache import KVBuffer
from ..model.lru import LRU
from ..model.protocol import ModelInfo, ScaleModel, State, map_tensors
from .recorder import Recorder
from .snapshot import Inputs, Snapshot, caches_of, exchanged, kind, places, tensors

logger = logging.getLogger("stagevar_runtime")

SHAPES = 6  # shapes whose graphs are kept
GRAPHS = 256  # graphs of one shape
FAILURES = 2  # graphs that may fail before all are given up
TOLERANCE = {torch.float32: 1e-4}  # of the largest logit; other dtypes:
HALF_TOLERANCE = 2e-2


class ScaleGraph:
    """One way to run one scale: how often it ran, its graph once recorded, and what to say of it.

    The graph reads ``inputs`` (private copies of what changes between scales), conditioning at the
    addresses ``fixed``, keys and values at ``caches``, and ``numbers``, random ones, each with what
    it takes to draw them. ``narrow``: the layers it was recorded with, kept alive here.
    """

    def __init__(self, scale: int) -> None:
        self.scale, self.uses, self.replays = scale, 0, 0
        self.trusted = self.closed = False
        self.description = "not recorded yet"
        self.replay: Callable[[], None] | None = None
        self.partly = False
        self.inputs: list[Tensor] = []
        self.fixed: list[int] = []
        self.caches: list[tuple[Any, ...]] = []
        self.numbers: list[tuple[Any, Tensor]] = []
        self.narrow: Mapping[int, Any] = {}
        self.ran: Ran | None = None
        self.after: Snapshot | None = None

    def close(self, said: str) -> None:
        """Give up on the graph, and say why: this way runs eagerly for good."""
        self.description, self.closed = said, True
        self.replay = self.ran = self.after = None
        self.inputs, self.numbers, self.narrow = [], [], {}

    def load(self, state: State, home: Home) -> bool:
        """Put the state's inputs where the graph reads them; False if they are of another kind."""
        given = Inputs(state, home.addresses, self.partly)
        same = given.fixed == self.fixed and places(state) == self.caches
        if self.narrow is not state.narrow and (self.narrow or state.narrow):
            same = False
        if not same or given.kinds() != [kind(t) for t in self.inputs]:
            return False
        torch._foreach_copy_(self.inputs, given.changing)
        for drawn, numbers in zip(
            self.numbers, state.noise.again(call for call, _ in self.numbers), strict=True
        ):
            drawn[1].copy_(numbers)
        return True

    def replayed(self, state: State) -> Ran:
        """Replay: the state goes on as after the recorded run, with this run's values."""
        assert self.replay is not None and self.after is not None and self.ran is not None
        self.replay()
        self.replays += 1
        self.after.resume(state)
        return self.ran


class Home:
    """Where the generations of one shape live, and the graphs that read and write there."""

    def __init__(self, owner: Graphs) -> None:
        self.owner = owner
        self.graphs: LRU[ScaleGraph] = LRU(GRAPHS)
        self.generations = 0
        self.block: list[Tensor] = []  # heads, head_dim and type of every block's keys, once seen
        self.buffers: list[KVBuffer] = []
        self.inputs: tuple[dict[str, Any], dict[str, Any]] | None = None
        self.addresses: set[int] = set()  # of the memory that conditioning has here

    def begin(self, state: State) -> None:
        """Move a fresh state's conditioning, keys and values here; the first one shows the way."""
        self.generations += 1
        if self.generations == 1:
            return
        rows, tokens = state.batch * len(state.branches), sum(s.tokens for s in state.scales)
        self.buffers = self.buffers or self.owner.buffers_of(self.block, rows * tokens)
        for cache, buffer, seen in zip(state.kv, self.buffers, self.block, strict=True):
            cache.capacity = tokens
            cache.k, cache.v = buffer.laid_out((rows, seen.shape[1], tokens, seen.shape[3]))
        fresh = (state.rows, state.extra)
        if self.inputs is None:  # copies: the caller's conditioning must not change later
            self.inputs = map_tensors(fresh, torch.clone)
            self.addresses = {t.untyped_storage().data_ptr() for t in tensors(self.inputs)}
        elif own := list(tensors(self.inputs)):
            torch._foreach_copy_(own, list(tensors(fresh)))
        state.rows, state.extra = (dict(part) for part in self.inputs)

    def __call__(
        self, model: ScaleModel, state: State, step: ScaleStep, watch: Watch | None = None
    ) -> Ran:
        """Run this scale, as :func:`~stagevar_runtime.loop.scale.run_step` does."""
        if watch is not None or self.owner.off:
            return run_step(model, state, step, watch)
        graph = self.graphs.get(self._key(state, step), lambda: ScaleGraph(step.scale.index))
        graph.uses += 1
        if self.generations == 1 or graph.uses == 1 or graph.closed:
            ran = run_step(model, state, step)
            self.block = self.block or [_like(c.k) for c in state.kv if c.k is not None]
            return ran
        before = None if graph.trusted else Snapshot.of(state)
        canvas, difference = state.canvas, state.difference
        try:
            if before is None:
                return self._replay(graph, model, state, step)
            if graph.replay is None:
                return self._record(graph, before, model, state, step)
            return self._compare(graph, before, model, state, step)
        except Exception as error:
            graph.close(f"failed ({_brief(error)})")
            self.owner.failed(error)
            state.noise.log = state.noise.given = None
            state.canvas, state.difference = canvas, difference
            if before is not None:
                before.restore(state)
            return run_step(model, state, step)

    def _key(self, state: State, step: ScaleStep) -> tuple[Any, ...]:
        """What the transformer sees of a step and of where it starts."""
        difference = state.difference if step.null_tokens else None
        return (
            step.scale.index,
            state.branches,
            step.groups,
            step.store,
            step.layers,
            step.null_tokens,
            None if self.owner.info.guides_logits else state.weights,
            tuple(cache.length for cache in state.kv),
            state.null and tuple(cache.length for cache in state.null.kv),
            tuple((b, spec.index) for b, (spec, _) in state.stored.items()),
            difference and difference[0].index,
        )

    def _replay(self, graph: ScaleGraph, model: ScaleModel, state: State, step: ScaleStep) -> Ran:
        if graph.load(state, self):
            return graph.replayed(state)
        graph.close("its inputs were of another kind")
        return run_step(model, state, step)

    def _record(
        self,
        graph: ScaleGraph,
        before: Snapshot,
        model: ScaleModel,
        state: State,
        step: ScaleStep,
    ) -> Ran:
        """Run eagerly, then record the same from private copies of the inputs."""
        recorder = self.owner.recorder
        state.noise.log = []
        result = recorder.warm(lambda: run_step(model, state, step))
        log, state.noise.log = state.noise.log, None
        ran = Snapshot.of(state)
        before.restore(state)
        graph.partly = bool(step.null_tokens)
        given = Inputs(state, self.addresses, graph.partly)
        copies = {id(t): t.clone() for t in given.changing}
        graph.inputs, graph.fixed = [copies[id(t)] for t in given.changing], given.fixed
        canvas, difference = state.canvas, state.difference
        exchanged(state, lambda t: copies.get(id(t), t))
        graph.caches, graph.narrow = places(state), state.narrow
        graph.numbers = [(call, numbers.clone()) for call, numbers in log]
        state.noise.given = iter([numbers for _, numbers in graph.numbers])
        graph.replay, graph.ran = recorder.record(lambda: run_step(model, state, step))
        state.noise.given = None
        graph.after = Snapshot.of(state)
        graph.description = "recorded"
        self.owner.recorded += 1
        ran.restore(state)
        state.canvas, state.difference = canvas, difference
        return result

    def _compare(
        self,
        graph: ScaleGraph,
        before: Snapshot,
        model: ScaleModel,
        state: State,
        step: ScaleStep,
    ) -> Ran:
        """Run eagerly, then by graph, and compare the two."""
        result = run_step(model, state, step)
        ran = Snapshot.of(state)
        wanted = list(tensors((result, state.stored))) + _added(before, state)
        wanted = [t.clone() for t in wanted]
        before.restore(state)
        if not graph.load(state, self):
            graph.close("its inputs were of another kind")
            return run_step(model, state, step)
        _poison(before, ran)
        got = graph.replayed(state)
        error = _error(wanted, list(tensors((got, state.stored))) + _added(before, state))
        limit = TOLERANCE.get(model.dtype, HALF_TOLERANCE) * max(1.0, float(wanted[0].abs().max()))
        if not error <= limit:
            graph.close(f"graph was off by {error:.2g}")
            logger.warning("scale %d runs eagerly: %s", step.scale.index, graph.description)
            before.restore(state)
            return run_step(model, state, step)
        graph.trusted, graph.description = True, "replayed"
        return got


class Graphs:
    """The homes of one model and their graphs. One generation at a time."""

    def __init__(self, info: ModelInfo, recorder: Recorder, limit: int = SHAPES) -> None:
        self.info, self.recorder = info, recorder
        self.off = ""  # why nothing is recorded or replayed any more
        self.recorded = 0
        self.homes: LRU[Home] = LRU(limit)
        self.buffers: list[KVBuffer] = []
        self._last: Home | None = None
        self._live: weakref.ref[State] | None = None
        self._failures = 0

    def begin(self, state: State) -> Network:
        """What runs the scales of any plan from this fresh ``state`` and from its forks.

        While another state is alive there, this one runs eagerly.
        """
        if self.off or (self._live is not None and self._live() is not None):
            return run_step
        kinds = tuple(kind(t) for t in tensors((state.rows, state.extra, state.canvas)))
        home = self.homes.get((state.scales, state.batch, kinds), lambda: Home(self))
        self._last = home
        try:
            home.begin(state)
        except Exception as error:
            self.give_up(error)
            return run_step
        self._live = weakref.ref(state)
        return home

    def buffers_of(self, block: list[Tensor], row_tokens: int) -> list[KVBuffer]:
        """Memory for blocks whose keys are like these: what there is, if it is large enough."""
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
        """Say that a graph failed; give up where it is no single graph's fault."""
        self._failures += 1
        if self._failures >= FAILURES or isinstance(error, torch.OutOfMemoryError):
            self.give_up(error)
        else:
            logger.warning("a scale runs eagerly, its graph failed: %s", _brief(error))

    def give_up(self, error: Exception) -> None:
        """Run eagerly from now on, and say why once."""
        self.off = _brief(error)
        self.clear()
        logger.warning("graphs are switched off: %s", self.off)

    def clear(self) -> None:
        """Forget all homes and give their memory back."""
        self.homes.clear()
        self.buffers, self._live = [], None

    def notes(self) -> list[str]:
        """Which scales of the last generation's shape run as graphs, and why others do not."""
        if self.off:
            return [f"graphs: off ({self.off})"]
        if self._last is None or self._last.generations < 2:
            return ["graphs: recorded from the second image of a shape on"]
        graphs = list(self._last.graphs)
        running = sorted({graph.scale for graph in graphs if graph.replay})
        reasons: dict[str, set[int]] = {}
        for graph in graphs:
            if graph.closed:
                reasons.setdefault(graph.description, set()).add(graph.scale)
        eager = [f"{_listed(sorted(ks))}: {why}" for why, ks in reasons.items()]
        held = self.recorder.held_bytes() / 1e6
        return [
            f"graphs: {sum(bool(g.replay) for g in graphs)} of scales {_listed(running)}; "
            f"eager: {'; '.join(eager) or 'none'}",
            f"graphs hold {held:.1f} MB of results, rooms for keys and values "
            f"{self.room_bytes() / 1e6:.1f} MB; {len(self.homes)} of {self.homes.limit} shapes",
        ]

    def room_bytes(self) -> int:
        """Memory of all buffers in use, in bytes."""
        buffers = {id(buffer): buffer for home in self.homes for buffer in home.buffers}
        return sum(buffer.k.nbytes + buffer.v.nbytes for buffer in buffers.values())


def _listed(scales: list[int]) -> str:
    return ", ".join(map(str, scales)) or "none"


def _like(k: Tensor) -> Tensor:
    """No keys, of the same heads, head_dim and type."""
    return k.new_empty((0, k.shape[1], 0, k.shape[3]))


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _spans(before: Snapshot, kv: list[Any]) -> Iterator[Tensor]:
    """The keys and values that were added, of caches in the order of a snapshot."""
    lengths = [cache.length for cache in before.caches()]
    lengths += lengths[: len(kv) - len(lengths)]  # null's, where it has just begun
    for start, cache in zip(lengths, kv, strict=True):
        for t in (cache.k, cache.v):
            if t is not None:
                yield t[:, :, start : cache.length]


def _added(before: Snapshot, state: State) -> list[Tensor]:
    return list(_spans(before, caches_of(state)))


def _poison(before: Snapshot, after: Snapshot) -> None:
    """Overwrite the keys and values of this scale: a graph that does not write them is found."""
    for added in _spans(before, after.caches()):
        added.fill_(torch.nan)


def _error(wanted: list[Tensor], got: list[Tensor]) -> float:
    """The largest difference; NaN counts as the largest of all."""
    pairs = [(a, b) for a, b in zip(wanted, got, strict=True) if a.numel()]
    worst = [(a.float() - b.float()).abs().max() for a, b in pairs]
    return float(torch.stack(worst).nan_to_num(torch.inf).max())
