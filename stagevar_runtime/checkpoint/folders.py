"""A checkpoint in a folder: one file, or shards with an index."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import CheckpointError, one_line
from .formats import Tree, read_file, read_json

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
HUB_NAMES = ("model.safetensors", "pytorch_model.bin", "diffusion_pytorch_model.safetensors")
_INDEX = re.compile(r"\.index\.(?:[\w-]+\.)?json$")
Content = tuple[Tree, dict[str, Any], tuple[Path, ...]]


def is_index(path: Path) -> bool:
    """Whether a name is an index's of shards: ``model.safetensors.index.fp16.json`` too."""
    return bool(_INDEX.search(path.name))


def read_folder(path: Path) -> Content:
    """One state dict from a folder: its EMA file, its shards, or the one file it holds."""
    try:
        entries = sorted(p for p in path.iterdir() if not p.name.startswith("."))
        distributed = (path / ".metadata").is_file()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be listed ({one_line(error)})") from error
    refuse_shards(path, entries, distributed)
    indexes = [p for p in entries if is_index(p)]
    indexes.sort(key=lambda p: (p.name.count("."), "safetensors" not in p.name))  # no variant first
    named = [path / n for n in ("ema_model.bin",) if (path / n).exists()]
    if not named and indexes:
        return read_shards(indexes[0])
    named = named or [path / n for n in HUB_NAMES if (path / n).exists()]
    single = named or [p for p in entries if _may_be_weights(p)]
    if not single:
        raise CheckpointError(
            f"{path}: a directory without a checkpoint, expected one file ending in "
            f"{', '.join(SUFFIXES)} or shards with an index.json"
        )
    if not named and len(single) > 1:
        raise CheckpointError(
            f"{path}: holds {len(single)} checkpoints ({', '.join(p.name for p in single[:8])}), "
            f"expected one. Name the file instead of the directory"
        )
    tree, metadata = read_file(single[0])
    return tree, metadata, (single[0],)


def refuse_shards(path: Path, entries: list[Path], distributed: bool) -> None:
    """Raise CheckpointError for shards of training that only their own tools can join."""
    if distributed or any(p.suffix == ".distcp" for p in entries):
        raise CheckpointError(
            f"{path}: a distributed checkpoint of PyTorch, expected one state dict. Convert it: "
            "python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE.pth"
        )
    zero = [p for p in entries if re.match(r"(bf16_)?zero_pp_rank_\d+", p.name)]
    if zero:
        raise CheckpointError(
            f"{path}: shards of DeepSpeed ZeRO ({zero[0].name}), expected one state dict. Join "
            "them with the zero_to_fp32.py of that folder"
        )


def _may_be_weights(path: Path) -> bool:
    """By its name; the bases of a profile are no weights."""
    return path.suffix in SUFFIXES and path.stem.split(".")[-1] != "stagevar" and path.is_file()


def read_shards(index: Path) -> Content:
    """The state dict whose tensors an index finds in files beside it."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: no weight_map, expected tensor names and their shards")
    shards: dict[str, list[str]] = {}
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or Path(shard).name != shard or "\0" in shard or not shard:
            raise CheckpointError(f"{index}: shard {shard!r} is not a file name in this directory")
        shards.setdefault(shard, []).append(name)
    for shard in shards:
        if not index.with_name(shard).is_file():
            raise CheckpointError(
                f"{index.with_name(shard)}: shard is missing, {index.name} expects "
                f"{len(shards)} shards. Download it"
            )
    tensors: Tree = {}
    metadata: dict[str, Any] = {}
    for shard, names in shards.items():
        tree, more = read_file(index.with_name(shard))
        for name in names:
            if not isinstance(tree.get(name), Tensor):
                raise CheckpointError(
                    f"{index.with_name(shard)}: tensor {name!r} is missing, {index.name} "
                    f"expects it there. Download both again"
                )
            tensors[name] = tree[name]
        metadata |= more
    return tensors, metadata, (index, *(index.with_name(shard) for shard in shards))
