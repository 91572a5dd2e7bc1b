"""What a calibration found on inputs that had no part in measuring, as a record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stagevar_runtime.profile import PlanStep

from .figures import Figures

Steps = tuple[PlanStep, ...]


@dataclass(frozen=True)
class Attempt:
    """A plan that was tried on the way: its steps, the loss that was predicted, what was found.

    ``plan``: its name, where it had one.
    """

    steps: Steps
    predicted: float
    figures: Figures
    plan: str | None = None

    def dump(self) -> dict[str, Any]:
        """JSON-ready."""
        named = {} if self.plan is None else {"plan": self.plan}
        found = {"predicted": self.predicted, "figures": self.figures.dump()}
        return {**named, **found, "steps": dump_steps(self.steps)}

    @classmethod
    def parse(cls, data: Mapping[str, Any]) -> Attempt:
        """The inverse of :meth:`dump`."""
        figures = Figures.parse(data["figures"])
        return cls(parse_steps(data["steps"]), data["predicted"], figures, data.get("plan"))


@dataclass(frozen=True)
class FrontierPoint:
    """A plan that nothing beats in predicted time (``ms`` a batch, loop) and predicted loss."""

    ms: float
    loss: float
    speedup: float
    steps: Steps

    def dump(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**vars(self), "steps": dump_steps(self.steps)}

    @classmethod
    def parse(cls, data: Mapping[str, Any]) -> FrontierPoint:
        """The inverse of :meth:`dump`."""
        return cls(data["ms"], data["loss"], data["speedup"], parse_steps(data["steps"]))


@dataclass(frozen=True)
class Validation:
    """Held-out figures by plan, the exact path's among them; what was tried and predicted before.

    ``not_monotone``: a sentence for every curve of losses that the data show not to fall.
    ``trials``: held-out checks that were made, in files from before there was one.
    """

    plans: Mapping[str, Figures] = field(default_factory=dict)
    attempts: tuple[Attempt, ...] = ()
    frontier: tuple[FrontierPoint, ...] = ()
    not_monotone: tuple[str, ...] = ()
    trials: int | None = None

    def dump(self) -> dict[str, Any]:
        """JSON-ready: plans by name, the rest beside them."""
        if not self.plans:
            return {}
        return {
            **{name: figures.dump() for name, figures in self.plans.items()},
            **({} if self.trials is None else {"trials": self.trials}),
            "attempts": [attempt.dump() for attempt in self.attempts],
            "frontier": [point.dump() for point in self.frontier],
            "not_monotone": list(self.not_monotone),
        }

    @classmethod
    def parse(cls, data: Mapping[str, Any]) -> Validation:
        """The inverse of :meth:`dump`."""
        return cls(
            {n: Figures.parse(f) for n, f in data.items() if n not in _BESIDE},
            tuple(map(Attempt.parse, data.get("attempts", ()))),
            tuple(map(FrontierPoint.parse, data.get("frontier", ()))),
            tuple(data.get("not_monotone", ())),
            data.get("trials"),
        )


_BESIDE = ("attempts", "frontier", "not_monotone", "trials")


def dump_steps(steps: Steps) -> list[dict[str, Any]]:
    """Steps as in a profile, JSON-ready."""
    return [step.model_dump(mode="json", exclude_defaults=True) for step in steps]


def parse_steps(data: list[dict[str, Any]]) -> Steps:
    """The inverse of :func:`dump_steps`."""
    return tuple(PlanStep.model_validate(step) for step in data)
