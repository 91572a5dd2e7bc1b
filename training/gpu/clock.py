"""The time there is, and who may have how much of it."""

from __future__ import annotations

import time

EARLY = 20.0  # seconds before its time that a run is over


class Clock:
    """Counts from the start of the process's work; ``end`` is when everything is written.

    A run of ``minutes`` ends :data:`EARLY` seconds before, or after three quarters of a short one.
    """

    def __init__(self, minutes: float, start: float | None = None) -> None:
        self.start = time.monotonic() if start is None else start
        self.length = max(60 * minutes - EARLY, 0.6 * 60 * minutes)

    @property
    def now(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.start

    @property
    def left(self) -> float:
        """Seconds until the end."""
        return self.length - self.now

    def at(self, share: float) -> float:
        """The time, in seconds since the start, when ``share`` of the length is over."""
        return share * self.length
