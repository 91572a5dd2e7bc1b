"""One file's content as nested dicts of tensors, in memory, without running code from it.

A format is decided by the first bytes, never by the suffix. Everything is read when it is opened:
what is done to the file afterwards cannot reach the tensors.
"""

from __future__ import annotations

import json
import math
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError, one_line
from ..files import fault_of_file, read_plain
from .unpickled import refusal

HEADER_LIMIT = 100_000_000  # bytes of a safetensors header, as its own library allows
PICKLE_LIMIT = 64 << 20  # bytes of a state dict's own pickle: names and shapes
JSON_LIMIT = 64 << 20
CRC_LIMIT = 4 << 30  # larger files are not summed again: that takes longer than reading them
_PIECE = 1 << 22

Tree = dict[str, Any]


def read_file(path: Path) -> tuple[Tree, dict[str, Any]]:
    """The nested dict a file holds, and the text metadata of its header.

    Raises:
        CheckpointError: it is no checkpoint, or damaged.
    """
    kind = _format(path)
    if kind == "safetensors":
        return _read_safetensors(path)
    if kind == "zip":
        _check_zip(path)
    content = _read_torch(path)
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{path}: holds a {type(content).__name__}, expected tensors by name (a state dict)"
        )
    return dict(content), {}


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; NaN and infinity are no JSON.

    Raises:
        CheckpointError: there is none.
    """

    def constant(name: str) -> Any:
        raise ValueError(f"{name} is no JSON")

    try:
        value = json.loads(read_plain(path, JSON_LIMIT).decode("utf-8"), parse_constant=constant)
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not readable as JSON ({one_line(error)})") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds a {type(value).__name__}, expected a JSON object")
    return value


def _format(path: Path) -> str:
    """``zip``, ``pickle`` or ``safetensors``, from the first bytes."""
    fault = fault_of_file(path)
    if fault is not None:
        missing = "No such file" in fault
        what = "no such file" if missing else fault
        raise CheckpointError(f"{path}: {what}, expected a checkpoint")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be opened ({one_line(error)})") from error
    if not head:
        raise CheckpointError(f"{path}: the file is empty, expected a checkpoint. Download it")
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    length = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and length < HEADER_LIMIT:
        if 8 + length > size:
            raise CheckpointError(
                f"{path}: truncated, its header takes {8 + length} bytes and the file has {size}. "
                f"Download it again"
            )
        return "safetensors"
    if len(head) > 1 and head[0] == 0x80 and head[1] <= 5:
        return "pickle"
    what = f"starts with {head[:12]!r}"
    if head.startswith(b"version https://git-lfs"):
        what = "is a Git LFS pointer, run `git lfs pull`"
    elif head.lstrip()[:5].lower() in (b"<!doc", b"<html"):
        what = "is a web page, download the file itself"
    elif head.startswith(b"\x00\x05\x16\x07"):
        what = "is macOS's companion of a file, name the one without ._"
    elif head.startswith(b"GGUF"):
        what = "is a GGUF file, export the original weights"
    raise CheckpointError(
        f"{path}: not a checkpoint ({what}), expected a PyTorch or safetensors file"
    )


def _read_safetensors(path: Path) -> tuple[Tree, dict[str, Any]]:
    """Every tensor in memory of its own: the library would leave them in the file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:  # checks the header
            metadata = dict(file.metadata() or {})
            names = set(file.keys())
        with path.open("rb") as raw:
            length = int.from_bytes(raw.read(8), "little")
            header = json.loads(raw.read(length))
            tensors = {
                name: _read_tensor(raw, 8 + length, entry)
                for name, entry in sorted(header.items(), key=_offset)
                if name in names
            }
    except (SafetensorError, OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}: truncated or damaged safetensors file ({one_line(error)}). Download it again"
        ) from error
    return tensors, metadata


def _offset(entry: tuple[str, Any]) -> int:
    offsets = entry[1].get("data_offsets", [0])
    return int(offsets[0])


def _read_tensor(raw: Any, start: int, entry: dict[str, Any]) -> Tensor:
    """One tensor of a checked header's entry."""
    begin, end = entry["data_offsets"]
    data = torch.empty(end - begin, dtype=torch.uint8)
    raw.seek(start + begin)
    if end > begin and raw.readinto(data.numpy()) != end - begin:
        raise ValueError("the file ends before its last tensor")
    shape, dtype = entry["shape"], _DTYPES[entry["dtype"]]
    if math.prod(shape) * dtype.itemsize != end - begin:
        raise ValueError(f"{entry['dtype']} of shape {shape} does not take {end - begin} bytes")
    return data.view(dtype).view(shape)


_DTYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8},
    **{"U8": torch.uint8, "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64},
    **{"BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2},
}


def _check_zip(path: Path) -> None:
    """Records as PyTorch writes them: stored, no larger than the file, with the sums they had.

    Raises:
        CheckpointError: one is compressed, larger, or has changed.
    """
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            for record in archive.infolist():
                name = record.filename
                if record.compress_type != zipfile.ZIP_STORED:
                    raise ValueError(f"record {name!r} is compressed, PyTorch stores records")
                if record.file_size > size:
                    raise ValueError(f"record {name!r} says it is larger than the file")
                if name.endswith(".pkl") and record.file_size > PICKLE_LIMIT:
                    raise ValueError(f"record {name!r} takes {record.file_size >> 20} MB")
                if size <= CRC_LIMIT and record.CRC != 0:  # 0: written without sums
                    _check_sum(archive, record)
    except (zipfile.BadZipFile, OSError, ValueError, RuntimeError, zlib.error) as error:
        raise CheckpointError(
            f"{path}: truncated or damaged PyTorch file ({one_line(error)}), expected a state "
            f"dict saved with torch.save. Download it again"
        ) from error
    except (NotImplementedError, KeyError, EOFError, IndexError) as error:
        raise CheckpointError(f"{path}: damaged PyTorch file ({one_line(error)})") from error


def _check_sum(archive: zipfile.ZipFile, record: zipfile.ZipInfo) -> None:
    with archive.open(record) as content:  # raises BadZipFile at the end where it differs
        while content.read(_PIECE):
            pass


def _read_torch(path: Path) -> Any:
    try:
        with warnings.catch_warnings(), path.open("rb") as file:
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen types for bytes it cannot read
        refused = refusal(error)
        if refused is not None:
            raise CheckpointError(f"{path}: {refused}") from error
        raise CheckpointError(
            f"{path}: truncated or damaged PyTorch file ({one_line(error)}), expected a state "
            f"dict saved with torch.save. Download it again"
        ) from error
