"""Put a state dict into modules: strictly, one tensor at a time, without a second copy."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..kernels.linear import pack
from .finite import count_not_finite

ZERO = "zero_k_bias"  # in the names of biases that are zero by definition: files may leave them out
MOST_BLOCKS = 1000
MOST_TOKENS = 1 << 20
MOST_SCALES = 64


def load_exactly(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    device: torch.device,
    dtype: torch.dtype,
    keep: tuple[str, ...] = (),
    unused: tuple[str, ...] = (),
) -> None:
    """Put ``tensors`` into a module made on the meta device, one at a time, strictly.

    Floating tensors become ``dtype``, those under the ``keep`` prefixes float32. A
    :class:`GivenAway` loses each as it is taken, so that memory never holds two copies of all.

    Raises:
        CheckpointError: names or shapes differ (the message lists them), a weight is no floating
            tensor, or one overflows in the dtype asked for.
    """
    expected = module.state_dict()
    missing = sorted(expected.keys() - tensors.keys() - {n for n in expected if ZERO in n})
    extra = sorted(tensors.keys() - expected.keys() - set(unused))
    if missing or extra:
        raise CheckpointError(
            f"tensors do not match the model: missing {missing[:4]} ({len(missing)} in all), "
            f"unexpected {extra[:4]} ({len(extra)} in all)"
        )
    take = tensors.take if isinstance(tensors, GivenAway) else tensors.get
    ready = {}
    for name, blank in expected.items():
        tensor = take(name)
        if tensor is None:
            tensor = torch.zeros(blank.shape)
        if tensor.shape != blank.shape:
            raise CheckpointError(
                f"tensor {name} has shape {tuple(tensor.shape)}, expected {tuple(blank.shape)}"
            )
        wanted = torch.float32 if name.split(".")[0] in keep else dtype
        whole = blank.is_floating_point()
        ready[name] = converted(name, tensor, wanted, device) if whole else tensor.to(device)
    module.load_state_dict(ready, assign=True)
    for blank_module in module.modules():  # buffers that are computed, not loaded
        for name, buffer in blank_module._buffers.items():
            if buffer is not None and buffer.is_meta:
                blank_module._buffers[name] = torch.empty(0, device=device)
    pack(module)


class GivenAway(dict[str, Tensor]):
    """A state dict whose tensors are taken out one by one."""

    def take(self, name: str) -> Tensor | None:
        """The tensor of this name, which is gone from here then."""
        return self.pop(name, None)


def converted(
    name: str, tensor: Tensor, dtype: torch.dtype, device: torch.device | None = None
) -> Tensor:
    """A weight in another dtype, on ``device``.

    Raises:
        CheckpointError: it is no floating tensor (quantised weights), or it overflows in ``dtype``.
    """
    if not tensor.is_floating_point():
        raise CheckpointError(
            f"tensor {name} is {tensor.dtype}, expected floating weights: quantised ones need the "
            "library that made them. Load the original checkpoint"
        )
    made = tensor.to(device, dtype) if device is not None else tensor.to(dtype)
    if made.dtype != tensor.dtype and not made.is_meta and count_not_finite(made):
        short = str(dtype).removeprefix("torch.")
        raise CheckpointError(
            f"tensor {name} overflows in {short}. Load with dtype=bfloat16 or float32"
        )
    return made


@contextmanager
def complete(family: str) -> Iterator[None]:
    """Reading tensors of a checkpoint that every one of its family has.

    Raises:
        CheckpointError: one of them is missing.
    """
    try:
        yield
    except KeyError as missing:
        raise CheckpointError(
            f"not a complete {family} checkpoint: tensor {missing} is missing"
        ) from missing


def block_count(names: Iterable[str], prefix: str, most: int = MOST_BLOCKS) -> int:
    """How many modules ``prefix`` + 0, 1, ... there are.

    Raises:
        CheckpointError: one is missing in between, or there are more than ``most``: sizes are
            bounded before a module is made of them.
    """
    found = {name[len(prefix) :].partition(".")[0] for name in names if name.startswith(prefix)}
    numbers = {int(n) for n in found if n.isdecimal() and len(n) < 9}
    odd = [n for n in sorted(found) if not n.isdecimal() or len(n) >= 9]
    if odd or numbers != set(range(len(numbers))) or len(numbers) > most:
        listed: list[Any] = [*odd, *sorted(numbers ^ set(range(len(numbers))))]
        raise CheckpointError(
            f"tensors {prefix}* are numbered {listed[:4]} beside {len(numbers)} in all, expected 0 "
            f"to at most {most - 1} without gaps"
        )
    if not numbers:
        raise CheckpointError(f"no tensor is called {prefix}0.*")
    return len(numbers)


def scale_sizes(level: Tensor) -> list[int]:
    """Tokens of every scale from ``lvl_1L``, the scale of each token, in whatever dtype it is.

    Raises:
        CheckpointError: it is no ascending list of whole numbers from 0, or too long.
    """
    flat = level.flatten()
    if flat.numel() == 0 or flat.numel() > MOST_TOKENS:
        raise CheckpointError(
            f"lvl_1L has {flat.numel()} values, expected the scale of 1 to {MOST_TOKENS} tokens"
        )
    whole = flat.double().round()
    steps = whole.diff()
    ascending = bool(whole[0] == 0) and bool(((steps == 0) | (steps == 1)).all())
    if not ascending or not bool((whole == flat.double()).all()) or whole[-1] > MOST_SCALES:
        raise CheckpointError(
            "lvl_1L does not count the scales of the tokens upwards from 0. "
            "Export the checkpoint again"
        )
    return torch.bincount(whole.long()).tolist()


def square_sides(counts: Iterable[int]) -> tuple[int, ...]:
    """Sides of square scales with so many tokens.

    Raises:
        CheckpointError: one is no square.
    """
    counts = list(counts)
    sides = tuple(math.isqrt(count) for count in counts)
    odd = [count for side, count in zip(sides, counts, strict=True) if side * side != count]
    if odd:
        raise CheckpointError(
            f"a scale has {odd[0]} tokens, which is no square: scales that are not square are not "
            "supported for this family"
        )
    return sides
