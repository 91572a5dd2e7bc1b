"""The same bits wherever a call is made: in autocast, with another default dtype or device.

A caller's ``torch.autocast``, ``set_default_dtype`` and ``set_default_device`` reach every
operation that does not say otherwise. :func:`undisturbed` puts PyTorch's own defaults back. In a
forked process, where PyTorch's worker threads are lost, it goes on with one thread: the same bits.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..errors import StagevarError
from .protocol import map_tensors

F = TypeVar("F", bound=Callable[..., Any])

_CPU = torch.device("cpu")
_lock = threading.Lock()
_process = os.getpid()
_inside = 0  # calls under way: the default dtype belongs to the process, not to a thread
_default: torch.dtype = torch.float32


@contextmanager
def undisturbed() -> Iterator[None]:
    """No autocast, default dtype float32, default device CPU; as they were when it ends.

    Also a decorator. The default dtype is shared by all threads: where a caller has changed it, it
    is float32 for them too until the last call under way ends.
    """
    with ExitStack() as stack:
        for kind in ("cpu", "cuda", "xpu", "mps"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(_CPU)
        _enter()
        try:
            yield
        finally:
            _leave()


def check_process(device: torch.device) -> None:
    """Raise StagevarError in a forked process that cannot use a parent's CUDA device."""
    if device.type == "cuda" and torch.cuda._is_in_bad_fork():
        raise StagevarError(
            "this process was forked from one that uses CUDA, and cannot use it again: start it "
            "with multiprocessing's 'spawn', where a pipeline travels by pickle"
        )


def _enter() -> None:
    global _inside, _default, _lock, _process
    if _process != os.getpid():
        # the parent's worker threads are gone, and OpenMP would wait for them forever
        torch.set_num_threads(1)
        _process, _lock, _inside = os.getpid(), threading.Lock(), 0
    with _lock:
        if _inside == 0:
            _default = torch.get_default_dtype()
            if _default != torch.float32:
                torch.set_default_dtype(torch.float32)
        _inside += 1


def _leave() -> None:
    global _inside
    with _lock:
        _inside -= 1
        if _inside == 0 and _default != torch.float32:
            torch.set_default_dtype(_default)


def isolated(function: F) -> F:
    """A generation of a model: undisturbed, in inference mode, its tensors normal ones after it."""

    @functools.wraps(function)
    def alone(model: Any, *args: Any, **kwargs: Any) -> Any:
        check_process(model.device)
        with undisturbed(), torch.inference_mode():
            made = function(model, *args, **kwargs)
        values = {field.name: getattr(made, field.name) for field in dataclasses.fields(made)}
        tensors = {name: v for name, v in values.items() if isinstance(v, (Tensor, list))}
        return dataclasses.replace(made, **normal(tensors))

    return alone  # type: ignore[return-value]


def normal(value: Any) -> Any:
    """Tensors of inference mode as normal ones, which can be changed and trained on."""
    with torch.inference_mode(False), torch.no_grad():
        return map_tensors(value, _normal)


def _normal(tensor: Tensor) -> Tensor:
    return tensor.clone() if tensor.is_inference() else tensor
