"""Files that are no checkpoint, told in one line by every command.

pytest tests/probe/commands/test_bad_checkpoints.py
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import invoke, var_states, write_tiny
from invoked import done, refused


class Exploit:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.target), "w")


def bad_checkpoint(kind: str, good: Path) -> Path:
    path = good.with_name("var_bad.pth")
    transformer, _ = var_states()
    if kind == "truncated":
        path.write_bytes(good.read_bytes()[:-5000])
    elif kind == "text":
        path.write_text("these are words")
    elif kind == "NaN":
        transformer["blocks.1.attn.proj.weight"][3, 4] = torch.nan
        torch.save(transformer, path)
    elif kind == "pickle":
        path.write_bytes(pickle.dumps({"w": Exploit(good.with_name("pwned"))}, protocol=2))
    elif kind == "incomplete":
        del transformer["blocks.1.attn.proj.weight"]
        torch.save(transformer, path)
    elif kind == "shape":
        transformer["blocks.1.attn.proj.weight"] = torch.zeros(3, 3)
        torch.save(transformer, path)
    elif kind == "unknown":
        torch.save({"layer.weight": torch.zeros(2, 2)}, path)
    elif kind == "directory":
        path = good.with_name("empty")
        path.mkdir()
    elif kind == "tokenizer":
        path = good.with_name("vae_tiny.pth")
    return path


OUTPUT = {"calibrate": ".yaml", "generate": ".png"}


@pytest.mark.parametrize("command", ["generate", "calibrate", "inspect"])
@pytest.mark.parametrize(
    ("kind", "code", "expected"),
    [
        ("truncated", 1, "truncated"),
        ("text", 1, "not a checkpoint (starts with b'these are wo')"),
        ("NaN", 1, "tensor 'blocks.1.attn.proj.weight' holds NaN"),
        ("pickle", 1, "could run code; refused"),
        ("incomplete", 1, "blocks.1.attn.proj.weight"),
        ("shape", 1, "blocks.1.attn.proj.weight"),
        ("unknown", 3, "no known family has tensors like layer.weight"),
        ("directory", 1, "a directory without a checkpoint"),
        ("missing", 1, "no such file"),
        ("tokenizer", 3, "This is an image tokenizer"),
    ],
)
def test_bad_checkpoints(
    tiny_files: Path, command: str, kind: str, code: int, expected: str
) -> None:
    path = bad_checkpoint(kind, tiny_files)
    before = sorted(tiny_files.parent.iterdir())
    options = () if command == "inspect" else ("-o", tiny_files.with_name(f"out{OUTPUT[command]}"))
    said = refused(invoke(command, path, *options), code)
    assert expected in said and path.name in said
    assert sorted(tiny_files.parent.iterdir()) == before  # nothing ran, nothing was left behind


def test_wrong_and_missing_tokenizer(tiny_files: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    write_tiny(other, vocabulary=64)
    wrong = invoke("generate", tiny_files, "--tokenizer", other / "vae_tiny.pth")
    assert "pass its own tokenizer" in refused(wrong)
    itself = invoke("generate", tiny_files, "--tokenizer", tiny_files)
    assert "tokenizer" in refused(itself)
    moved = tiny_files.with_name("vae_tiny.pth").rename(other / "moved.pth")
    assert "--tokenizer FILE" in refused(invoke("inspect", tiny_files))
    assert "depth 2" in done(invoke("inspect", tiny_files, "--tokenizer", moved)).stdout
