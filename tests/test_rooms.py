"""Rooms import downwards only, files import in no circle, and nothing is too long to read.

pytest tests/test_rooms.py
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Set
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from statistics import median

import pytest

ROOT = Path(__file__).resolve().parents[1]
RUNTIME = (  # bottom up; rooms of one line do not import each other
    "errors files tables",
    "kernels carried",
    "checkpoint",
    "model",
    "text",
    "options",
    "families profile",
    "loop source",
    "accelerate summary",
    "hub",
    "planned diffusers_style",
    "pipeline",
    "loading",
    "__init__",
)
PROBE = (
    "intervals files tables progress",
    "datasets",
    "metrics",
    "observe",
    "measure",
    "solve",
    "validate",
    "compare evaluate bench",
    "report",
    "calibrate studio",
    "commands",
    "cli",
    "__init__",
    "__main__",
)
ORDERS = {"stagevar_runtime": RUNTIME, "stagevar_probe": PROBE}


def modules(package: str) -> dict[str, Path]:
    """Files by dotted name; a package's ``__init__`` by the package's."""
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path, known: Set[str]) -> Iterator[str]:
    """Modules of ours that a file imports, anywhere in it, but for those that run it."""
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            whole = ".".join([*base, *(node.module.split(".") if node.module else [])])
            names = [f"{whole}.{alias.name}" for alias in node.names]
            names = [inner if inner in known else whole for inner in names]
        else:
            continue
        yield from (found for found in names if found in known and found != name)


def room(name: str) -> str:
    return [*name.split("."), "__init__"][1]


FILES = {package: modules(package) for package in ORDERS}
PATHS = {name: path for files in FILES.values() for name, path in files.items()}
LOADS_ITSELF = {  # a class method that loads what it is a method of
    ("stagevar_runtime.diffusers_style", "stagevar_runtime.loading"),
    ("stagevar_runtime.diffusers_style", "stagevar_runtime.pipeline"),
}
ARROWS = {
    name: {o for o in imports(name, path, PATHS.keys()) if (name, o) not in LOADS_ITSELF}
    for name, path in PATHS.items()
}


@pytest.mark.parametrize("package", ORDERS)
def test_rooms_import_downwards(package: str) -> None:
    level = {name: i for i, line in enumerate(ORDERS[package]) for name in line.split()}
    assert {room(name) for name in FILES[package]} <= level.keys()
    wrong = [
        f"{name} -> {other}"
        for name in FILES[package]
        for other in ARROWS[name]
        if other.startswith(f"{package}.") and room(name) != room(other)
        if level[room(other)] >= level[room(name)]
    ]
    assert wrong == []


def test_no_file_is_in_a_circle() -> None:
    """The ``__init__`` of a room only hands on what is in it: its own files may not need it."""
    try:
        TopologicalSorter(ARROWS).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_the_runtime_knows_no_probe() -> None:
    wrong = [name for name in FILES["stagevar_runtime"] if any("probe" in o for o in ARROWS[name])]
    assert wrong == []


LONG = 400  # lines


def test_files_are_short() -> None:
    lines = {name: len(path.read_text().splitlines()) for name, path in PATHS.items()}
    long = [name for name, n in lines.items() if n > LONG]
    assert long == [] and median(n for n in lines.values() if n) <= 180


FEW = (
    "stagevar_runtime/loop",
    "stagevar_runtime/options",
    "stagevar_probe/solve",
    "stagevar_probe/calibrate",
)


def parameters(node: ast.FunctionDef) -> list[str]:
    given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    return [arg.arg for arg in given if arg.arg not in ("self", "cls")]


@pytest.mark.parametrize("folder", FEW)
def test_functions_take_six_parameters_at_most(folder: str) -> None:
    many = {
        f"{path.name}: {node.name}"
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and len(parameters(node)) > 6
    }
    assert many == set()


def test_the_loop_fits_a_screen() -> None:
    """One scale in 30 lines, with the signature and what it says."""
    tree = ast.parse(PATHS["stagevar_runtime.loop.engine"].read_text())
    (advance,) = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "advance"]
    assert advance.end_lineno - advance.lineno < 30
