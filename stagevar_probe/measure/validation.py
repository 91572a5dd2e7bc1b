"""What a calibration found on inputs that had no part in measuring, as a record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from stagevar_runtime.profile import PlanStep

from ..intervals import Interval
from .figures import Figures

Steps = tuple[PlanStep, ...]
Verdict = bool | Literal["unproven"]


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
class BudgetEvidence:
    """What was shown under one budget: the bounds of the loss, valid though they were looked at on
    the way, and the verdict. ``needed``: inputs in all that would show it, if all goes on like
    this; None where more would not."""

    metric: str
    max_loss: float
    margin: float
    tag: str | None
    bounds: Interval
    verdict: Verdict
    needed: int | None = None

    def dump(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**vars(self), "bounds": list(self.bounds)}

    @classmethod
    def parse(cls, data: Mapping[str, Any]) -> BudgetEvidence:
        """The inverse of :meth:`dump`."""
        return cls(**{**data, "bounds": Interval(*data["bounds"])})


@dataclass(frozen=True)
class Evidence:
    """What the proof shows of a plan: under every budget, by kind of prompts (``tags``), and which
    kinds are shown to lose more than several times the budget (``named``)."""

    verdict: Verdict
    budgets: tuple[BudgetEvidence, ...]
    inputs: int
    tags: Mapping[str, Interval] = field(default_factory=dict)
    named: tuple[str, ...] = ()

    @property
    def keeps(self) -> bool:
        """Whether every estimate keeps its budget."""
        return all(part.bounds.mean <= part.max_loss for part in self.budgets)

    @property
    def more(self) -> int | None:
        """How many more inputs would settle it; None where that is not to be expected."""
        needed = [part.needed for part in self.budgets if part.verdict == "unproven"]
        if not needed or None in needed:
            return None
        return max(0, max(n for n in needed if n is not None) - self.inputs)

    def dump(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "verdict": self.verdict,
            "budgets": [part.dump() for part in self.budgets],
            "inputs": self.inputs,
            "tags": {tag: list(bounds) for tag, bounds in self.tags.items()},
            "named": list(self.named),
        }

    @classmethod
    def parse(cls, data: Mapping[str, Any]) -> Evidence:
        """The inverse of :meth:`dump`."""
        return cls(
            data["verdict"],
            tuple(map(BudgetEvidence.parse, data["budgets"])),
            data["inputs"],
            {tag: Interval(*bounds) for tag, bounds in data["tags"].items()},
            tuple(data["named"]),
        )


@dataclass(frozen=True)
class Validation:
    """Held-out figures by plan, the exact path's among them; what was tried and predicted before.

    ``not_monotone``: a sentence for every curve of losses that the data show not to fall.
    ``trials``: held-out checks that were made, in files from before proofs were sequential; those
    have no ``evidence`` (by finalist, ``balanced`` among them) and no ``seconds``: what was
    announced and what was taken.
    """

    plans: Mapping[str, Figures] = field(default_factory=dict)
    attempts: tuple[Attempt, ...] = ()
    frontier: tuple[FrontierPoint, ...] = ()
    not_monotone: tuple[str, ...] = ()
    trials: int | None = None
    evidence: Mapping[str, Evidence] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)

    def dump(self) -> dict[str, Any]:
        """JSON-ready: plans by name, the rest beside them."""
        if not self.plans:
            return {}
        return {
            **{name: figures.dump() for name, figures in self.plans.items()},
            **({} if self.trials is None else {"trials": self.trials}),
            **({"evidence": _dumped(self.evidence)} if self.evidence else {}),
            **({"seconds": dict(self.seconds)} if self.seconds else {}),
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
            {n: Evidence.parse(found) for n, found in data.get("evidence", {}).items()},
            data.get("seconds", {}),
        )


_BESIDE = ("attempts", "evidence", "frontier", "not_monotone", "seconds", "trials")


def _dumped(evidence: Mapping[str, Evidence]) -> dict[str, Any]:
    return {name: found.dump() for name, found in evidence.items()}


def dump_steps(steps: Steps) -> list[dict[str, Any]]:
    """Steps as in a profile, JSON-ready."""
    return [step.model_dump(mode="json", exclude_defaults=True) for step in steps]


def parse_steps(data: list[dict[str, Any]]) -> Steps:
    """The inverse of :func:`dump_steps`."""
    return tuple(PlanStep.model_validate(step) for step in data)
