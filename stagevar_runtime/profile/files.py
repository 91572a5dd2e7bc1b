"""The profile as a file: its YAML, where it is looked for, and whether it fits a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ..errors import ProfileError
from ..files import write_whole
from .schema import PlanStep, Profile
from .strict_yaml import dump_yaml, read_yaml

SCHEMA_VERSION = 2
UNCERTAIN = 0.01  # how far beyond its budget the interval of a version 1 may end and be a proof


def _from_1(data: dict[str, Any]) -> dict[str, Any]:
    """Version 1 called a target met by the mean alone: where the interval says no more than that,
    it is unproven from version 2 on. A speed that was asked for was measured, and stays."""
    target = data.get("target")
    if not isinstance(target, dict) or target.get("satisfied") is not True:
        return data
    if target.get("min_speedup") is not None or target.get("max_ms") is not None:
        return data
    try:
        plan = data["plans"][data.get("default_plan", "balanced")]
        high = plan["expected"]["loss_ci95"][1]
        shown = high <= target["max_loss"] + min(UNCERTAIN, target["max_loss"])
    except (KeyError, TypeError, IndexError):
        shown = False
    return data if shown else {**data, "target": {**target, "satisfied": "unproven"}}


MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _from_1}
"""From each older schema version, how the content of a file becomes that of the next version."""

MAX_BYTES = 16 << 20
FILE_NAME = "stagevar.yaml"


def load_profile(path: str | Path) -> Profile:
    """Read a profile.

    Raises ProfileError, in one line naming the file and the field, for anything but a valid one.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ProfileError(
            f"{path}: cannot be read ({error.strerror}), expected a profile"
        ) from error
    if len(content) > MAX_BYTES:
        raise ProfileError(f"{path}: larger than {MAX_BYTES >> 20} MB, expected a profile")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ProfileError(f"{path}: not UTF-8 text, expected a profile in YAML") from error
    return parse_profile(text, path)


def parse_profile(text: str, source: str | Path = "<profile>") -> Profile:
    """A profile from YAML text; ``source`` is what errors call it. Raises ProfileError."""
    data = _migrated(read_yaml(text, source), source)
    try:
        return Profile.model_validate(_tuples(data, source), strict=True)
    except ValidationError as error:
        raise ProfileError(f"{source}: {_explain(error, data)}") from error


def plan_steps(given: Any) -> tuple[PlanStep, ...]:
    """Plan steps from steps or dicts of their fields. Raises ProfileError naming the step."""
    if isinstance(given, (PlanStep, Mapping)) or not isinstance(given, Iterable):
        raise ProfileError(f"got the plan {given!r:.60}, expected a name or a list of steps")
    steps = []
    for k, step in enumerate(given):
        try:
            if not isinstance(step, PlanStep):
                step = PlanStep.model_validate(_tuples(step, f"step {k}"), strict=True)
        except ValidationError as error:
            raise ProfileError(f"step {k}: {_explain(error, step)}") from error
        steps.append(step)
    return tuple(steps)


def dump_profile(profile: Profile) -> str:
    """Canonical YAML: keys as in the schema, free keys sorted, 6 significant digits, steps a line.

    ``parse_profile(dump_profile(p)) == p`` but for that rounding.
    """
    return dump_yaml(profile)


def write_profile(profile: Profile, path: str | Path) -> None:
    """Write the canonical YAML, whole or not at all. Raises ProfileError when it cannot."""
    try:
        write_whole(Path(path), dump_profile(profile).encode())
    except OSError as error:
        raise ProfileError(f"{path}: cannot be written ({error.strerror})") from error


def json_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a profile, for editors and other programs."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Profile.model_json_schema(),
    }


def _migrated(data: Any, source: str | Path) -> Any:
    if not isinstance(data, dict):
        raise ProfileError(f"{source}: holds a {type(data).__name__}, expected a profile")
    if data.get("kind", "stagevar-profile") != "stagevar-profile":
        raise ProfileError(f"{source}: kind is {data['kind']!r}, expected 'stagevar-profile'")
    version = data.get("schema_version")
    if type(version) is not int:
        raise ProfileError(
            f"{source}: schema_version is {version!r}, expected a number up to {SCHEMA_VERSION}"
        )
    if version > SCHEMA_VERSION:
        raise ProfileError(
            f"{source}: written by a newer stagevar (schema_version {version}, this one reads up "
            f"to {SCHEMA_VERSION}), upgrade stagevar to use it"
        )
    while version < SCHEMA_VERSION:
        if version not in MIGRATIONS:
            raise ProfileError(
                f"{source}: schema_version {version} is not supported, expected {SCHEMA_VERSION}"
            )
        data = MIGRATIONS[version](data)
        version += 1
        data["schema_version"] = version
    return data


def _tuples(data: Any, source: str | Path) -> Any:
    """Lists as tuples, which is what the schema calls them when it is strict about types."""
    if isinstance(data, list):
        return tuple(_tuples(item, source) for item in data)
    if not isinstance(data, dict):
        return data
    if "guidance" in data and data["guidance"] is None:  # would silently mean "unchanged"
        raise ProfileError(
            f"{source}: guidance is YAML's null, expected 'null' in quotes for the null branch, "
            f"or the key left out"
        )
    return {key: _tuples(value, source) for key, value in data.items()}


def _explain(error: ValidationError, data: Any) -> str:
    """One line for the first thing wrong: where, what was got, what was expected."""
    found = [(_place(e["loc"], data, e["type"] == "missing"), e) for e in error.errors()]
    where, first = found[0]
    for deeper, other in found[1:]:  # of the branches of a union, the one that got furthest
        if deeper.startswith(where) and len(deeper) > len(where):
            where, first = deeper, other
            break
    others = len({place for place, _ in found if not where.startswith(place)})
    more = f" (and {others} more)" if others else ""
    expected = first["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    if first["type"] == "missing":
        return f"{where} is missing, expected it{more}"
    if first["type"] == "value_error":
        return f"{where}: {expected}{more}" if where else f"{expected}{more}"
    got = repr(list(first["input"]) if type(first["input"]) is tuple else first["input"])
    got = got if len(got) <= 60 else got[:57] + "..."
    return f"{where} is {got}, expected {expected[:1].lower()}{expected[1:]}{more}"


def _place(loc: tuple[int | str, ...], data: Any, missing: bool) -> str:
    """``plans.balanced.steps[1].scale``, without pydantic's names of union branches."""
    place = ""
    for i, part in enumerate(loc):
        if isinstance(part, int) and isinstance(data, list) and part < len(data):
            place, data = f"{place}[{part}]", data[part]
        elif isinstance(data, dict) and (part in data or (missing and i == len(loc) - 1)):
            text = str(part) if str(part).isprintable() else ascii(part)
            place, data = f"{place}.{text}", data.get(part)
        elif missing and isinstance(part, int) and isinstance(data, list):
            place = f"{place}[{part}]"
    return place.lstrip(".")
