"""Seeded damage: of bytes, of nested values, of tensors by name. A number says which."""

from __future__ import annotations

import copy
import random
from typing import Any

import torch

EVIL = "evil_module:score"
ODD: tuple[Any, ...] = (
    *(None, True, False, "", " ", "exact", "null", "cond", "x", EVIL, "a\nb", "\x1b[31m", "\0"),
    *("../x", "/etc/passwd", "1e999", "NaN", "sha256:" + "0" * 64, "skip", "int8", "é" * 300),
    *(0, 1, -1, 2, 7, 2**31, 2**63, 2**64, 10**39, 0.0, 0.5, 1.5, -0.5, 1e308, -1e308, 5e-324),
    *(float("inf"), float("nan"), [], {}, [[]], [0], [1, 2], [0.5] * 4, [1, 0], [[1, 1]]),
    *({"a": 1}, 1e-30, "pca", "random"),
)


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something lies in nested dicts and lists."""
    found = [at] if at else []
    items = value.items() if isinstance(value, dict) else ()
    for key, item in enumerate(value) if isinstance(value, list) else items:
        found += places(item, (*at, key))
    return found


def mutated(value: Any, chance: random.Random, most: int = 3) -> Any:
    """Nested dicts and lists with up to ``most`` changes."""
    made = copy.deepcopy(value)
    for _ in range(chance.randint(1, most)):
        every = places(made)
        if not every:
            return made
        *path, key = chance.choice(every)
        holder = made
        for step in path:
            holder = holder[step]
        _change(holder, key, chance, made)
    return made


def _change(holder: Any, key: Any, chance: random.Random, whole: Any) -> None:
    how = chance.randrange(8)
    if how == 0:
        del holder[key]
    elif how == 1 and isinstance(holder, dict):
        holder[str(chance.choice(ODD))[:40]] = holder.pop(key)
    elif how == 2 and isinstance(holder, list):
        holder.insert(key, copy.deepcopy(holder[key]))
    elif how == 3 and isinstance(holder, list):
        chance.shuffle(holder)
    elif how == 4 and isinstance(holder[key], (int, float)) and not isinstance(holder[key], bool):
        holder[key] = holder[key] * chance.choice((-1, 0.5, 2, 10, 1e6)) + chance.choice((0, 1))
    elif how == 5:  # something of elsewhere
        *path, other = chance.choice(places(whole))
        found = whole
        for step in path:
            found = found[step]
        holder[key] = copy.deepcopy(found[other])
    else:
        holder[key] = copy.deepcopy(chance.choice(ODD))


def damaged(content: bytes, chance: random.Random) -> bytes:
    """Bytes cut, flipped, overwritten, doubled or replaced."""
    data = bytearray(content)
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(data)) if data else 0
        if chance.random() < 0.5:  # where formats keep what they are
            at = min(at, chance.randrange(600))
        size = chance.choice((1, 4, 64, 4096))
        how = chance.randrange(7)
        if how == 0:
            del data[at:]
        elif how == 1 and data:
            data[at] ^= 1 << chance.randrange(8)
        elif how == 2:
            data[at : at + size] = chance.randbytes(size)
        elif how == 3:
            data[at : at + size] = bytes(size)
        elif how == 4:
            del data[at : at + size]
        elif how == 5:
            data[at:at] = data[at : at + size]
        else:
            data[at : at + 8] = chance.choice((0, 1, 2**31, 2**40, 2**63, 2**64 - 1)).to_bytes(
                8, "little"
            )
    return bytes(data)


def changed_tensors(state: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    """A state dict in which up to three things are not as they should be."""
    made: dict[str, Any] = dict(state)
    for _ in range(chance.randint(1, 3)):
        if not made:
            return made
        name = chance.choice(sorted(made))
        tensor = made[name]
        if not isinstance(tensor, torch.Tensor):
            continue
        how = chance.randrange(14)
        if how == 0:
            del made[name]
        elif how == 1:
            made[_odd_name(name, chance)] = tensor
        elif how == 2:
            made[_odd_name(name, chance)] = made.pop(name)
        else:
            made[name] = _odd_tensor(tensor, how, chance)
    return made


def _odd_name(name: str, chance: random.Random) -> str:
    parts = name.split(".")
    parts[chance.randrange(len(parts))] = chance.choice(
        ("x", "99", "20000", "-1", "", "٣", "1" * 400)
    )
    return ".".join(parts)


def _odd_tensor(tensor: torch.Tensor, how: int, chance: random.Random) -> Any:
    flat = tensor.reshape(-1)
    if how == 3:
        return tensor[:0] if tensor.ndim else tensor[None]
    if how == 4:
        return tensor.transpose(0, -1) if tensor.ndim else tensor
    if how == 5:
        return flat[: chance.randint(0, flat.numel())]
    if how == 6:
        return torch.cat([tensor, tensor]) if tensor.ndim else tensor
    if how == 7:
        return flat.sum()
    if how == 8:
        return tensor[None]
    if how == 9:
        kinds = (torch.int8, torch.bool, torch.float64, torch.float16, torch.int64, torch.uint8)
        return tensor.to(chance.choice(kinds))
    if how == 10:
        made = tensor.float().clone()
        if made.numel():
            odd = chance.choice((torch.nan, torch.inf, -torch.inf, 1e30, -1e38))
            made.view(-1)[chance.randrange(made.numel())] = odd
        return made
    if how == 11:
        return tensor.float() * chance.choice((1e3, 1e6, 1e20, 0.0, -1.0))
    if how == 12:
        return chance.choice((None, "x", 3, [1], {"x": tensor}, {}))
    return chance.choice(
        (
            lambda: torch.zeros(1).expand(2**20, 2**10),
            lambda: tensor.to("meta"),
            lambda: tensor.float().to_sparse(),
            lambda: tensor.float() * 1j,
            lambda: torch.full((1, 3), 2**33),
            lambda: torch.quantize_per_tensor(torch.ones(3), 1.0, 0, torch.qint8),
        )
    )()
