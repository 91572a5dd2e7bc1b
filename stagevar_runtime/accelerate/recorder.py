"""How device work is recorded: the CUDA side of :mod:`.graphs`, behind a small interface.

What a recording may rely on, and must be told, is the same everywhere: it reads the memory its
inputs had and the Python values of that moment, whatever becomes of them later.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol, TypeVar

import torch

T = TypeVar("T")


class Recorder(Protocol):
    """What :class:`~stagevar_runtime.accelerate.graphs.Graphs` asks of a device."""

    def warm(self, function: Callable[[], T]) -> T:
        """Run ``function`` where it will be recorded, so that libraries set themselves up."""

    def record(self, function: Callable[[], T]) -> tuple[Callable[[], None], T]:
        """Record what ``function`` does: how to do it again, and what it returned.

        What was returned holds no values before the first replay.
        """

    def held_bytes(self) -> int:
        """Memory of all recordings."""


class CudaRecorder:
    """CUDA graphs that share one memory pool, recorded and warmed up on a stream of their own."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()
        self._bytes = 0

    def warm(self, function: Callable[[], T]) -> T:
        """On the stream that records; other streams wait for it."""
        current = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            returned = function()
        current.wait_stream(self._stream)
        return returned

    def record(self, function: Callable[[], T]) -> tuple[Callable[[], None], T]:
        """One graph. Raises what capturing raises; the device is then as it was."""
        torch.cuda.synchronize(self.device)
        current = torch.cuda.current_stream(self.device)
        before = torch.cuda.memory_allocated(self.device)
        graph = torch.cuda.CUDAGraph()
        try:
            with self._recording(graph, self._pool, self._stream):
                returned = function()
        except Exception:
            torch.cuda.set_stream(current)
            self._recover()
            raise
        finally:
            torch.cuda.set_stream(current)
        self._bytes += max(0, torch.cuda.memory_allocated(self.device) - before)
        return graph.replay, returned

    @contextmanager
    def _recording(self, graph: torch.cuda.CUDAGraph, pool: Any, stream: Any) -> Iterator[None]:
        """What ``torch.cuda.graph`` does, without emptying caches and collecting garbage before
        each of hundreds of graphs. None may be freed while one is recorded: that would spoil it."""
        collects = gc.isenabled()
        gc.disable()
        try:
            with torch.cuda.stream(stream):
                graph.capture_begin(pool=pool, capture_error_mode="thread_local")
                try:
                    yield
                finally:
                    graph.capture_end()
        finally:
            if collects:
                gc.enable()

    def _recover(self) -> None:
        """Undo what a capture that failed leaves behind: its pool stays open, and PyTorch's global
        generator goes on refusing to draw until a capture ends well."""
        self._stream = torch.cuda.Stream(self.device)
        self._pool = torch.cuda.graph_pool_handle()
        current, number = torch.cuda.current_stream(self.device), torch.zeros(1, device=self.device)
        torch.cuda.synchronize(self.device)
        with (
            suppress(RuntimeError),
            self._recording(
                torch.cuda.CUDAGraph(),
                torch.cuda.graph_pool_handle(),
                torch.cuda.Stream(self.device),
            ),
        ):
            number.add_(1)
        torch.cuda.set_stream(current)

    def held_bytes(self) -> int:
        """What recordings keep allocated; what they need while they run is shared and not here."""
        return self._bytes
