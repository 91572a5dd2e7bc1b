"""What a model was built from: enough to build it again elsewhere, or to write it out."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .checkpoint.reader import SUFFIXES, Checkpoint
from .checkpoint.weights import GivenAway
from .errors import FAULTS, CheckpointError, StagevarError, one_line
from .families import Family, families
from .model.inputs import shown
from .model.protocol import ScaleModel
from .profile.fingerprint import also_weights, weights_hash, whole
from .text.words import SUFFIX as WORDS

OPTIONS = "stagevar.options.json"  # beside a saved checkpoint: what its tensors cannot tell


@dataclass
class Source:
    """A family's checkpoint, its image tokenizer's and the options it was loaded with.

    Tensors are given to the model that is built first, and read from the files again for another,
    or for their hash: these must be as they were then. ``reopen`` does so.
    """

    family: type[Family]
    opened: Checkpoint
    codes: Checkpoint
    options: Mapping[str, Any] = field(default_factory=dict)
    reopen: Callable[[], tuple[Checkpoint, Checkpoint]] | None = None
    shapes: dict[str, Tensor] = field(init=False, repr=False)
    hashes: tuple[str, frozenset[str]] | None = field(default=None, init=False, repr=False)
    tokenizer: str = field(default="", init=False, repr=False)
    given: bool = field(default=False, init=False, repr=False)

    def __post_init__(self) -> None:
        self.shapes = {name: t.to("meta") for name, t in self.opened.tensors.items()}

    def build(self, device: torch.device, dtype: torch.dtype) -> ScaleModel:
        """The model.

        Raises:
            CheckpointError: the file has not what the family needs, names the checkpoint; or it
                was changed since it was opened.
        """
        opened, codes = self._whole()
        mine = replace(opened, tensors=GivenAway(opened.tensors), parts={})
        theirs = replace(codes, tensors=dict(codes.tensors), parts=_copied(codes.parts))
        if self.reopen is not None:
            self.given = True
            for part in (opened.tensors, codes.tensors, *opened.parts.values()):
                part.clear()  # the model's from here on: one copy in memory
            codes.parts.clear()
        try:
            return self.family.from_checkpoint(mine, theirs, device, dtype, self.options)
        except StagevarError as error:
            if isinstance(error, CheckpointError):
                raise CheckpointError(f"{self.opened.path}: {error}") from error
            raise
        except torch.OutOfMemoryError:
            raise
        except FAULTS as error:  # of files in which names or shapes are not what they seem
            raise CheckpointError(
                f"{self.opened.path}: not a {self.family.family} checkpoint that can be built "
                f"({one_line(error)}). Download or export it again"
            ) from error

    def _whole(self) -> tuple[Checkpoint, Checkpoint]:
        if not self.given or self.reopen is None:
            return self.opened, self.codes
        for checkpoint in (self.opened, self.codes):
            checkpoint.check_unchanged()
        return self.reopen()

    def hashed(self) -> tuple[str, frozenset[str]]:
        """Hash of the weights, and what earlier versions called it; read once."""
        if self.hashes is None:
            opened, codes = self._whole()
            tensors, unused = opened.tensors, self.family.unused_tensors
            self.tokenizer = weights_hash(codes.tensors)
            self.hashes = weights_hash(whole(tensors, unused)), also_weights(tensors, unused)
        return self.hashes

    def tokenizer_hash(self) -> str:
        """Hash of the image tokenizer."""
        self.hashed()
        return self.tokenizer

    def save(self, folder: Path) -> Path:
        """Copy the files into an empty ``folder``, under names that :func:`load` finds again.

        Returns the checkpoint's path there: its file, or the folder where it was one.
        """
        main = self.opened.path
        for file in self.opened.files:
            shutil.copyfile(file, folder / file.name)
        inside = main if main.is_dir() else main.parent
        config = inside / "config.json"
        if self.opened.config is not None and config.is_file():
            shutil.copyfile(config, folder / config.name)
        if main.is_file() and (words := main.with_suffix(WORDS)).is_file():
            shutil.copyfile(words, folder / words.name)
        if self.codes.files != self.opened.files:
            self._save_tokenizer(folder)
        options = dict(self.options)
        if main.is_dir() and "512x512" in main.name:  # Infinity's folders say their size so
            options.setdefault("size", "0.25M")
        if options:
            (folder / OPTIONS).write_text(json.dumps(options, indent=2) + "\n", encoding="utf-8")
        return folder if main.is_dir() else folder / main.name

    def _save_tokenizer(self, folder: Path) -> None:
        path, patterns = self.codes.path, _here(self.family.tokenizer_patterns)
        name = path.name
        if not any(fnmatch(name, pattern) for pattern in patterns):
            fitting = [p for p in patterns if p.endswith(path.suffix)] or patterns
            name = re.sub(r"\[(.)[^\]]*\]", r"\1", fitting[0]).replace("*", "tokenizer")
        if path.is_dir():
            (folder / name).mkdir()
            for file in (*self.codes.files, path / "config.json"):
                if file.is_file():
                    shutil.copyfile(file, folder / name / file.name)
        else:
            shutil.copyfile(path, folder / name)


def _copied(parts: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    return {key: dict(part) for key, part in parts.items()}


def _here(patterns: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(pattern.removeprefix("../") for pattern in patterns))


def main_checkpoints(names: Sequence[str]) -> list[str]:
    """Of the files of a folder, those that may be a model's: no tokenizer, words, bases, shards.

    ``names`` are relative with ``/``; a folder of shards, or of one file with a name that every
    such folder has, is given as the folder. Sorted.
    """
    tokenizers = _here([p for family in families().values() for p in family.tokenizer_patterns])
    found = set()
    for name in names:
        *folders, base = name.split("/")
        parts = (*folders, base)
        if any(fnmatch(part, pattern) for part in parts for pattern in tokenizers):
            continue
        if base.endswith(".index.json"):
            found.add("/".join(folders))
        elif base.endswith(SUFFIXES) and not _companion(base):
            sharded = re.search(r"-\d+-of-\d+\.", base)
            found.add("/".join(folders) if sharded or _plain(base) else name)
    return sorted(found)


def _companion(name: str) -> bool:
    """Files that lie beside a checkpoint and are none."""
    return name.rpartition(".")[0].split(".")[-1] in ("stagevar", "words", "scorer")


def _plain(name: str) -> bool:
    return name.startswith(("model.", "pytorch_model.", "diffusion_pytorch_model.", "ema_model."))


def saved_options(checkpoint: Path) -> dict[str, Any]:
    """The options that :meth:`Source.save` wrote beside a checkpoint; none where it did not."""
    path = (checkpoint if checkpoint.is_dir() else checkpoint.parent) / OPTIONS
    if not path.is_file():
        return {}
    try:
        options = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not readable as JSON ({error})") from error
    if not isinstance(options, dict):
        raise CheckpointError(f"{path}: holds a {type(options).__name__}, expected names, values")
    return options


KINDS = ("cpu", "cuda", "mps", "xpu")
DTYPES = {
    **dict.fromkeys(("float32", "fp32", "float", "f32"), torch.float32),
    **dict.fromkeys(("float16", "fp16", "half", "f16"), torch.float16),
    **dict.fromkeys(("bfloat16", "bf16"), torch.bfloat16),
}


def checked_device(device: str | int | torch.device | None) -> torch.device:
    """A device that is there; None is CUDA where there is one, else the CPU.

    ``torch.device("meta")``, never as text, gives a model that can be counted and not run.

    Raises:
        StagevarError: no such device.
    """
    if device == torch.device("meta"):
        return torch.device("meta")
    if isinstance(device, bool) or not isinstance(device, (str, int, torch.device, type(None))):
        raise StagevarError(f"got device {shown(device)}, expected cpu, cuda or cuda:NUMBER")
    try:
        chosen = "cuda" if torch.cuda.is_available() else "cpu"
        found = torch.device(f"cuda:{device}" if isinstance(device, int) else device or chosen)
    except RuntimeError as error:
        raise StagevarError(f"got device {device!r}, expected cpu, cuda or cuda:NUMBER") from error
    if found.type not in KINDS:
        raise StagevarError(f"got device {str(found)!r}, expected one of {', '.join(KINDS)}")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise StagevarError(
            f"got device {device!r}, but PyTorch sees {torch.cuda.device_count()} CUDA devices"
        )
    there = {"mps": torch.backends.mps.is_available(), "xpu": torch.xpu.is_available()}
    if not there.get(found.type, True):
        raise StagevarError(f"got device {str(found)!r}, which this PyTorch does not have. Use cpu")
    return found


def checked_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """float32, float16 or bfloat16, as PyTorch's or as text; None is by device.

    Raises:
        StagevarError: another.
    """
    if dtype is None:
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    said = dtype.lower().removeprefix("torch.") if isinstance(dtype, str) else dtype
    found = DTYPES.get(said) if isinstance(said, str) else said
    if found is None or found not in DTYPES.values():
        raise StagevarError(f"got dtype {shown(dtype)}, expected float32, bfloat16 or float16")
    return found


def device_notes(device: torch.device) -> list[str]:
    """What a summary says of devices that we do not measure on."""
    if device.type not in ("mps", "xpu"):
        return []
    return [
        f"{device.type}: the exact path and plans run as PyTorch runs them, nothing is "
        "compiled or recorded, and no profile is measured there"
    ]
