"""Files that lie beside a checkpoint, damaged: scorer, words, bases, measurements.

pytest tests/fuzz/test_fuzz_beside.py            # -m slow: more of each
"""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import invoke
from guarded import OURS, confined, typed
from mutations import ODD, changed_tensors, damaged, mutated
from safetensors import safe_open
from safetensors.torch import save_file
from small_measurements import measured

from stagevar_probe.metrics.classifier import (
    ClassifierConfig,
    SmallClassifier,
    load_scorer,
    save_scorer,
)
from stagevar_probe.metrics.quality import find_quality
from stagevar_runtime.options.low_rank import Bases, random_vectors
from stagevar_runtime.text.words import WordEncoder, load_words, save_words

COUNTS = [60, pytest.param(2_000, marks=pytest.mark.slow)]
HASH = "sha256:" + "b" * 64


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def scorer(path: Path) -> None:
    model = SmallClassifier(ClassifierConfig(classes=3, side=8, widths=(4, 4), features=6))
    save_scorer(path, model, torch.rand(20, 6), ["a", "b", "c"], 0.9)


def words(path: Path) -> None:
    save_words(path, WordEncoder(["a", "red", "cube"], 6, 16, depth=1, heads=2))


def bases(path: Path) -> None:
    places = [(2, 0, "qkv"), (3, 1, "proj")]
    found = Bases(
        {p: random_vectors(16, 4, 1) for p in places}, {p: torch.rand(1, 16) for p in places}
    )
    path.write_bytes(found.dump(HASH))


def score(path: Path) -> Any:
    load_scorer(path)
    quality = find_quality("agreement", path.with_name("m.pth"), 3, None, None)
    return quality.score(torch.rand(2, 3, 8, 8), (0, 1), torch.rand(2, 3, 8, 8))


def encode(path: Path) -> Any:
    return load_words(path).encode(["a red cube"])["text"]


def take(path: Path) -> Any:
    return torch.cat([v.flatten() for v in Bases.load(path, HASH).vectors.values()])


KINDS: dict[str, tuple[Callable[[Path], None], Callable[[Path], Any], str]] = {
    "scorer": (scorer, score, "m.scorer.safetensors"),
    "words": (words, encode, "m.words.safetensors"),
    "bases": (bases, take, "m.stagevar.safetensors"),
}


def reworked(path: Path, chance: random.Random) -> None:
    """Another tensor or another word of the header."""
    with safe_open(path, "pt") as file:
        metadata, tensors = dict(file.metadata()), {n: file.get_tensor(n) for n in file.keys()}
    if chance.random() < 0.5:
        name = chance.choice(sorted(metadata))
        try:
            odd = mutated(json.loads(metadata[name]), chance)
        except ValueError:
            odd = chance.choice(ODD)
        metadata[name] = odd if isinstance(odd, str) else json.dumps(odd)
        if chance.random() < 0.1:
            del metadata[name]
    else:
        tensors = changed_tensors(tensors, chance)
    try:
        save_file({n: t.contiguous().clone() for n, t in tensors.items()}, path, metadata)
    except Exception:  # what the format itself cannot hold
        path.write_bytes(b"{}")


@pytest.mark.parametrize("kind", sorted(KINDS))
@pytest.mark.parametrize("count", COUNTS)
def test_what_lies_beside_a_checkpoint(tmp_path: Path, kind: str, count: int) -> None:
    write, use, name = KINDS[kind]
    path = tmp_path / name
    write(path)
    content = path.read_bytes()
    assert use(path) is not None
    for number in range(count):
        chance = random.Random(number)
        path.write_bytes(content)
        if number % 2:
            path.write_bytes(damaged(content, chance))
        else:
            reworked(path, chance)
        with confined(tmp_path):
            found = typed(f"case {number}", lambda: use(path))
        assert found is None or bool(found.isfinite().all()), number


@pytest.mark.parametrize("count", [24, pytest.param(1_000, marks=pytest.mark.slow)])
def test_measurements(tmp_path: Path, count: int) -> None:
    """Solved, reported, merged and described: done, or refused in our own words."""
    whole = measured().dump()
    path, other = tmp_path / "m.stagevar.measurements.json", tmp_path / "other.measurements.json"
    other.write_text(json.dumps(whole | {"job": whole["job"] | {"seed": 1}}))
    path.write_text(json.dumps(whole))
    profile = tmp_path / "m.stagevar.yaml"
    assert invoke("solve", path, "-q", "-o", profile).exception is None
    for number in range(count):
        chance = random.Random(number)
        path.write_text(json.dumps(mutated(whole, chance)))
        if number % 4 == 3:
            path.write_bytes(damaged(json.dumps(whole).encode(), chance))
        solve = ("solve", path, "-q", "-o", tmp_path / "out.yaml")
        commands = [solve, ("inspect", path), ("merge", path, other, "-o", tmp_path / "j.json")]
        if number % 12 == 0:
            commands.append(("report", path, "--profile", profile, "-o", tmp_path / "r.html"))
        for command in commands:
            error = invoke(*command).exception
            known = error is None or isinstance(error, (*OURS, SystemExit))
            assert known, f"case {number}, {command[0]}: {error!r}"
