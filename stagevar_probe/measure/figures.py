"""What was found of one plan beside the exact path, as a record that goes into files and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, TypeVar

from ..intervals import Interval

Pair = tuple[float, float]
Own = TypeVar("Own", bound="Figures")


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Figures of one plan. Intervals are 95 %; of times the middle is the median.

    ``loss``: exact minus plan of the score, paired; ``smooth_loss`` the same of its smooth twin.
    ``kid``, ``kid_loss`` (times 1000) with ``kid_name``: where real pictures are known.
    ``perceptual`` with its name: where that distance was measured. Milliseconds are per batch of
    ``batch`` images, loop and decoder apart, those of the exact path beside them. ``flops`` per
    image.
    """

    metric: str
    images: int
    batch: int
    score: Interval
    loss: Interval
    smooth_loss: Interval
    psnr: Interval
    ssim: Interval
    transformer_ms: float
    exact_transformer_ms: float
    loop_ms: float
    decode_ms: float
    total_ms: float
    exact_loop_ms: float
    exact_total_ms: float
    loop_ci95: Pair
    total_ci95: Pair
    speedup_loop: Interval
    speedup_total: Interval
    scale_ms: tuple[float, ...]
    flops: float
    kid: float | None = None
    kid_ci95: Pair | None = None
    kid_name: str | None = None
    kid_loss: Interval | None = None
    perceptual: Interval | None = None
    perceptual_name: str | None = None

    @property
    def significantly_worse(self) -> bool:
        """Whether the distribution is worse than exact's beyond its 95 % interval."""
        return self.kid_loss is not None and self.kid_loss.low > 0

    def within(self, max_loss: float) -> bool:
        """Whether the mean loss keeps a budget, and the distribution is not significantly worse."""
        return self.loss.mean <= max_loss and not self.significantly_worse

    def speed_cells(self, unit: str = "") -> list[str]:
        """Milliseconds per image, end to end, and how much faster: end to end, loop."""
        return [
            f"{self.total_ms / self.batch:.1f}",
            f"{self.speedup_total.mean:.2f}{unit}",
            f"{self.speedup_loop.mean:.2f}{unit}",
        ]

    def fidelity_cells(self, unit: str = "") -> list[str]:
        """Perceptual distance to exact, and PSNR."""
        near = self.perceptual.mean if self.perceptual else 1 - self.ssim.mean
        return [f"{near:.4f}", f"{self.psnr.mean:.1f}{unit}"]

    def dump(self) -> dict[str, Any]:
        """JSON-ready; what was not measured is left out."""
        found = {name: value for name, value in asdict(self).items() if value is not None}
        return {n: list(v) if isinstance(v, tuple) else v for n, v in found.items()}

    @classmethod
    def parse(cls: type[Own], data: Mapping[str, Any]) -> Own:
        """The inverse of :meth:`dump`; keys that it does not know are left.

        Raises:
            KeyError, TypeError: something is missing or of another kind.
        """
        known = {field.name: str(field.type) for field in fields(cls)}
        read: dict[str, Any] = {n: v for n, v in data.items() if n in known}
        for name, value in read.items():
            if known[name].startswith("Interval"):
                read[name] = Interval(*value)
            elif isinstance(value, list):
                read[name] = tuple(value)
        return cls(**read)
