"""Successive halving: promising plans side by side on inputs of their own, the best half goes on.

Losses of single changes are noisy and do not add up, so the solver only names candidates; what a
plan is worth is measured. Nothing of this proves a plan: the inputs that chose it cannot.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist, median

import numpy as np

from stagevar_runtime.loop.plan import EXACT, Plan

from ..measure.figures import Figures
from ..measure.measurements import Measurements
from ..measure.validation import Attempt
from ..metrics.images import kid_loss
from ..solve.candidates import (
    CONTROL,
    Candidate,
    cooler,
    cooler_helps,
    propose_candidates,
)
from ..validate.run import Batch, per_image
from .clock import COOLED, RACED
from .runner import Piece, Runner

logger = logging.getLogger("stagevar_probe")

FEWEST = 4  # candidates that stay in the race to the end
SMALLEST = 4  # images of a batch at least
WORSE = 3.0  # standard errors of distribution lost that end a candidate's race
PRIOR = 4.0  # of the budget, over the root of the inputs: no few inputs are sure of a loss
GAIN = 0.02  # share of the time that two finalists are apart at least


@dataclass(frozen=True)
class Standing:
    """How a candidate stands: mean loss and standard error, how often faster, distribution lost in
    standard errors."""

    loss: float
    error: float
    speedup: float
    worse: float = 0.0

    def chance(self, max_loss: float) -> float:
        """The chance that it keeps a budget."""
        if self.worse > WORSE:
            return 0.0
        return NormalDist().cdf((max_loss - self.loss) / max(self.error, 1e-12))

    def promise(self, max_loss: float) -> float:
        """The speed-up to be expected: what is gained, times the chance to keep the budget."""
        return (self.speedup - 1) * self.chance(max_loss)


@dataclass
class Raced:
    """What a race found. ``standings`` by name; ``pieces``: the batches, some without those that
    left; ``control``: the exact path sampled cooler, where that was tried."""

    candidates: list[Candidate]
    plans: dict[str, Plan]
    pieces: list[Piece] = field(default_factory=list)
    standings: dict[str, Standing] = field(default_factory=dict)
    control: Attempt | None = None

    def finalists(self, max_loss: float) -> list[Candidate]:
        """Candidates by what they promise, those that promise nothing left out; of two that are as
        fast as each other the better."""
        out: list[Candidate] = []
        worth = {c.name: self.standings[c.name].promise(max_loss) for c in self.candidates}
        for c in sorted(self.candidates, key=lambda c: -worth[c.name]):
            speed = self.standings[c.name].speedup
            near = any(
                abs(1 / speed - 1 / self.standings[other.name].speedup) < GAIN for other in out
            )
            if worth[c.name] > 0 and not near:
                out.append(c)
        return out

    def fastest(self, max_loss: float) -> Candidate | None:
        """The fastest that rather keeps a budget than not."""
        likely = [c for c in self.candidates if self.standings[c.name].chance(max_loss) >= 0.5]
        faster = [c for c in likely if self.standings[c.name].speedup > 1]
        return max(faster, key=lambda c: self.standings[c.name].speedup, default=None)

    def attempts(self, figures: Mapping[str, Figures]) -> list[Attempt]:
        """Everything that was tried, for the record."""
        control = [] if self.control is None else [self.control]
        return control + [
            Attempt(c.steps, c.loss, figures[c.name], c.name)
            for c in self.candidates
            if c.name in figures
        ]


def spread(candidates: Sequence[Candidate], count: int) -> list[Candidate]:
    """So many of them, the slowest and the fastest included and others evenly between."""
    if count >= len(candidates):
        return list(candidates)
    order = sorted(candidates, key=lambda c: -c.ms)
    return [order[round(i * (len(order) - 1) / (count - 1))] for i in range(count)]


class Race:
    """One race: who runs, on what, who leaves."""

    def __init__(self, runner: Runner, measured: Measurements) -> None:
        self.runner, self.measured = runner, measured
        self.max_loss = runner.settings.max_loss
        self.raced = Raced([], {EXACT: runner.compiled(())})
        held_out = runner.settings.held_out
        self.most = None if held_out is None else max(runner.settings.batch, held_out // 2)

    def enter(self) -> None:
        """Choose who runs: what the solver names, sampled cooler unless that is seen to hurt."""
        cool = self._cooler()
        proposed = propose_candidates(self.measured, self.max_loss, cool)
        candidates = spread(proposed, self._fitting(proposed))
        self.raced.candidates = candidates
        self.raced.plans |= {c.name: self.runner.compiled(c.steps) for c in candidates}
        logger.info("%d plans race, sampled %s", len(candidates), "cooler" if cool else "as exact")

    def _cooler(self) -> bool:
        runner = self.runner
        if runner.materials.quality.reference is None:
            return False
        tokens = [scale.tokens for scale in runner.model.scales()]
        steps = cooler((), tokens, runner.materials.sampling.temperature)
        plans = {EXACT: self.raced.plans[EXACT], CONTROL: runner.compiled(steps)}
        size, pieces = runner.settings.batch, list[Piece]()
        while self._go("cooler", pieces, COOLED, size):
            number = len(pieces) * size
            pieces += runner.round("cooler", plans, runner.materials.race, number, size)
        figures = runner.figures(pieces, plans)[CONTROL]
        self.raced.control = Attempt(steps, 0.0, figures, CONTROL)
        return cooler_helps(figures, self.max_loss)

    def _go(self, stage: str, pieces: Sequence[Piece], until: float, size: int) -> bool:
        """Whether one more round fits: the first always does."""
        runner = self.runner
        if not pieces:
            return True
        if self.most is not None and len(pieces) * size >= self.most:
            return False
        return runner.time_for(f"{stage}-go-{len(pieces):05d}", pieces, until)

    def run(self) -> Raced:
        """Rounds until the time for racing is over, the worse half leaving after each."""
        raced, runner = self.raced, self.runner
        size = self._size()
        running = list(raced.candidates)
        while running and self._go("race", raced.pieces, RACED, size):
            plans = {n: raced.plans[n] for n in (EXACT, *(c.name for c in running))}
            begin = len(raced.pieces) * size
            raced.pieces += runner.round("race", plans, runner.materials.race, begin, size)
            raced.standings |= {c.name: self.standing(c.name) for c in running}
            order = sorted(running, key=lambda c: -raced.standings[c.name].promise(self.max_loss))
            running = order[: max(FEWEST, math.ceil(len(order) / 2))]
            best = raced.standings[order[0].name]
            runner.say(
                f"{len(running)} plans race: {best.speedup:.1f}x at {best.loss:.3f} "
                f"± {1.96 * best.error:.3f}, {len(raced.pieces) * size} inputs"
            )
        return raced

    def _size(self) -> int:
        """Images of a batch, so that the first round takes a third of the time for racing."""

        def wanted() -> dict[str, int]:
            per_image = self._seconds(self.raced.candidates)
            fitting = self.runner.clock.left(RACED) / 3 / max(per_image, 1e-9)
            return {"size": int(min(self.runner.settings.batch, max(SMALLEST, fitting)))}

        return int(self.runner.decide("race-size", wanted)["size"])

    def _fitting(self, candidates: Sequence[Candidate]) -> int:
        """How many of them one small batch has time for."""

        def wanted() -> dict[str, int]:
            per_image = self._seconds(candidates) / max(1, len(candidates))
            fitting = self.runner.clock.left(RACED) / SMALLEST / max(per_image, 1e-9)
            return {"count": int(min(len(candidates), max(FEWEST, fitting)))}

        return int(self.runner.decide("race-count", wanted)["count"])

    def _seconds(self, candidates: Sequence[Candidate]) -> float:
        """Of one image by the exact path and by every candidate, with what looking at it takes."""
        costs = self.measured.costs
        assert costs is not None
        every = costs.exact_ms + sum(c.ms for c in candidates)
        every += costs.decode_ms * (1 + len(candidates))
        return 1.2 * every / costs.batch / 1000

    def standing(self, name: str) -> Standing:
        """How a candidate stands on the batches that it ran on."""
        seen = [piece.seen for piece in self.raced.pieces if name in piece.seen]
        losses = [
            per_image(seen, EXACT, key) - per_image(seen, name, key) for key in ("score", "smooth")
        ]
        loss = np.mean(losses, 0)  # two views of one quantity, of which the second has less noise
        root = math.sqrt(len(loss))
        error = math.hypot(float(loss.std()) / root, PRIOR * self.max_loss / root)
        ms = [[b[n].loop + b[n].decode for n in (EXACT, name)] for b in seen]
        speedup = median(exact / own for exact, own in ms)
        return Standing(float(loss.mean()), error, speedup, self._worse(seen, name))

    def _worse(self, seen: list[Batch], name: str) -> float:
        reference = self.runner.materials.quality.reference
        if reference is None:
            return 0.0
        exact, own = (per_image(seen, n, "features") for n in (EXACT, name))
        mean, low, _ = kid_loss(reference, exact, own)
        return float(1.96 * mean / max(mean - low, 1e-12))
