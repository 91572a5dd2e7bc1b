"""What people pass, checked and made plain: numbers, seeds, labels, prompts, tensors.

Anything with ``.item()`` (numpy, tensors of one value) or registered as a number is a number, and
2.0 is an integer; text, truth values, NaN and infinity are not. Every error names the argument.
"""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from ..errors import StagevarError

SEEDS = 2**64  # seeds are below this
LARGEST = 1e6  # of what multiplies or divides logits: beyond it their differences drown
MOST_ITEMS = 1 << 20  # of a list
_SHOWN = 60  # characters of a wrong value that an error repeats


def plain(value: Any) -> Any:
    """A number as Python's own; anything else as it is."""
    if isinstance(value, (bool, str, bytes, int, float)) or value is None:
        return value
    if isinstance(value, numbers.Real):
        return int(value) if isinstance(value, numbers.Integral) else _float(value)
    if isinstance(value, numbers.Number) and not isinstance(value, numbers.Complex):  # Decimal
        return _float(value)
    one = getattr(value, "item", None)
    if callable(one) and getattr(value, "ndim", 0) == 0:
        try:
            found = one()
        except (RuntimeError, ValueError, TypeError, NotImplementedError):
            return value
        return found if isinstance(found, (int, float, complex, str, bytes)) else value
    return value


def _float(value: Any) -> Any:
    try:
        return float(value)
    except (OverflowError, ValueError):
        return math.inf


def number(
    name: str, value: Any, low: float = -LARGEST, high: float = LARGEST, open_low: bool = False
) -> float:
    """A finite number from ``low`` to ``high`` (``open_low``: above ``low``).

    Raises:
        StagevarError: it is none, not finite, or outside.
    """
    found = plain(value)
    expected = f"a number {'above' if open_low else 'from'} {low:g} {'up ' if open_low else ''}to"
    if isinstance(found, bool) or not isinstance(found, (int, float)):
        raise StagevarError(f"{name} is {shown(value)}, expected {expected} {high:g}")
    if not low <= found <= high or (open_low and found == low):  # NaN too
        raise StagevarError(f"{name} is {shown(found)}, expected {expected} {high:g}")
    return found if isinstance(found, int) else float(found)


def integer(name: str, value: Any, low: int, high: int) -> int:
    """An integer from ``low`` to ``high``; a float that is one will do.

    Raises:
        StagevarError: it is none, or outside.
    """
    found = plain(value)
    whole = isinstance(found, int) or (isinstance(found, float) and found.is_integer())
    if isinstance(found, bool) or not whole or not low <= found <= high:
        raise StagevarError(f"{name} is {shown(value)}, expected an integer from {low} to {high}")
    return int(found)


def sequence(value: Any) -> list[Any] | None:
    """The items of a list, tuple, range, array or tensor with one axis or more; None for others.

    What has no end, or more than :data:`MOST_ITEMS`, is none: nobody means so many.
    """
    if isinstance(value, (str, bytes, bytearray, Mapping, set, frozenset)) or value is None:
        return None
    if getattr(value, "ndim", 1) == 0:
        return None
    if isinstance(value, Tensor):
        if value.layout is not torch.strided or value.is_meta or value.is_quantized:
            return None
        value = value.detach().cpu()
    as_list = getattr(value, "tolist", None)
    try:
        found = as_list() if callable(as_list) else list(islice(value, MOST_ITEMS + 1))
    except (TypeError, ValueError, RuntimeError, NotImplementedError):  # no list, or 8-bit floats
        return None
    return found if isinstance(found, list) and len(found) <= MOST_ITEMS else None


def per_scale(name: str, value: Any, one: Any) -> Any:
    """``one(name, value)`` of a number, or a tuple of it for one per scale."""
    items = sequence(value)
    if items is None:
        return one(name, value)
    if not items:
        raise StagevarError(f"{name} is an empty list, expected a number, or one per scale")
    return tuple(one(f"{name} of scale {k}", item) for k, item in enumerate(items))


def check_per_scale(name: str, value: Any, scales: int) -> None:
    """Raise StagevarError unless a list ``value`` holds one number per scale."""
    if isinstance(value, tuple) and len(value) != scales:
        raise StagevarError(
            f"{name} has {len(value)} values, expected one number, or one per scale: {scales}. "
            f"It is the same for every image of a call"
        )


def seeds(value: Any, batch: int) -> int | list[int]:
    """A seed for the whole batch, or one per image, each from 0 to 2**64 - 1.

    Raises:
        StagevarError: it is no such number, or there are more or fewer than images.
    """
    items = sequence(value)
    if items is None:
        return integer("seed", value, 0, SEEDS - 1)
    if len(items) != batch:
        raise StagevarError(
            f"got {len(items)} seeds for {batch} images, expected one per image or one number"
        )
    return [integer(f"seed of image {i}", item, 0, SEEDS - 1) for i, item in enumerate(items)]


def labels(value: Any, classes: int) -> Tensor:
    """Class labels ``(B,)`` int64 in [0, ``classes``): an integer, or any array of them.

    Raises:
        StagevarError: there is none, or one is no class.
    """
    expected = f"labels from 0 to {classes - 1}"
    items = list(_leaves(value, 0))
    if not items:
        raise StagevarError(f"got no label, expected {expected}")
    found: list[int] = []
    for item in items:
        try:
            found.append(integer("label", item, 0, classes - 1))
        except StagevarError as error:
            bad = [shown(i) for i in items if not _is_class(i, classes)]
            got = f"[{', '.join(bad[:8])}{', ...' if len(bad) > 8 else ''}]"
            raise StagevarError(f"got {got}, expected {expected}") from error
    return torch.tensor(found, dtype=torch.long, device="cpu")


def _is_class(value: Any, classes: int) -> bool:
    try:
        integer("label", value, 0, classes - 1)
    except StagevarError:
        return False
    return True


def _leaves(value: Any, depth: int) -> Iterable[Any]:
    items = sequence(value) if depth < 8 else None
    if items is None:
        yield value
        return
    for item in items:
        yield from _leaves(item, depth + 1)


def prompts(value: Any) -> list[str]:
    """Prompts: one string is one prompt, any list or array of strings several.

    Raises:
        StagevarError: there is none, or one is no text.
    """
    if isinstance(value, str):
        value = [value]
    items = sequence(value)
    if not items:
        raise StagevarError(f"got the prompts {shown(value)}, expected a string or a list of them")
    for i, item in enumerate(items):
        if not isinstance(item, str):
            raise StagevarError(f"prompt {i} is {shown(item)}, expected a string")
        try:
            item.encode("utf-8")
        except UnicodeEncodeError as error:
            raise StagevarError(f"prompt {i} is {shown(item)}, which is no valid text") from error
    return [str(item) for item in items]


def parse_sides(said: Any) -> tuple[int, ...]:
    """The side of every scale, from a list or from text such as ``1_2_3``.

    Raises:
        StagevarError: it is no such thing.
    """
    given = re.split(r"[_,\s]+", said.strip("[]() ")) if isinstance(said, str) else said
    items = sequence(given)
    if not items or len(items) > 64:
        raise StagevarError(f"patch_nums is {shown(said)}, expected the side of every scale: 1_2_3")
    whole = [int(i) if isinstance(i, str) and i.isdecimal() and len(i) < 9 else i for i in items]
    return tuple(integer(f"patch_nums[{k}]", i, 1, 1024) for k, i in enumerate(whole))


def tensor(name: str, value: Any) -> Tensor:
    """A dense real tensor from a tensor, an array or nested lists.

    Raises:
        StagevarError: it cannot be one.
    """
    if value is None or isinstance(value, (str, bytes)):
        raise StagevarError(f"{name} is {shown(value)}, expected a tensor")
    try:
        found = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise StagevarError(f"{name} is {shown(value)}, expected a tensor") from error
    if found.layout is not torch.strided or found.is_meta or found.is_quantized:
        kind = "meta" if found.is_meta else str(found.layout)
        raise StagevarError(f"{name} is a {kind} tensor of {found.dtype}, expected a dense one")
    if found.is_complex():
        raise StagevarError(f"{name} is {found.dtype}, expected real numbers")
    return found.detach()


def finite(name: str, value: Tensor) -> Tensor:
    """``value`` itself. Raises StagevarError when a number in it is NaN or infinite."""
    if value.is_floating_point() and not bool(value.isfinite().all()):
        where = (~value.isfinite()).nonzero()[0].tolist()
        raise StagevarError(
            f"{name} is not finite at {where} ({value.dtype}): a text encoder overflows in half "
            "precision. Encode in bfloat16 or float32"
        )
    return value


def shown(value: Any) -> str:
    """A wrong value, short enough to stand in an error."""
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor of shape {tuple(value.shape)}"
    shape = getattr(value, "shape", None)
    if isinstance(shape, tuple) and shape:
        return f"a {type(value).__name__} of shape {shape}"
    try:
        text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    except Exception:  # whatever a value's own repr raises
        return f"a {type(value).__name__}"
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
