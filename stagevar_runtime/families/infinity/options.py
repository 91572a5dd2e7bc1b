"""What the tensors of an Infinity checkpoint cannot tell, with the published defaults."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import CheckpointError, StagevarError
from ...model.inputs import plain, sequence
from ..parts.rope import INFINITY_MODES
from .schedules import Schedule, parse_schedule, published_schedule, ratio_of

LONGEST = 1024  # tokens of a side at most
SAMPLING = ("guidance", "temperature", "top_p")  # what a file may bring

PUBLISHED_NAMES = {  # of the publisher's scripts
    "pn": "size",
    "h_div_w_template": "aspect_ratio",
    "rope2d_normalized_by_hw": "rope",
    "add_lvl_embeding_only_first_block": "level",
    "cfg_insertion_layer": "guidance_layer",
}


NAMES = ("size", "aspect_ratio", "rope", "level", "guidance_layer", "schedule")


@dataclass(frozen=True)
class InfinityOptions:
    """What tensors cannot tell, with the published scripts' settings as defaults.

    ``size`` and ``aspect_ratio`` (height over width) are the default schedule. ``rope``: how
    positions of different scales relate, 2, 1 or 0. ``level``: the level embedding is added
    ``once`` or before every ``chunk`` of blocks. ``guidance_layer``: 0 guides the logits, -k the
    output of the k-th last block; or several of these. ``schedule``: scales of a model trained on
    others than the published ones, such as ``1x1 2x2 4x4``; it then has no other size. The
    publisher's own names and values are
    taken too (:data:`PUBLISHED_NAMES`; ``level`` is 1 for once, 0 for chunk there).
    ``native_size`` is the size where none is asked for.
    """

    size: str = "1M"
    aspect_ratio: float = 1.0
    rope: int = 2
    level: str = "once"
    guidance_layer: tuple[int, ...] = (0,)
    schedule: Schedule | None = None
    native_size: str = "1M"

    @classmethod
    def parse(cls, given: Mapping[str, Any], depth: int, default_size: str) -> InfinityOptions:
        """Check options as :func:`stagevar_runtime.load` takes them.

        Raises:
            StagevarError: an unknown name or value.
        """
        unknown = given.keys() - set(NAMES) - PUBLISHED_NAMES.keys()
        if unknown:
            names = ", ".join(NAMES)
            raise StagevarError(f"infinity has no option {sorted(unknown)}, expected {names}")
        both = [new for old, new in PUBLISHED_NAMES.items() if old in given and new in given]
        if both:
            raise StagevarError(f"got the option {both[0]!r} under two names, expected one of them")
        given = {PUBLISHED_NAMES.get(name, name): value for name, value in given.items()}
        level = plain(given.get("level"))
        if level in (0, 1, "0", "1"):
            given["level"] = ("chunk", "once")[int(level)]
        layers = _integers(given.get("guidance_layer", 0))
        options = cls(
            size=given.get("size", default_size),
            aspect_ratio=ratio_of(given.get("aspect_ratio", 1.0)),
            rope=_integer(given.get("rope", 2)),
            level=given.get("level", "once"),
            guidance_layer=layers,
            schedule=_own_schedule(given["schedule"]) if given.get("schedule") else None,
            native_size=default_size,
        )
        published_schedule(options.aspect_ratio, options.size)
        if type(options.rope) is not int or options.rope not in INFINITY_MODES:
            raise StagevarError(f"rope is {options.rope!r}, expected one of 0, 1, 2")
        if not isinstance(options.level, str) or options.level not in ("once", "chunk"):
            raise StagevarError(f"level is {options.level!r}, expected 'once' or 'chunk'")
        if not layers or not all(type(i) is int and -depth < i <= 0 for i in layers):
            raise StagevarError(
                f"guidance_layer is {given.get('guidance_layer')!r}, expected 0 (logits) or "
                f"-1 to {1 - depth} (the output of a block, counted from the end)"
            )
        return options


def sampling_of(settings: Mapping[str, str]) -> dict[str, Any]:
    """The defaults of sampling that a file's own settings give, as numbers.

    Raises:
        CheckpointError: one of them is no number.
    """
    found = {name: settings[name] for name in SAMPLING if name in settings}
    try:
        return {name: float(said) for name, said in found.items()}
    except ValueError as error:
        raise CheckpointError(f"the file's settings are {found}, expected numbers") from error


def _integer(said: Any) -> Any:
    """A number, also as text; anything else as it is, for an error to show."""
    said = plain(said)
    if isinstance(said, float) and said.is_integer():
        return int(said)
    return int(said) if isinstance(said, str) and re.fullmatch(r"\s*-?\d{1,9}\s*", said) else said


def _integers(said: Any) -> tuple[Any, ...]:
    """One number or several: a list, or text with commas, spaces or underscores."""
    if isinstance(said, str):
        said = [part for part in re.split(r"[\s,_\[\]()]+", said) if part]
    items = sequence(said)
    return tuple(map(_integer, [said] if items is None else items))


def _own_schedule(text: Any) -> Schedule:
    try:
        schedule = parse_schedule(text)
    except (AttributeError, ValueError):
        schedule = ()
    sides = [side for pair in schedule for side in pair]
    if not schedule or schedule[0] != (1, 1) or min(sides) < 1 or max(sides) > LONGEST:
        raise StagevarError(f"schedule is {text!r}, expected HxW of every scale, from 1x1")
    return schedule
