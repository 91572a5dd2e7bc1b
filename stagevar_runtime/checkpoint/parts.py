"""The state dicts inside a file: found, freed of wrappers' names, and one of them chosen."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError

SELECT = (
    *("var_wo_ddp", "gpt_fsdp", "gpt_ema_fsdp", "state_dict", "model", "module"),
    *("ema", "vae", "vae_local"),
)
"""Which nested state dict is meant when a file holds several, the first one found."""

WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""What wrappers put into names, at any depth."""

PREFIXES = ("module.", "model.", "base_model.", "_forward_module.", "_module.")
"""What wrappers put before all names, in any order."""

OWN_NAMES = ("encoder", "decoder", "quantize", "quantizer", "blocks", "block_chunks", "vae")
"""First components that belong to models: a part of one may have nothing else."""

MOST_TENSORS = 200_000
DEEPEST = 16  # dicts in dicts
_TRAINING = re.compile(r"(^|_)(opt|optim|optimizers?|state|scaler|scheduler|param_groups)$")
_AVERAGE = re.compile(r"(^|_)ema(_|$)")
_QUANTISED = re.compile(r"\.(SCB|absmax|quant_map|weight_format|qweight|qzeros|quant_state)(\.|$)")


def collect(tree: Mapping[Any, Any], path: Path) -> tuple[dict[str, dict[str, Tensor]], Tree]:
    """State dicts by dotted key, and the plain values around them; optimizer states left out.

    Raises:
        CheckpointError: a tensor is of a kind that is no weight, or too much is said.
    """
    parts: dict[str, dict[str, Tensor]] = {}
    values: Tree = {}
    _collect(tree, "", parts, values, path, 0)
    if sum(map(len, parts.values())) > MOST_TENSORS:
        raise CheckpointError(f"{path}: holds more than {MOST_TENSORS} tensors, expected weights")
    return parts, values


Tree = dict[str, Any]


def _collect(
    tree: Mapping[Any, Any],
    key: str,
    parts: dict[str, dict[str, Tensor]],
    values: Tree,
    path: Path,
    depth: int,
) -> None:
    if depth > DEEPEST:
        raise CheckpointError(f"{path}: dicts are nested deeper than {DEEPEST}, or in themselves")
    found = {k: v for k, v in tree.items() if isinstance(k, str) and isinstance(v, Tensor)}
    for name, tensor in found.items():
        _check_kind(name, tensor, path)
    if found:
        _check_whole(found, tree, path)
        parts[key] = strip({name: t.detach() for name, t in found.items()}, path)
    for name, value in tree.items():
        below = f"{key}.{name}" if key else str(name)
        if isinstance(value, Mapping) and isinstance(name, str):
            if not _TRAINING.search(name) or name.endswith("state_dict"):
                _collect(value, below, parts, values, path, depth + 1)
        elif isinstance(value, (str, int, float, bool)):
            values[below] = value


def _check_kind(name: str, tensor: Tensor, path: Path) -> None:
    """Weights are dense, real and as large as what was saved of them."""
    kind = None
    if tensor.layout is not torch.strided:
        kind = f"{tensor.layout}".removeprefix("torch.")
    elif tensor.is_meta:
        kind = "meta (without values)"
    elif tensor.is_quantized:
        kind = f"quantised ({tensor.dtype})"
    elif tensor.is_complex():
        kind = str(tensor.dtype).removeprefix("torch.")
    elif tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        kind = f"of shape {tuple(tensor.shape)}, more than was saved of it"
    if kind is not None:
        raise CheckpointError(
            f"{path}: tensor {name!r} is {kind}, expected dense weights. "
            "Save the checkpoint with plain tensors"
        )


def _check_whole(tensors: Mapping[str, Tensor], tree: Mapping[Any, Any], path: Path) -> None:
    """Names what is no state dict of whole weights."""
    floats = [t for t in tensors.values() if t.is_floating_point()]
    empty = bool(floats) and all(t.numel() == 0 for t in floats)
    if empty or ("ds_version" in tree and any(t.numel() == 0 for t in floats)):
        raise CheckpointError(
            f"{path}: the weights are empty: DeepSpeed ZeRO keeps them in shards beside it. Join "
            "them with the zero_to_fp32.py of that folder"
        )
    for name in tensors:
        if _QUANTISED.search(name):
            raise CheckpointError(
                f"{path}: tensor {name!r} says the weights are quantised (bitsandbytes or GPTQ), "
                "expected float weights. Load the original checkpoint"
            )
        if ".lora_A" in name or ".lora_B" in name:
            raise CheckpointError(
                f"{path}: tensor {name!r} is an adapter's (LoRA), expected whole weights. Merge it "
                "into the model first"
            )


def strip(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Names without what wrappers put into them (:data:`WRAPPERS`) and before them all
    (:data:`PREFIXES`, or any one common prefix), in any nesting."""
    names = {name: name for name in tensors}
    for wrapper in WRAPPERS:
        names = {old: new.replace(wrapper, "") for old, new in names.items()}
    while prefix := _common(list(names.values())):
        names = {old: new.removeprefix(prefix) for old, new in names.items()}
    stripped: dict[str, Tensor] = {}
    for old, new in names.items():
        if new in stripped:
            raise CheckpointError(f"{path}: tensor {new!r} is there twice, once as {old!r}")
        stripped[new] = tensors[old]
    return stripped


def _common(names: Sequence[str]) -> str:
    """What stands before all names with its dot, if it is a wrapper's."""
    first = names[0].split(".")[0] + "."
    if not all(name.startswith(first) and name != first for name in names):
        return ""
    if first in PREFIXES:
        return first
    least, most = min(names).split("."), max(names).split(".")
    same = takewhile(lambda pair: pair[0] == pair[1], zip(least, most, strict=False))
    shared = "".join(part + "." for part, _ in same)
    several = len({name[len(shared) :].split(".")[0] for name in names}) > 2
    return shared if several and first[:-1] not in OWN_NAMES else ""


def choose(
    parts: Mapping[str, Any], path: Path, asked: str | None, order: Sequence[str]
) -> tuple[str, str | None]:
    """The key of the state dict that is meant, and what to say of the choice.

    ``asked``: its dotted key, or the last component. Otherwise the first in ``order``, or the only
    one that is no running average: averages are taken where they are asked for.

    Raises:
        CheckpointError: there is none such; lists those there are.
    """
    if asked is not None:
        return pick(path, parts, (asked,)), None
    if "" in parts:
        main = ""
    elif len(parts) == 1:
        main = next(iter(parts))
    else:
        plain = [key for key in parts if not _AVERAGE.search(key.rpartition(".")[2])]
        named = [name for name in order if any(name in (k, k.rpartition(".")[2]) for k in parts)]
        main = plain[0] if len(plain) == 1 and not named else pick(path, parts, order)
    others = [key or "the top level" for key in parts if key != main and len(parts[key]) > 2]
    if not others:
        return main, None
    name = main or "the top level"
    return (
        main,
        f"{path.name} holds several state dicts: took {name}, select={others[0]!r} takes "
        + (f"another ({listed(others)})"),
    )


def pick(path: Path, parts: Mapping[str, Any], names: Sequence[str]) -> str:
    """The key of the first part that is called by one of ``names``.

    Raises:
        CheckpointError: none is; lists those there are.
    """
    for name in names:
        for key in parts:
            if name in (key, key.rpartition(".")[2]):
                return key
    raise CheckpointError(
        f"{path}: holds the state dicts {listed(parts)}, expected one of {listed(names)}. "
        f"Say which with select= (--select)"
    )


def listed(names: Iterable[str]) -> str:
    """Names in quotes, with commas."""
    return ", ".join(repr(name) for name in names)
