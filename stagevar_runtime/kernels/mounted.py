"""Which fused kernels run: none by default, those that agree with their definitions when mounted.

Every operation of this room is three things: a function in plain PyTorch that defines it, a
predicate that says which tensors its kernel takes, and the kernel, which modules are given in a
:class:`Kernels`. A kernel is mounted after it agreed with its definition on small random input on
the device itself, so that a bad compiler or driver costs speed, not pictures.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import one_line
from . import heads, norms, pairs
from .groups import normed as plain_group_norm
from .linear import fused_gelu_linear, gelu_linear
from .slots import Kernels

logger = logging.getLogger("stagevar_runtime")

UNITS = {torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}  # in the last place, of 1
LIMIT = {torch.float32: 1e-5}  # of a difference, against the largest value; else two units
Checked = tuple[Any, Any]  # what the kernel gives, and its definition


def mount(module: object, kernels: Kernels) -> None:
    """Give ``kernels`` to every submodule that runs some (those with such an attribute)."""
    owners = module.modules() if isinstance(module, nn.Module) else (module,)
    for owner in owners:
        if hasattr(owner, "kernels"):
            owner.kernels = kernels


def fused(device: torch.device, dtype: torch.dtype) -> tuple[Kernels, list[str]]:
    """The kernels that work on ``device`` in ``dtype``, and what to say of those that do not."""
    made: dict[str, Callable[..., Any]] = {}
    found: dict[str, Any] = {}
    notes = []
    try:
        from .groups_triton import group_norm
        from .heads_triton import split
        from .norms_triton import add_norm
        from .pairs_triton import draw
    except ImportError as error:
        notes.append(f"kernels of Triton are left out: {error}")
    else:
        made = {
            "add_norm": add_norm,
            "split": split,
            "group_norm": group_norm,
            "draw": draw,
        }
    if device.type == "cuda":  # on a CPU PyTorch fuses another GELU
        made["gelu"] = fused_gelu_linear
    for name, kernel in made.items():
        wrong = disagreement(name, kernel, device, dtype)
        if wrong:
            notes.append(f"kernel {name} is left out: {wrong}")
            logger.warning("%s", notes[-1])
        else:
            found[name] = kernel
    return Kernels(**found), notes


@torch.inference_mode()
def disagreement(
    name: str, kernel: Callable[..., Any], device: torch.device, dtype: torch.dtype
) -> str:
    """Why a kernel is not to be used; empty if it agrees with its definition."""
    try:
        for got, wanted in CHECKS[name](kernel, device, dtype):
            if (off := difference(got, wanted)) > (most := limit(wanted.dtype)):
                return f"off by {off:.2g} of the largest value, expected at most {most:.2g}"
    except Exception as error:  # whatever a compiler or driver raises
        return one_line(error)
    return ""


def limit(dtype: torch.dtype) -> float:
    """The most that a kernel may be off, against the largest value."""
    return LIMIT.get(dtype, 2 * UNITS.get(dtype, 0.0))


def difference(got: Tensor, wanted: Tensor) -> float:
    """The largest difference against the largest value; what is not finite is infinitely far."""
    if got.shape != wanted.shape or got.dtype != wanted.dtype:
        return float("inf")
    off = (got.double() - wanted.double()).abs().max() / wanted.double().abs().max().clamp_min(1)
    return float(off.nan_to_num(torch.inf))


def _generator(device: torch.device) -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    return normal


def _check_add_norm(kernel: Any, device: torch.device, dtype: torch.dtype) -> Iterator[Checked]:
    normal = _generator(device)
    for kind in ("layer", "rms"):
        x, y = normal(4, 3, 160, dtype=dtype), normal(2, 3, 160, dtype=dtype)
        weight = normal(160, dtype=dtype)
        gate, factor, shift = (normal(4, 1, 160, dtype=dtype) for _ in range(3))
        norm = norms.Norm(kind, weight)
        inner = norms.Norm("rms", weight) if kind == "rms" else None
        given = (x, norms.Step(y, gate, inner), norm, factor, shift)
        yield from zip(kernel(*given), norms.add_norm(*given), strict=True)


def _check_split(kernel: Any, device: torch.device, dtype: torch.dtype) -> Iterator[Checked]:
    normal = _generator(device)
    angles = normal(1, 5, 16)
    tables = {"pairs": (angles.cos(), angles.sin()), "none": None}
    angles = torch.cat([angles, angles], -1)
    tables["halves"] = (angles.cos(), angles.sin())
    for norm, rotate in (("unit", "pairs"), ("whole", "halves"), ("none", "none")):
        made = heads.Heads(3, norm, rotate)  # type: ignore[arg-type]
        product, scale = normal(2, 5, 3 * 96, dtype=dtype), normal(1, 3, 1, 1).exp()
        slots = [
            (
                normal(2, 3, 9, 32, dtype=dtype)[:, :, 2:7],
                normal(2, 3, 9, 32, dtype=dtype)[:, :, 2:7],
            )
            for _ in range(2)
        ]
        given = (product, made, scale, tables[rotate])
        got, wanted = kernel(*given, slots[0]), heads.split(*given, slots[1])
        yield from zip(got, wanted, strict=True)


def _check_group_norm(kernel: Any, device: torch.device, dtype: torch.dtype) -> Iterator[Checked]:
    normal = _generator(device)
    for kind in {dtype, dtype if dtype == torch.float32 else torch.float16}:  # decoders' own
        norm = nn.GroupNorm(32, 160, eps=1e-6).to(device, kind).requires_grad_(False)
        norm.weight.copy_(normal(160))
        x = normal(2, 160, 9, 11, dtype=kind).contiguous(memory_format=torch.channels_last)
        for silu in (False, True):
            yield kernel(x, norm, silu), plain_group_norm(x, norm, silu)


def _check_draw(kernel: Any, device: torch.device, dtype: torch.dtype) -> Iterator[Checked]:
    normal = _generator(device)
    for weights in ((3.0, -2.0), None):
        made = pairs.Pairs(weights, 0.5, 0.9)
        logits = normal(4, 7, 10)
        clocks = normal(2 if weights else 4, 35, 2).exp()
        yield kernel(logits, made, clocks), pairs.drawn(logits, made, clocks)


def _check_gelu(kernel: Any, device: torch.device, dtype: torch.dtype) -> Iterator[Checked]:
    normal = _generator(device)
    weight, bias = normal(96, 64, dtype=dtype), normal(96, dtype=dtype)
    for rows in (1, 40):
        x = normal(rows, 1, 64, dtype=dtype) / 8
        yield kernel(x, weight, bias), gelu_linear(x, weight, bias)


CHECKS: dict[str, Callable[..., Iterator[Checked]]] = {
    "add_norm": _check_add_norm,
    "split": _check_split,
    "group_norm": _check_group_norm,
    "draw": _check_draw,
    "gelu": _check_gelu,
}
