"""What there is to choose from: measured costs and losses of every option, and a chosen plan.

Interventions measure *events*, not scales: "guidance dropped from scale k on, keeping this branch"
and "no scale from k to j - 1 run". So those losses are attached to events, token losses to scales,
and costs to scales. METHODS sections 2 to 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Literal

from stagevar_runtime.errors import CalibrationError

FULL = "full"  # the option that keeps all tokens and features; also the guidance before a drop
SKIP = "skip"
FEWER_BITS = ", fewer bits"  # behind an option's name: its products run in 8 bits

Skip = tuple[int, int]  # (first scale skipped, first that runs again or the number of scales)
Drop = tuple[int, str]  # (first scale without guidance, branch variant: "cond", "null@0.6", ...)


@dataclass(frozen=True)
class Problem:
    """Measured costs and losses of every option of one model on one device.

    ``ms[(k, rows, tokens)]``: milliseconds of scale k with ``rows`` 2 (guided) or 1, and a token
    or feature option by name (a scale has one); every scale needs ``"full"`` at the largest rows
    present. What has no cost cannot be chosen. ``drop_loss[(k, variant)]``: loss when guidance is
    dropped from k on.
    ``token_loss[(k, tokens)]``: loss of that option alone (``"full"`` is 0; an option without a
    loss cannot be chosen). ``skip_loss[k, j]``: loss when no scale from k to j - 1 is
    run.
    ``schedules``: loss offset of every guidance schedule, the default first.
    ``part_loss[name]``: loss when null runs on part of the tokens at every scale that has an option
    of this name at 2 rows; ``apart``: drop variants that cannot follow it.
    ``bits_loss[k]``: loss when products run in 8 bits from scale k on; then every scale takes
    options whose names end in :data:`FEWER_BITS`, which cost what their ``ms`` say and lose what
    they lose without.
    ``joint_loss[(schedule, k, variant)]``: measured loss of schedule and drop together, used in
    place of offset + drop loss (they are far from additive, METHODS section 7).
    Losses are absolute, in the metric's unit; below 0 means the option measured better.
    """

    scales: int
    ms: Mapping[tuple[int, int, str], float]
    drop_loss: Mapping[Drop, float] = field(default_factory=dict)
    token_loss: Mapping[tuple[int, str], float] = field(default_factory=dict)
    skip_loss: Mapping[Skip, float] = field(default_factory=dict)
    schedules: Mapping[str, float] = field(default_factory=lambda: {"published": 0.0})
    joint_loss: Mapping[tuple[str, int, str], float] = field(default_factory=dict)
    part_loss: Mapping[str, float] = field(default_factory=dict)
    bits_loss: Mapping[int, float] = field(default_factory=dict)
    apart: frozenset[str] = frozenset()
    budget: float = 0.01

    def __post_init__(self) -> None:
        if self.scales < 1 or not self.schedules or not self.ms:
            raise CalibrationError("a problem needs at least one scale, schedule and cost")
        for k in range(self.scales):
            if (k, self.rows, FULL) not in self.ms:
                raise CalibrationError(f"scale {k} has no cost for {FULL!r} at {self.rows} rows")
        if self.rows == 1 and (self.drop_loss or self.joint_loss):
            raise CalibrationError("guidance losses were given, but no scale has a cost at 2 rows")
        places = [k for k, _, _ in self.ms] + [k for k, _ in self.drop_loss]
        places += [k for k, j in self.skip_loss for k in (k, j - 1)]
        places += [*self.bits_loss, *(k for k, _ in self.token_loss)] + [
            k for _, k, _ in self.joint_loss
        ]
        if not all(0 <= k < self.scales for k in places):
            raise CalibrationError(f"options name scales beyond {self.scales - 1}")
        if not {name for name, _, _ in self.joint_loss} <= set(self.schedules):
            raise CalibrationError("joint_loss names a schedule that is not in schedules")
        figures = [*self.ms.values(), *self.drop_loss.values(), *self.token_loss.values()]
        figures += [*self.skip_loss.values(), *self.schedules.values(), *self.joint_loss.values()]
        figures += [*self.part_loss.values(), *self.bits_loss.values()]
        if not all(isfinite(x) for x in figures):
            raise CalibrationError("costs and losses hold NaN or infinity, expected finite values")

    @property
    def rows(self) -> int:
        """Rows a scale has before guidance is dropped: 2, or 1 for an unguided model."""
        return max(rows for _, rows, _ in self.ms)

    @property
    def default_schedule(self) -> str:
        """The schedule of the exact path."""
        return next(iter(self.schedules))

    @property
    def exact_ms(self) -> float:
        """Milliseconds of the exact path: every scale full, default schedule."""
        return sum(self.ms[k, self.rows, FULL] for k in range(self.scales))


@dataclass(frozen=True)
class Choice:
    """What one scale does. ``guidance`` is full, skip or a variant; ``rows`` 0 if skipped.
    ``tokens``: its option, whose name says if its products run in fewer bits."""

    scale: int
    run: Literal["full", "skip"]
    guidance: str
    rows: int
    tokens: str
    ms: float

    @property
    def option(self) -> str:
        """The option's own name."""
        return self.tokens.removesuffix(FEWER_BITS)

    @property
    def fewer_bits(self) -> bool:
        """Whether products run in 8 bits."""
        return self.tokens.endswith(FEWER_BITS)


@dataclass(frozen=True)
class Solution:
    """A plan. ``loss`` is the sum of its measured losses, as counted (see :func:`solve`).

    ``feasible`` False: nothing meets the budget, this is the exact path.
    ``optimal``: proved, to the solver's tolerance (a millionth of the largest option).
    ``bits``: from which scale on products run in fewer, if from any.
    """

    choices: tuple[Choice, ...]
    schedule: str
    drop: Drop | None
    skips: tuple[Skip, ...]
    part: str | None
    ms: float
    exact_ms: float
    loss: float
    budget: float
    feasible: bool = True
    optimal: bool = True
    bits: int | None = None

    @property
    def speedup(self) -> float:
        """Exact milliseconds over this plan's; infinite where nothing is run."""
        return self.exact_ms / self.ms if self.ms > 0 else float("inf")


def exact_plan(problem: Problem, budget: float = 0.0) -> Solution:
    """The exact path as a plan: every scale full, under the default schedule."""
    choices = tuple(
        Choice(k, "full", FULL, problem.rows, FULL, problem.ms[k, problem.rows, FULL])
        for k in range(problem.scales)
    )
    name, ms = problem.default_schedule, problem.exact_ms
    return Solution(
        choices, name, None, (), None, ms, ms, max(0.0, problem.schedules[name]), budget
    )
