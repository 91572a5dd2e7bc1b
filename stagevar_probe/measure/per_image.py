"""Tables with one value per image: of a chunk of images, or of all that were measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stagevar_runtime.loop.plan import EXACT

from ..observe.rank import RankKey

Column = list[float]  # one value per image
FEWEST = 12  # images that say something of a distribution
BY_INTERVENTION = ("smooth", "score", "psnr", "distribution")
CURVES = ("semantic", "structural", "low", "high")


@dataclass
class PerImage:
    """What was measured of images, in their order.

    By intervention: ``smooth`` and ``score`` (:class:`~stagevar_probe.metrics.protocol.Quality`);
    ``psnr`` dB to the exact image; ``distribution`` what it adds to the kernel distance lost, times
    1000, where real pictures are known. ``sensitivity[scale][branch]`` in nats. ``ranks[key]`` by
    measure. ``semantic`` and ``structural`` likeness and ``low`` and ``high`` frequency change:
    ``[image][scale]``.
    """

    smooth: dict[str, Column] = field(default_factory=dict)
    score: dict[str, Column] = field(default_factory=dict)
    psnr: dict[str, Column] = field(default_factory=dict)
    distribution: dict[str, Column] = field(default_factory=dict)
    sensitivity: dict[int, dict[str, Column]] = field(default_factory=dict)
    ranks: dict[RankKey, dict[str, Column]] = field(default_factory=dict)
    semantic: list[Column] = field(default_factory=list)
    structural: list[Column] = field(default_factory=list)
    low: list[Column] = field(default_factory=list)
    high: list[Column] = field(default_factory=list)

    def add(self, more: PerImage) -> None:
        """Append what was measured of more images."""
        for table in (*BY_INTERVENTION, "sensitivity", "ranks"):
            _extend(getattr(self, table), getattr(more, table))
        for curve in CURVES:
            getattr(self, curve).extend(getattr(more, curve))

    def losses(self, intervention: str, table: str = "smooth") -> NDArray[np.float64]:
        """Exact minus intervention for every image that has both."""
        values = getattr(self, table)
        mine = np.asarray(values[intervention])
        return np.asarray(values[EXACT])[: len(mine)] - mine

    def group_means(
        self, scale: int, centring: str, measure: str, branch: str = "cond"
    ) -> tuple[float, ...] | None:
        """Mean over images of a rank measure, one value per group; None where none was measured."""
        wanted = (scale, branch, centring)
        keys = [k for k in self.ranks if (k.scale, k.branch, k.centring) == wanted]
        return tuple(float(np.mean(self.ranks[k][measure])) for k in sorted(keys)) or None

    def distribution_worse(self, intervention: str) -> float:
        """How many standard errors the distribution is worse under an intervention than exact's; 0
        where that is not known."""
        values = np.asarray(self.distribution.get(intervention, ()))
        if len(values) < FEWEST or not values.std():
            return 0.0
        return float(values.mean() / values.std() * np.sqrt(len(values)))

    def tables(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            **{table: getattr(self, table) for table in BY_INTERVENTION},
            "sensitivity": {str(scale): own for scale, own in self.sensitivity.items()},
            "ranks": [{**key._asdict(), "values": own} for key, own in self.ranks.items()],
            **{curve: getattr(self, curve) for curve in CURVES},
        }


def parse_tables(data: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of :meth:`PerImage.tables`: the fields of a record. Older files know nothing
    of distributions."""
    return {
        **{table: data[table] for table in (*BY_INTERVENTION[:3], *CURVES)},
        "distribution": data.get("distribution", {}),
        "sensitivity": {int(scale): own for scale, own in data["sensitivity"].items()},
        "ranks": {
            RankKey(*(row[name] for name in RankKey._fields)): row["values"]
            for row in data["ranks"]
        },
    }


def _extend(own: dict[Any, Any], more: Mapping[Any, Any]) -> None:
    """Append columns to those of the same name, in tables and tables of tables."""
    for name, values in more.items():
        if isinstance(values, list):
            own.setdefault(name, []).extend(values)
        else:
            _extend(own.setdefault(name, {}), values)
