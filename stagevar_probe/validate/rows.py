"""One row of a run: a plan with its name, kind and facts; and all rows together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from stagevar_runtime.loop.plan import Plan, compile_plan
from stagevar_runtime.model.protocol import ModelInfo, ScaleSpec
from stagevar_runtime.model.sampling import Sampling
from stagevar_runtime.profile import PlanStep

EXACT = "exact"


@dataclass(frozen=True)
class Row:
    """One row of a comparison.

    ``kind``: exact, guidance, temperature, preset, plan, drop, tokens, features, skip or joint.
    ``guidance``: the exact path's own, where it is not the one that was asked for. ``facts`` is
    what questions look up: of a drop ``branch``, ``scale``, ``schedule``, ``cool``; of tokens
    ``select``, ``restore``, ``keep``, ``scales``; of features ``basis``, ``rank``, ``scales``; of a
    joint plan the names of its ``parts``.
    """

    name: str
    kind: str
    steps: tuple[PlanStep, ...] = ()
    guidance: float | tuple[float, ...] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def compile(self, info: ModelInfo, scales: tuple[ScaleSpec, ...], sampling: Sampling) -> Plan:
        """The plan it stands for. Raises ProfileError where the model cannot run it."""
        if self.guidance is not None:
            sampling = replace(sampling, guidance=self.guidance)
        return compile_plan(self.steps, info, scales, sampling)


@dataclass(frozen=True)
class Rows:
    """The entries that can be run, with their plans, and why the others cannot.

    ``same``: entries whose plan is that of an earlier one, which is run for both.
    """

    entries: tuple[Row, ...]
    plans: Mapping[str, Plan]
    same: Mapping[str, str]
    left_out: Mapping[str, str]
