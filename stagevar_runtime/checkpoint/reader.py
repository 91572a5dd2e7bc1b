"""Open checkpoints of any layout the families publish, lazily and without running code from them.

A file's format is decided by its first bytes, never by its suffix. Zip and safetensors files are
mapped, so that only the tensors that are used are read.
"""

from __future__ import annotations

import json
import os
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError, one_line

SELECT = (
    *("var_wo_ddp", "gpt_fsdp", "gpt_ema_fsdp", "state_dict", "model", "module"),
    *("ema", "vae", "vae_local"),
)
"""Which nested state dict is meant when a file holds several, the first one found."""

OWN = "stagevar."
"""What a safetensors header's keys begin with where they mean something to us."""

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
_HUB_NAMES = ("model.safetensors", "pytorch_model.bin", "diffusion_pytorch_model.safetensors")
_TRAINING = re.compile(r"(^|_)(opt|optim|optimizers?|state|scaler|scheduler|param_groups)$")
_PICKLED = re.compile(r"GLOBAL (\S+)")
_CHUNK = 1 << 22  # elements looked at in one go


@dataclass(frozen=True)
class Checkpoint:
    """Tensors of a checkpoint, still on disk where its format allows.

    ``tensors`` is the main state dict, without ``module.`` and ``_orig_mod.`` in its names.
    ``parts`` holds every state dict of the file by its dotted key (``trainer.vae_local``; the top
    level is ``""``), the main one included. ``metadata`` holds the plain values found around
    them, by dotted key: what a training run left there, which decides nothing. ``settings`` are
    those a safetensors header gives under our own prefix (:data:`OWN`), without it. ``config`` is
    ``config.json`` of a directory. ``files`` were opened.
    """

    path: Path
    tensors: dict[str, Tensor]
    parts: dict[str, dict[str, Tensor]]
    metadata: dict[str, Any]
    config: dict[str, Any] | None
    files: tuple[Path, ...]
    settings: dict[str, str] = field(default_factory=dict)

    def select(self, *names: str) -> dict[str, Tensor]:
        """The first part whose dotted key, or its last component, is one of ``names``.

        Raises CheckpointError when there is none, listing the parts there are.
        """
        return self.parts[_pick(self.path, self.parts, names)]


def open_checkpoint(path: str | Path, select: Sequence[str] = SELECT) -> Checkpoint:
    """Open a file or a directory, sharded or not.

    ``select`` orders the state dicts to prefer when there are several (see :data:`SELECT`).

    Raises CheckpointError, with the file named, for what is missing, truncated, mislabelled,
    without tensors, or in need of unpickling.
    """
    path = Path(path)
    if path.is_dir():
        tree, metadata, files = _read_directory(path)
        config = _read_json(path / "config.json") if (path / "config.json").exists() else None
    else:
        tree, metadata = _read_file(path)
        files = (path,)
        beside = path.with_name("config.json")
        known = path.name in (*_HUB_NAMES, "ema_model.bin") and beside.exists()
        config = _read_json(beside) if known else None
    parts: dict[str, dict[str, Tensor]] = {}
    settings = {k.removeprefix(OWN): str(v) for k, v in metadata.items() if k.startswith(OWN)}
    _collect(tree, "", parts, metadata, path)
    if not parts:
        kinds = sorted({type(v).__name__ for v in tree.values()})
        holds = f"a dict of {', '.join(kinds)}" if kinds else "an empty dict"
        raise CheckpointError(f"{path}: holds {holds}, expected tensors by name")
    main = "" if "" in parts else next(iter(parts))
    if len(parts) > 1 and "" not in parts:
        main = _pick(path, parts, select)
    return Checkpoint(path, parts[main], parts, metadata, config, files, settings)


def check_finite(
    tensors: Mapping[str, Tensor],
    source: str | Path,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Raise CheckpointError naming ``source`` and the tensor when one holds NaN.

    Infinity passes: attention masks hold it. Reads every element of every floating tensor once.
    ``progress`` is called with elements looked at and elements in all.
    """
    floating = {name: t for name, t in tensors.items() if t.is_floating_point() or t.is_complex()}
    total, done = sum(t.numel() for t in floating.values()), 0
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for (name, tensor), bad in zip(
            floating.items(), pool.map(_nan_count, floating.values()), strict=True
        ):
            if bad:
                pool.shutdown(cancel_futures=True)
                raise CheckpointError(
                    f"{source}: tensor {name!r} holds NaN ({bad} of {tensor.numel()} values), "
                    f"expected finite weights. Download or export it again"
                )
            done += tensor.numel()
            if progress is not None:
                progress(done, total)


def _nan_count(tensor: Tensor) -> int:
    flat = tensor.detach().reshape(-1)
    small = flat.element_size() == 1  # 8-bit floats know no arithmetic
    chunks = (chunk.float() if small else chunk for chunk in flat.split(_CHUNK))
    # a sum is NaN if a value is; the other way, infinities of both signs need the closer look
    return sum(int(c.isnan().sum()) for c in chunks if bool(c.sum().isnan()))


def _pick(path: Path, parts: Mapping[str, Any], names: Sequence[str]) -> str:
    for name in names:
        for key in parts:
            if name in (key, key.rpartition(".")[2]):
                return key
    raise CheckpointError(
        f"{path}: holds the state dicts {_listed(parts)}, expected one of {_listed(names)}. "
        f"Say which with select="
    )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)


def _collect(
    tree: Mapping[Any, Any],
    key: str,
    parts: dict[str, dict[str, Tensor]],
    metadata: dict[str, Any],
    path: Path,
) -> None:
    """Sort a nested dict into state dicts and plain values, leaving optimizer states out."""
    found = {k: v.detach() for k, v in tree.items() if isinstance(k, str) and _is_tensor(v)}
    if found:
        parts[key] = _strip(found, path)
    for name, value in tree.items():
        below = f"{key}.{name}" if key else str(name)
        if isinstance(value, Mapping) and isinstance(name, str):
            if not _TRAINING.search(name):
                _collect(value, below, parts, metadata, path)
        elif isinstance(value, (str, int, float, bool)):
            metadata[below] = value


def _is_tensor(value: object) -> bool:
    return isinstance(value, Tensor)


def _strip(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Names without the prefixes that wrappers add: ``module.`` of all, ``_orig_mod.`` of any."""
    names = {name: name.replace("_orig_mod.", "") for name in tensors}
    while all(name.startswith("module.") for name in names.values()):
        names = {old: new.removeprefix("module.") for old, new in names.items()}
    stripped: dict[str, Tensor] = {}
    for old, new in names.items():
        if new in stripped:
            raise CheckpointError(f"{path}: tensor {new!r} is there twice, once as {old!r}")
        stripped[new] = tensors[old]
    return stripped


def _read_directory(path: Path) -> tuple[dict[str, Any], dict[str, Any], tuple[Path, ...]]:
    """One state dict from a directory: its EMA file, its shards, or the one file it holds."""
    indexes = sorted(path.glob("*.index.json"), key=lambda p: "safetensors" not in p.name)
    named = [path / n for n in ("ema_model.bin",) if (path / n).exists()]
    if not named and indexes:
        return _read_shards(indexes[0])
    named = named or [path / n for n in _HUB_NAMES if (path / n).exists()]
    single = named or sorted(p for p in path.iterdir() if _may_be_weights(p))
    if not single:
        raise CheckpointError(
            f"{path}: a directory without a checkpoint, expected one file ending in "
            f"{', '.join(SUFFIXES)} or shards with an index.json"
        )
    if not named and len(single) > 1:
        raise CheckpointError(
            f"{path}: holds {len(single)} checkpoints ({', '.join(p.name for p in single)}), "
            f"expected one. Name the file instead of the directory"
        )
    tree, metadata = _read_file(single[0])
    return tree, metadata, (single[0],)


def _may_be_weights(path: Path) -> bool:
    """By its name; the bases of a profile are no weights."""
    return path.suffix in SUFFIXES and path.stem.split(".")[-1] != "stagevar" and path.is_file()


def _read_shards(index: Path) -> tuple[dict[str, Any], dict[str, Any], tuple[Path, ...]]:
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: no weight_map, expected tensor names and their shards")
    shards: dict[str, list[str]] = {}
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or Path(shard).name != shard:
            raise CheckpointError(f"{index}: shard {shard!r} is not a file name in this directory")
        shards.setdefault(shard, []).append(name)
    for shard in shards:
        if not index.with_name(shard).is_file():
            raise CheckpointError(
                f"{index.with_name(shard)}: shard is missing, {index.name} expects "
                f"{len(shards)} shards. Download it"
            )
    tensors: dict[str, Any] = {}
    metadata: dict[str, Any] = {}
    for shard, names in shards.items():
        tree, more = _read_file(index.with_name(shard))
        for name in names:
            if not _is_tensor(tree.get(name)):
                raise CheckpointError(
                    f"{index.with_name(shard)}: tensor {name!r} is missing, {index.name} "
                    f"expects it there. Download both again"
                )
            tensors[name] = tree[name]
        metadata |= more
    return tensors, metadata, (index, *(index.with_name(shard) for shard in shards))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: not readable as JSON ({one_line(error, named=False)})"
        ) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds a {type(value).__name__}, expected a JSON object")
    return value


def _read_file(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The nested dict a file holds, and the text metadata of its header."""
    kind = _format(path)
    if kind == "safetensors":
        return _read_safetensors(path)
    content = _read_torch(path, mmap=kind == "zip")
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{path}: holds a {type(content).__name__}, expected tensors by name (a state dict)"
        )
    return dict(content), {}


def _format(path: Path) -> str:
    """``zip``, ``pickle`` or ``safetensors``, from the first bytes."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(64)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file, expected a checkpoint") from error
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be opened ({one_line(error, named=False)})"
        ) from error
    if not head:
        raise CheckpointError(f"{path}: the file is empty, expected a checkpoint. Download it")
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    length = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and length < 100_000_000:
        if 8 + length > size:
            raise CheckpointError(
                f"{path}: truncated, its header takes {8 + length} bytes and the file has {size}. "
                f"Download it again"
            )
        return "safetensors"
    if head[0] == 0x80 and head[1] <= 5:
        return "pickle"
    what = f"starts with {head[:12]!r}"
    if head.startswith(b"version https://git-lfs"):
        what = "is a Git LFS pointer, run `git lfs pull`"
    elif head.lstrip()[:5].lower() in (b"<!doc", b"<html"):
        what = "is a web page, download the file itself"
    raise CheckpointError(
        f"{path}: not a checkpoint ({what}), expected a PyTorch or safetensors file"
    )


def _read_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            return tensors, dict(file.metadata() or {})
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: truncated or damaged safetensors file "
            f"({one_line(error, named=False)}). Download it again"
        ) from error


def _read_torch(path: Path, mmap: bool) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if mmap and path.suffix != ".safetensors":  # which torch.load would believe
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            with path.open("rb") as file:
                return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen types for bytes it cannot read
        refused = _PICKLED.search(str(error))
        if refused or "weights_only" in str(error).lower():
            name = f"{refused[1]!r}" if refused else "an object"
            raise CheckpointError(
                f"{path}: needs {name} to be unpickled, which could run code; refused. "
                f"Expected tensors only: save its state dict alone, or as safetensors"
            ) from error
        raise CheckpointError(
            f"{path}: truncated or damaged PyTorch file ({one_line(error, named=False)}), "
            f"expected a state dict saved with torch.save. Download it again"
        ) from error
