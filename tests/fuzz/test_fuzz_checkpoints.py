"""Damaged checkpoints of five families in all their formats: a finite picture, or an error of ours.

pytest tests/fuzz/test_fuzz_checkpoints.py            # -m slow: all 10³
"""

from __future__ import annotations

import json
import logging
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import invoke
from family_files import CONFIGS, FORMS, OPTIONS, STATES, inputs_of, write_family
from guarded import OURS, confined, peak_mb, typed
from mutations import EVIL, ODD, changed_tensors, damaged, mutated
from safetensors import safe_open
from safetensors.torch import save_file

from stagevar_runtime import load

COUNTS = [100, pytest.param(1_000, marks=pytest.mark.slow)]
MORE_MB = 400  # of memory, beyond what intact checkpoints take, for files of a megabyte
Chance = random.Random


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], tuple[Path, Path]]:
    """Folder and checkpoint of every family in every format, each of which draws."""
    made = {}
    for family in STATES:
        for form in FORMS:
            if family in CONFIGS and form in ("pth", "training", "safetensors"):
                continue
            folder = tmp_path_factory.mktemp(f"{family}-{form}")
            path, options = write_family(family, form, folder)
            assert draw(path, family, options) is not None
            made[family, form] = folder, path
    return made


def draw(path: Path, family: str, options: dict[str, Any] | None = None) -> Any:
    pipeline = load(path, options=OPTIONS.get(family, {}) if options is None else options)
    return pipeline.generate(**inputs_of(family)).images


def some_bytes(folder: Path, chance: Chance) -> None:
    """One file's bytes."""
    file = chance.choice(sorted(p for p in folder.rglob("*") if p.is_file()))
    file.write_bytes(damaged(file.read_bytes(), chance))


def some_json(folder: Path, chance: Chance) -> None:
    """A configuration, an index or a header's metadata."""
    files = sorted(folder.rglob("*.json"))
    if not files:
        _header(folder, chance)
        return
    file = chance.choice(files)
    content = json.loads(file.read_text())
    if "weight_map" in content and chance.random() < 0.5:
        names = ("../x", "/etc/passwd", ".", "", "x.safetensors", "a\0b", file.name, "x" * 300)
        key = chance.choice(list(content["weight_map"]))
        content["weight_map"][key] = chance.choice((*names, *ODD))
        content = json.loads(json.dumps(content))
    else:
        content = mutated(content, chance)
    file.write_text(json.dumps(content))


def _header(folder: Path, chance: Chance) -> None:
    for file in sorted(folder.rglob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}
        names = ("metric", "schedule", "guidance", "temperature", "top_p", "text_encoder", "size")
        said = {f"stagevar.{n}": str(chance.choice((EVIL, *ODD))) for n in chance.sample(names, 3)}
        save_file(tensors, file, said)


def special_files(folder: Path, chance: Chance) -> None:
    """A link, a folder or nothing in a file's place."""
    file = chance.choice(sorted(p for p in folder.rglob("*") if p.is_file()))
    file.unlink()
    how = chance.randrange(5)
    if how == 0:
        file.symlink_to(chance.choice(("/dev/zero", "/etc/passwd", file.name, "nowhere")))
    elif how == 1:
        file.mkdir()
    elif how == 2:
        file.touch()
    elif how == 3:
        file.write_text(
            chance.choice(("version https://git-lfs.github.com/spec/v1\n", "<html>", "{}"))
        )


DAMAGE: tuple[Callable[[Path, Chance], None], ...] = (some_bytes, some_json, special_files)


def case(
    number: int, intact: dict[tuple[str, str], tuple[Path, Path]], at: Path
) -> tuple[str, Path]:
    """A damaged copy at ``at``: its family, and what is loaded."""
    chance = random.Random(number)
    family, form = chance.choice(sorted(intact))
    folder, path = intact[family, form]
    if chance.random() < 0.5:
        state, tokenizer = STATES[family]()
        if chance.random() < 0.75:
            states = changed_tensors(dict(state), chance), tokenizer
        else:
            states = state, changed_tensors(dict(tokenizer), chance)
        at.mkdir()
        try:
            return family, write_family(family, form, at, states)[0]
        except Exception:  # what the format itself cannot hold
            shutil.rmtree(at)
    shutil.copytree(folder, at)
    chance.choice(DAMAGE)(at, chance)
    return family, at / path.relative_to(folder)


@pytest.mark.parametrize("count", COUNTS)
def test_checkpoints(intact: Any, owned: Path, tmp_path: Path, count: int) -> None:
    refused = 0
    before = peak_mb()
    for number in range(count):
        at = tmp_path / "case"
        family, path = case(number, intact, at)
        what = f"case {number}, {family} {path.name}"
        with confined(at):
            images = typed(what, lambda p=path, f=family: draw(p, f))
        refused += images is None
        assert images is None or bool(images.isfinite().all()), what
        shutil.rmtree(at)
    assert not owned.exists()
    assert count // 3 < refused < count, refused
    assert peak_mb() - before < MORE_MB


@pytest.mark.parametrize("family", sorted(STATES))
def test_the_command_line_says_it_in_one_line(family: str, intact: Any, tmp_path: Path) -> None:
    mine = {key: found for key, found in intact.items() if key[0] == family}
    for number in range(4):
        _, path = case(number, mine, tmp_path / str(number))
        result = invoke("inspect", path)
        assert result.exception is None or isinstance(result.exception, (*OURS, SystemExit)), result
