"""What a calibration is asked for: a loss at most, or a speed at least. Plans that reach it."""

from __future__ import annotations

from dataclasses import dataclass

from stagevar_runtime.errors import CalibrationError

from ..measure.costs import Costs
from ..measure.figures import Figures
from .milp import least_loss, solve
from .problem import Problem, Solution

BUDGETS = {"quality": 0.5, "balanced": 1.0, "fast": 3.0}  # of the loss that was asked for
PACES = {"quality": 0.5, "balanced": 1.0, "fast": 1.5}  # of the speed-up that was asked for


@dataclass(frozen=True)
class Target:
    """At most ``max_loss``; or the least loss with ``min_speedup`` (end to end, against exact) or
    within ``max_ms`` (end to end, an image). ``loss_asked``: the loss counts with a speed too.
    """

    max_loss: float
    min_speedup: float | None = None
    max_ms: float | None = None
    loss_asked: bool = False

    @property
    def by_speed(self) -> bool:
        """Whether a speed was asked for."""
        return self.min_speedup is not None or self.max_ms is not None

    def speedup(self, problem: Problem, costs: Costs) -> float:
        """The end-to-end speed-up that was asked for, at least 1."""
        exact = problem.exact_ms + costs.decode_ms
        asked = [1.0, self.min_speedup or 0.0]
        if self.max_ms is not None:
            asked.append(exact / (self.max_ms * costs.batch))
        return max(asked)

    def choose(self, problem: Problem, costs: Costs, factor: float = 1.0) -> dict[str, Solution]:
        """A plan for every name. ``factor``: the speed earlier plans were short of, 1 for none.

        Raises:
            CalibrationError: decoding alone takes longer than the time that was asked for.
        """
        if not self.by_speed:
            return {name: solve(problem, share * self.max_loss) for name, share in BUDGETS.items()}
        exact = problem.exact_ms + costs.decode_ms
        wanted = self.speedup(problem, costs) * factor
        if exact / wanted <= costs.decode_ms:
            raise CalibrationError(
                f"asked for {wanted:.2f}x end to end, but decoding alone takes "
                f"{costs.decode_ms / costs.batch:.2f} of {exact / costs.batch:.2f} ms an image: at "
                f"most {exact / costs.decode_ms:.2f}x can be had. Ask for less"
            )
        return {
            name: least_loss(problem, exact / (1 + pace * (wanted - 1)) - costs.decode_ms)
            for name, pace in PACES.items()
        }

    def met(self, figures: Figures) -> bool:
        """Whether held-out figures of a plan reach the goal."""
        if not self.by_speed:
            return figures.within(self.max_loss)
        return self.fast_enough(figures) and (not self.loss_asked or figures.within(self.max_loss))

    def fast_enough(self, figures: Figures) -> bool:
        """Whether a plan is as fast as was asked, by what was measured."""
        speed = figures.exact_total_ms / figures.total_ms
        per_image = figures.total_ms / figures.batch
        return speed >= (self.min_speedup or 0.0) and (
            self.max_ms is None or per_image <= self.max_ms
        )

    def harder(self, figures: Figures, factor: float) -> float:
        """The factor to choose again with, after a plan was too slow on fresh inputs."""
        if not self.by_speed:
            return factor
        short = 1.0
        if self.min_speedup is not None:
            short = self.min_speedup * figures.total_ms / figures.exact_total_ms
        if self.max_ms is not None:
            short = max(short, figures.total_ms / figures.batch / self.max_ms)
        return factor * min(1.5, max(1.02, short))

    def description(self, metric: str) -> str:
        """In words."""
        parts = []
        if not self.by_speed or self.loss_asked:
            parts.append(f"at most {self.max_loss:g} {metric} lost")
        if self.min_speedup is not None:
            parts.append(f"at least {self.min_speedup:g}x end to end")
        if self.max_ms is not None:
            parts.append(f"at most {self.max_ms:g} ms an image")
        return ", ".join(parts)
