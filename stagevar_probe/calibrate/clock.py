"""The time that a calibration may take, and how it is divided."""

from __future__ import annotations

import time
from collections.abc import Callable

GENERATIONS = 5000  # of the exact path: the default time, where that is within the limits
SHORTEST = 180.0  # seconds
LONGEST = {"cpu": 420.0, "cuda": 900.0}
MEASURED, COOLED, RACED = 0.28, 0.38, 0.55  # shares at which measuring, trying, racing end
CLOSING = 0.03  # share for what is written at the end

Now = Callable[[], float]


def default_seconds(device: str, per_image: float) -> float:
    """How long a calibration may take where nobody says: by device and model.

    ``per_image``: seconds of one image by the exact path.
    """
    longest = LONGEST.get(device, LONGEST["cuda"])
    return min(longest, max(SHORTEST, GENERATIONS * per_image))


class Clock:
    """``seconds`` in all, from now on; those before an interruption count. ``now``: the time."""

    def __init__(self, seconds: float, now: Now = time.monotonic) -> None:
        self.seconds, self._now = seconds, now
        self._begun, self._before = now(), 0.0

    @property
    def spent(self) -> float:
        """Seconds so far, those of an interrupted run included."""
        return self._before + self._now() - self._begun

    def resume(self, spent: float) -> None:
        """So many seconds were spent before, if more than this clock knows of."""
        self._before += max(0.0, spent - self.spent)

    def left(self, share: float = 1.0 - CLOSING) -> float:
        """Seconds until a share of the time is over; negative past it."""
        return share * self.seconds - self.spent
