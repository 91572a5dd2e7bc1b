"""Where a speed is asked for: the plan of least loss that is as fast, on fresh inputs too."""

from __future__ import annotations

import math

from stagevar_runtime.loop.plan import EXACT
from stagevar_runtime.profile import PlanStep

from ..measure.figures import Figures
from ..measure.measurements import Measurements
from ..measure.validation import Attempt, Validation
from ..solve.build import problem_from, steps_of
from ..solve.milp import Solution
from ..validate.evidence import evidence_of
from ..validate.sequential import ERROR, critical_values
from ..validate.verdict import Budget, Verdict, together
from .clock import RACED
from .runner import Piece, Runner

ATTEMPTS = 4  # times a plan is chosen again after it was too slow on fresh inputs
CHECKED = 3  # rounds that a speed is checked on

Steps = tuple[PlanStep, ...]


def meet_speed(
    runner: Runner, measured: Measurements
) -> tuple[dict[str, Steps], Validation, Verdict]:
    """Plans by name, what was found of them, and whether ``balanced`` is as fast as was asked; and
    where a loss was asked too, whether it is shown to keep that."""
    target = runner.settings.target
    problem = problem_from(measured, target.max_loss)
    assert measured.costs is not None
    attempts: list[Attempt] = []
    solutions: dict[str, Solution] = {}
    factor = 1.0
    for attempt in range(ATTEMPTS):
        solutions = target.choose(problem, measured.costs, factor)
        balanced = solutions["balanced"]
        steps = steps_of(balanced, measured)
        figures = _checked(runner, steps, attempt)
        attempts.append(Attempt(steps, balanced.loss, figures))
        if target.fast_enough(figures) or not balanced.feasible:
            break
        factor = target.harder(figures, factor)
    plans = {name: steps_of(solution, measured) for name, solution in solutions.items()}
    pieces = _proved(runner, plans)
    compiled = {EXACT: runner.compiled(()), **{n: runner.compiled(s) for n, s in plans.items()}}
    found = runner.figures(pieces, compiled)
    budgets = [Budget(runner.materials.quality.name, target.max_loss), *runner.settings.others]
    evidence = evidence_of(
        [(piece.inputs, piece.seen) for piece in pieces],
        "balanced",
        budgets,
        critical_values([1.0], ERROR, True)[0],
        tags=runner.materials.proof.tags,
    )
    verdicts: list[Verdict] = [target.fast_enough(found["balanced"])]
    if target.loss_asked:
        verdicts.append(evidence.verdict)
    seconds = {"announced": runner.clock.seconds, "taken": runner.clock.spent}
    validation = Validation(
        found, tuple(attempts), evidence={"balanced": evidence}, seconds=seconds
    )
    return plans, validation, together(verdicts)


def _checked(runner: Runner, steps: Steps, attempt: int) -> Figures:
    """Figures of a plan on a few fresh batches: enough for its speed."""
    plans = {EXACT: runner.compiled(()), "balanced": runner.compiled(steps)}
    size, pieces = runner.settings.batch, list[Piece]()
    while len(pieces) < CHECKED * runner.count:
        begin = attempt * 100_003 + len(pieces) * size
        pieces += runner.round(f"attempt-{attempt}", plans, runner.materials.race, begin, size)
        if not runner.time_for(f"attempt-{attempt}-go-{len(pieces)}", pieces, RACED):
            break
    return runner.figures(pieces, plans)["balanced"]


def _proved(runner: Runner, chosen: dict[str, Steps]) -> list[Piece]:
    """All plans beside exact, for as long as the time goes."""
    plans = {EXACT: runner.compiled(()), **{n: runner.compiled(s) for n, s in chosen.items()}}
    size, pieces = runner.settings.batch, list[Piece]()
    most = runner.settings.held_out or math.inf
    while sum(len(piece.inputs) for piece in pieces) < most:
        begin = len(pieces) * size
        pieces += runner.round("proof", plans, runner.materials.proof, begin, size)
        if not runner.time_for(f"proof-go-{len(pieces):05d}", pieces):
            break
    return pieces
