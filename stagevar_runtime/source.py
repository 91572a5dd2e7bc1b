"""What a model was built from: enough to build it again elsewhere, or to write it out."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch

from .checkpoint.reader import SUFFIXES, Checkpoint
from .errors import CheckpointError, StagevarError
from .families import Family, families
from .model.protocol import ScaleModel
from .text.words import SUFFIX as WORDS

OPTIONS = "stagevar.options.json"  # beside a saved checkpoint: what its tensors cannot tell


@dataclass(frozen=True)
class Source:
    """A family's checkpoint, its image tokenizer's and the options it was loaded with."""

    family: type[Family]
    opened: Checkpoint
    codes: Checkpoint
    options: Mapping[str, Any] = field(default_factory=dict)

    def build(self, device: torch.device, dtype: torch.dtype) -> ScaleModel:
        """The model. Raises CheckpointError naming the checkpoint."""
        try:
            return self.family.from_checkpoint(self.opened, self.codes, device, dtype, self.options)
        except CheckpointError as error:
            raise CheckpointError(f"{self.opened.path}: {error}") from error

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


def checked_device(device: str | torch.device | None) -> torch.device:
    """A device that is there; None is CUDA where there is one, else the CPU.

    Raises:
        StagevarError: no such device.
    """
    try:
        found = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise StagevarError(f"got device {device!r}, expected cpu, cuda or cuda:NUMBER") from error
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise StagevarError(
            f"got device {device!r}, but PyTorch sees {torch.cuda.device_count()} CUDA devices"
        )
    return found
