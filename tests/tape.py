"""A recorder for tests: CUDA graphs as a CPU can play them, with what can go wrong with them.

Every operator call is kept with the tensors it took; a replay makes the same calls on the same
tensors and puts the results where they were put first. So Python does not run again, values that
Python read are frozen, and inputs that moved are read where they used to be.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WAITS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "item")


class Tape(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, list[Any]]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func._schema.name.removeprefix("aten::") in WAITS:
            raise RuntimeError(f"{func} while recording: the host cannot wait")
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, tree_leaves(out)))
        return out

    def replay(self) -> None:
        for func, args, kwargs, old in self.calls:
            new = tree_leaves(func(*args, **kwargs))
            for a, b in zip(old, new, strict=True):
                if isinstance(a, Tensor) and a.numel() and a.data_ptr() != b.data_ptr():
                    a.copy_(b)


class TapeRecorder:
    """``recorded`` and ``replayed`` count graphs and their replays."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def warm(self, function: Callable[[], Any]) -> Any:
        return function()

    def record(self, function: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        with Tape() as tape:
            out = function()
        written = [t for *_, outs in tape.calls for t in outs if isinstance(t, Tensor)]
        owned = {t.untyped_storage().data_ptr() for t in written if t.is_floating_point()}
        for t in tree_leaves(out):
            if isinstance(t, Tensor) and t.untyped_storage().data_ptr() in owned:
                t.fill_(torch.nan)  # recording computes nothing
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            tape.replay()

        return replay, out

    def held_bytes(self) -> int:
        return 1000 * self.recorded
