"""The published schedules of Infinity: 15 aspect ratios, each at four sizes.

A schedule is ``(height, width)`` in tokens of 16 x 16 pixels at every scale; the four sizes are
its first 7, 10, 12 and 13 entries. Ratios are height over width.

Source: Infinity ``utils/dynamic_resolution.py``.
"""

from __future__ import annotations

import math

from ...errors import StagevarError
from ...model.inputs import integer, plain, shown

Schedule = tuple[tuple[int, int], ...]

PIXELS = 16  # of a token, along one side
COUNTS = {"0.06M": 7, "0.25M": 10, "0.60M": 12, "1M": 13}
NEAR = 1.15  # a ratio or a side may be off by this factor and still mean its neighbour

_TALL: dict[float, str] = {
    1.0: "1x1 2x2 4x4 6x6 8x8 12x12 16x16 20x20 24x24 32x32 40x40 48x48 64x64",
    1.25: "1x1 2x2 3x3 5x4 10x8 15x12 20x16 25x20 30x24 35x28 45x36 55x44 70x56",
    1.333: "1x1 2x2 4x3 8x6 12x9 16x12 20x15 24x18 28x21 36x27 48x36 60x45 72x54",
    1.5: "1x1 2x2 3x2 6x4 9x6 15x10 21x14 27x18 33x22 39x26 48x32 63x42 78x52",
    1.75: "1x1 2x2 3x3 7x4 11x6 14x8 21x12 28x16 35x20 42x24 56x32 70x40 84x48",
    2.0: "1x1 2x2 4x2 6x3 10x5 16x8 22x11 30x15 38x19 46x23 60x30 74x37 90x45",
    2.5: "1x1 2x2 5x2 10x4 15x6 20x8 25x10 30x12 40x16 50x20 65x26 80x32 100x40",
    3.0: "1x1 2x2 6x2 9x3 15x5 21x7 27x9 36x12 45x15 54x18 72x24 90x30 111x37",
}


def parse_schedule(text: str) -> Schedule:
    """``1x1 2x2 3x3``, height first.

    Raises:
        ValueError: it reads otherwise.
    """
    return tuple((int(h), int(w)) for h, w in (size.split("x") for size in text.split()))


def _both_ways() -> dict[float, Schedule]:
    table = {}
    for ratio, text in _TALL.items():
        table[ratio] = parse_schedule(text)
        if ratio != 1.0:  # the published key of a wide image is cut, not rounded: 0.333, 0.571
            table[int(1 / ratio * 1000) / 1000] = tuple((w, h) for h, w in table[ratio])
    return dict(sorted(table.items()))


SCHEDULES: dict[float, Schedule] = _both_ways()
"""The 13 scales of every aspect ratio, ratios ascending."""


def ratio_of(said: object) -> float:
    """Height over width, from a number or from ``"16:9"`` (width to height, as screens are called).

    Raises:
        StagevarError: it is no such thing.
    """
    found = plain(said)
    if isinstance(found, str):
        width, colon, height = found.partition(":")
        try:
            found = float(height) / float(width) if colon else float(width)
        except (ValueError, ZeroDivisionError):
            found = None
    number = isinstance(found, (int, float)) and not isinstance(found, bool)
    if not number or not 0 < found < math.inf:
        raise StagevarError(
            f"aspect_ratio is {shown(said)}, expected height over width ({_ratios()}) or text "
            "like 16:9"
        )
    return float(found)


def nearest_ratio(said: float | str) -> float:
    """The published aspect ratio nearest to height over width, a number or text like 16:9.

    Raises:
        StagevarError: none is near.
    """
    known, ratio = list(SCHEDULES), ratio_of(said)
    if not known[0] / NEAR <= ratio <= known[-1] * NEAR:
        raise StagevarError(
            f"aspect_ratio is {ratio:g} (height over width), expected near {_ratios()}"
        )
    return min(known, key=lambda published: abs(published - ratio))


def _ratios() -> str:
    return ", ".join(f"{ratio:g}" for ratio in SCHEDULES)


def published_schedule(aspect_ratio: float | str, size: str) -> Schedule:
    """The schedule of a size at the published ratio nearest to ``aspect_ratio``.

    Raises:
        StagevarError: unknown size, or no ratio near.
    """
    _check_size(size)
    return SCHEDULES[nearest_ratio(aspect_ratio)][: COUNTS[size]]


def _check_size(size: object) -> None:
    if not isinstance(size, str) or size not in COUNTS:
        raise StagevarError(f"size is {shown(size)}, expected one of {', '.join(COUNTS)}")


def schedule_of_pixels(height: int, width: int, size: str | None = None) -> Schedule:
    """The published schedule whose image is nearest to ``height x width`` pixels.

    Raises:
        StagevarError: no published image is within a factor of :data:`NEAR` on both sides.
    """
    height = integer("height in pixels", height, 1, 2**16)
    width = integer("width in pixels", width, 1, 2**16)
    if size is not None:
        _check_size(size)
    found = [
        schedule[:count]
        for schedule in SCHEDULES.values()
        for name, count in COUNTS.items()
        if size in (None, name)
    ]

    def off(schedule: Schedule) -> tuple[float, float]:
        h, w = schedule[-1]
        tall = abs(math.log(h * PIXELS / height))
        wide = abs(math.log(w * PIXELS / width))
        return max(tall, wide), tall + wide

    best = min(found, key=off)
    if off(best)[0] > math.log(NEAR):
        h, w = best[-1]
        raise StagevarError(
            f"got {height} x {width} pixels, no published {size or 'size'} is near: the nearest "
            f"is {h * PIXELS} x {w * PIXELS} (height x width)"
        )
    return best


def full_extent(schedule: Schedule) -> tuple[int, int]:
    """The last of the 13 scales that a schedule begins; its own last if it is no published one."""
    for full in SCHEDULES.values():
        if full[: len(schedule)] == schedule and len(schedule) > 3:
            return full[-1]
    return schedule[-1]
