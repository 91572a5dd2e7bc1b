"""How device work is recorded and timed: the CUDA side of :mod:`.graphs`, behind a small interface.

What a recording may rely on, and must be told, is the same everywhere: it reads the memory its
inputs had and the Python values of that moment, whatever becomes of them later.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from contextlib import suppress
from statistics import median
from typing import Any, Protocol, TypeVar

import torch

T = TypeVar("T")
REPEATS = 3


class Recorder(Protocol):
    """What :class:`~stagevar_runtime.accelerate.graphs.Graphs` asks of a device."""

    def record(self, function: Callable[[], T]) -> tuple[Callable[[], None], T]:
        """Record what ``function`` does: how to do it again, and what it returned.

        What was returned holds no values before the first replay.
        """

    def time_ms(self, function: Callable[[], object]) -> float:
        """How long ``function`` takes, in ms, the host's part included."""

    def held_bytes(self) -> int:
        """Memory of all recordings."""


class CudaRecorder:
    """CUDA graphs that share one memory pool, recorded and warmed up on a stream of their own."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()
        self._bytes = 0

    def record(self, function: Callable[[], T]) -> tuple[Callable[[], None], T]:
        """One graph. Raises what capturing raises; the device is then as it was."""
        current = torch.cuda.current_stream(self.device)
        self._warm_up(function)
        gc.collect()  # a graph that is freed while another is recorded would spoil it
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

    def _recording(self, graph: torch.cuda.CUDAGraph, pool: Any, stream: Any) -> Any:
        return torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local")

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

    def _warm_up(self, function: Callable[[], object]) -> None:
        """Once on the stream that records, so that libraries set themselves up before."""
        torch.cuda.synchronize(self.device)
        with torch.cuda.stream(self._stream):
            function()
        torch.cuda.synchronize(self.device)

    def time_ms(self, function: Callable[[], object]) -> float:
        """Median of a few runs on the current stream."""
        times = []
        for _ in range(REPEATS):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize(self.device)
            begin.record()
            function()
            end.record()
            torch.cuda.synchronize(self.device)
            times.append(begin.elapsed_time(end))
        return median(times)

    def held_bytes(self) -> int:
        """What recordings keep allocated; what they need while they run is shared and not here."""
        return self._bytes
