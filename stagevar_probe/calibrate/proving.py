"""The proof: finalists beside the exact path on fresh inputs, until one is shown to suffice.

Looks are at fixed shares of the planned inputs (:mod:`stagevar_probe.validate.sequential`). At each
a finalist that is shown to break the budget leaves, and one that can hardly be shown to keep it any
more; the next of the race takes its place, on inputs that are still to come. All is over when the
fastest that is left is shown to keep the budget, when none is left, or when the time is up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import median

import numpy as np
from numpy.typing import NDArray

from stagevar_runtime.loop.plan import EXACT
from stagevar_runtime.profile import PlanStep

from ..measure.validation import Evidence
from ..metrics.images import kid_loss
from ..solve.candidates import Candidate
from ..solve.target import BUDGETS
from ..validate.evidence import evidence_of, losses_of
from ..validate.run import Batch, per_image
from ..validate.sequential import ERROR, NORMAL, Control, critical_values, paired_bounds
from ..validate.verdict import UNPROVEN, Budget, Verdict
from .racing import Raced
from .runner import Piece, Runner

LOOKS = (0.25, 0.4, 0.55, 0.7, 0.85, 1.0)  # shares of the planned inputs
SHARES = (0.5, 0.3, 0.2)  # of the error: the favourite, and two that may follow
TOGETHER = 1  # finalists at a time: another takes more inputs from the first than it is worth
FUTILE = 0.15  # chance to come out well below which a finalist makes room for the next
FEWEST = 2  # rounds of a proof at least


@dataclass
class Finalist:
    """A plan on trial. ``error``: its share of the error of each end; ``begin``: the first input it
    ran on; ``left``: why it no longer runs."""

    name: str
    steps: tuple[PlanStep, ...]
    error: float
    begin: int = 0
    left: str | None = None
    looks: list[float] = field(default_factory=list)
    evidence: Evidence | None = None

    @property
    def verdict(self) -> Verdict:
        """What was shown of it."""
        return "unproven" if self.evidence is None else self.evidence.verdict


class Proof:
    """One proof. ``beside``: candidates for the other plans by name, which run on the first part of
    the inputs only, for their figures."""

    def __init__(self, runner: Runner, raced: Raced) -> None:
        settings, quality = runner.settings, runner.materials.quality
        self.runner, self.raced = runner, raced
        self.beside: dict[str, Candidate | None] = {
            name: raced.fastest(share * settings.max_loss)
            for name, share in BUDGETS.items()
            if name != "balanced"
        }
        self.budgets = [Budget(quality.name, settings.max_loss), *settings.others]
        if settings.also is not None:
            self.budgets.append(settings.also)
        self.waiting: list[Candidate] = raced.finalists(settings.max_loss)[: len(SHARES)]
        self.finalists: list[Finalist] = []
        self.pieces: list[Piece] = []
        self.planned = 0

    @property
    def count(self) -> int:
        """Inputs so far."""
        return sum(len(piece.inputs) for piece in self.pieces)

    @property
    def running(self) -> list[Finalist]:
        """Finalists that still run."""
        return [finalist for finalist in self.finalists if finalist.left is None]

    def run(self) -> None:
        """To the end, or as far as the time goes. What is known is in ``finalists`` at any time."""
        runner, size = self.runner, self.runner.settings.batch
        self._fill()
        planned = runner.decide("proof", lambda: {"inputs": self._planned(size)})
        self.planned = planned["inputs"]
        looks = [math.ceil(share * self.planned) for share in LOOKS]
        while (self.running or not self.pieces) and self.count < self.planned:
            enough = len(self.pieces) >= FEWEST * runner.count
            if enough and not runner.time_for(f"proof-go-{self.count:06d}", self.pieces):
                break
            self._round(min(size, self.planned - self.count))
            if any(self.count >= n > self.count - size * runner.count for n in looks):
                self.look()
                self._fill()
        self.look(final=True)

    def _round(self, size: int) -> None:
        runner, supply = self.runner, self.runner.materials.proof
        plans = {EXACT: self.raced.plans[EXACT]}
        names = [finalist.name for finalist in self.running]
        if self.count < LOOKS[0] * self.planned:
            names += [candidate.name for candidate in self.beside.values() if candidate]
        plans |= {name: self.raced.plans[name] for name in names}
        self.pieces += runner.round("proof", plans, supply, self.count, size)
        runner.say(self.progress())

    def _fill(self) -> None:
        while self.waiting and len(self.running) < TOGETHER:
            candidate = self.waiting.pop(0)
            error = ERROR * SHARES[len(self.finalists)]
            self.finalists.append(Finalist(candidate.name, candidate.steps, error, self.count))

    def _planned(self, size: int) -> int:
        """Inputs that the time allows, from how long the race took with its plans."""
        runner = self.runner
        if not self.raced.pieces:
            return size * runner.count
        names = [EXACT, *(finalist.name for finalist in self.running)]
        seconds = {n: median(self._per_image(n)) for n in names}
        looking = median(
            (p.seconds - sum(s.loop + s.decode for s in p.seen.values()) / 1000)
            / len(p.inputs)
            / len(p.seen)
            for p in self.raced.pieces
        )
        per_input = sum(seconds.values()) + looking * len(names)
        extra = {candidate.name for candidate in self.beside.values() if candidate} - set(names)
        beside = LOOKS[0] * sum(median(self._per_image(name)) + looking for name in extra)
        fitting = runner.clock.left() * runner.count / max(per_input + beside, 1e-9)
        most = runner.settings.held_out or math.inf
        step = size * runner.count
        rounds = max(1, math.floor(min(fitting, most) / step), math.ceil(min(most, step) / step))
        return int(min(rounds * step, max(step, most)))

    def _per_image(self, name: str) -> list[float]:
        return [
            (piece.seen[name].loop + piece.seen[name].decode) / 1000 / len(piece.inputs)
            for piece in self.raced.pieces
            if name in piece.seen
        ]

    def look(self, final: bool = False) -> None:
        """Bounds of every finalist, and who leaves. ``final``: all of the error is spent."""
        for finalist in self.running:
            pieces = [piece for piece in self.pieces if finalist.name in piece.seen]
            if sum(len(piece.inputs) for piece in pieces) < 2:
                continue
            room = max(1, self.planned - finalist.begin)
            share = min(1.0, sum(len(piece.inputs) for piece in pieces) / room)
            if not finalist.looks or share > finalist.looks[-1]:
                finalist.looks.append(share)
            critical = critical_values(finalist.looks, finalist.error, final)[-1]
            finalist.evidence = self._evidence(finalist, pieces, critical)
        for finalist in self.running:
            self._judge(finalist)

    def _evidence(self, finalist: Finalist, pieces: Sequence[Piece], critical: float) -> Evidence:
        return evidence_of(
            [(piece.inputs, piece.seen) for piece in pieces],
            finalist.name,
            self.budgets,
            critical,
            self._control(pieces),
            self.runner.materials.proof.tags,
        )

    def _judge(self, finalist: Finalist) -> None:
        found = finalist.evidence
        if found is None:
            return
        if found.verdict is False:
            finalist.left = "shown to break the budget"
        elif found.verdict is True:
            finalist.left = "shown to keep the budget"
            for other in self.running:
                if self._ms(other.name) >= self._ms(finalist.name):
                    other.left = f"{finalist.name} is faster and shown to keep the budget"
            faster = [c for c in self.waiting if c.ms < self._predicted(finalist.name)]
            self.waiting = faster
        elif len(self.running) > 1 or self.waiting:
            if self._chance(finalist) < FUTILE:
                finalist.left = "hardly to come out within the budget"

    def _control(self, pieces: Sequence[Piece]) -> Control:
        """The exact path's own scores, on a finalist's inputs and on all."""

        def table(of: Sequence[Piece]) -> NDArray[np.float64]:
            seen = [piece.seen for piece in of]
            return np.stack([per_image(seen, EXACT, key) for key in ("smooth", "score")], 1)

        every = table(self.pieces)
        return Control(table(pieces), every.mean(0), len(every))

    def _chance(self, finalist: Finalist) -> float:
        """The chance that what is still to come shows it to keep the budget; where so few inputs
        show nothing of any plan, that its estimate keeps the budget in the end.

        What is to come is expected to lose what was lost so far, smoothed or not: two views of one
        quantity, of which the second has less noise.
        """
        pieces = [piece for piece in self.pieces if finalist.name in piece.seen]
        seen, budget = [piece.seen for piece in pieces], self.budgets[0]
        losses = losses_of(seen, finalist.name)
        both = np.concatenate([_both(batch, finalist.name) for batch in seen])
        n, ahead = len(losses), max(1, self.planned - finalist.begin)
        left = max(ahead - n, 1e-9)
        spread, known = (math.sqrt(float(x.var()) + 1 / n) for x in (losses, both))
        half = 1.2 * critical_values([1.0], finalist.error, True)[0] * spread / math.sqrt(ahead)
        shown = min(budget.max_loss, budget.limit - half)
        needed = shown if shown > 0 else budget.max_loss
        expected = (n * float(losses.mean()) + left * float(both.mean())) / ahead
        error = math.hypot(spread * math.sqrt(left), known * left / math.sqrt(n)) / ahead
        return float(NORMAL.cdf((needed - expected) / error))

    def _ms(self, name: str) -> float:
        pieces = self._pieces(name)
        return median(p.seen[name].loop + p.seen[name].decode for p in pieces)

    def _pieces(self, name: str) -> list[Piece]:
        """The inputs of the proof that a plan ran on; those of the race where there are none."""
        own = [piece for piece in self.pieces if name in piece.seen]
        return own or [piece for piece in self.raced.pieces if name in piece.seen]

    def _predicted(self, name: str) -> float:
        return next(c.ms for c in self.raced.candidates if c.name == name)

    def best(self) -> Finalist | None:
        """The fastest that is shown to keep the budget, else the fastest that may and whose
        estimate does: of the finalists, else of those that ran beside them, else of those that
        waited. None where every one is shown, or seems, to break it."""
        known = {finalist.name for finalist in self.finalists}
        beside = [c for c in self.beside.values() if c and c.name not in known]
        for found in (self.finalists, self._unproven(beside), self._unproven(self.waiting)):
            good = [f for f in found if f.evidence is not None and not self._worse(f.name)]
            for wanted in (True, "unproven"):
                own = [f for f in good if f.verdict == wanted and self._keeps(f)]
                if own:
                    return min(own, key=lambda f: self._ms(f.name))
        return None

    def _keeps(self, finalist: Finalist) -> bool:
        """Whether its estimates keep the budgets; of the first one also the mean with the smoothed
        loss, which says more of few inputs than passes do."""
        both = [_both(piece.seen, finalist.name) for piece in self._pieces(finalist.name)]
        found = finalist.evidence
        seems = float(np.concatenate(both).mean()) <= self.budgets[0].max_loss
        return found is not None and found.keeps and (seems or found.verdict is True)

    def chosen(self, best: Finalist | None) -> dict[str, Finalist | Candidate | None]:
        """What every plan of the profile is, ``best`` being ``balanced``; none: the exact path.

        None is slower than a gentler one: where a race of few inputs says so, they are one plan.
        """
        out: dict[str, Finalist | Candidate | None] = {**self.beside, "balanced": best}
        gentle, fast = self.beside["quality"], self.beside["fast"]
        if best is not None:
            if gentle is not None and self._ms(gentle.name) < self._ms(best.name):
                out["quality"] = best
            if fast is None or self._ms(fast.name) > self._ms(best.name):
                out["fast"] = best
        return out

    def _unproven(self, candidates: Sequence[Candidate]) -> list[Finalist]:
        """Plans that ran for their figures alone, so that nothing can be shown of them."""
        out = []
        for candidate in candidates:
            made, pieces = (
                Finalist(candidate.name, candidate.steps, 0.0),
                self._pieces(candidate.name),
            )
            if sum(len(piece.inputs) for piece in pieces) > 1:
                made.evidence = replace(self._evidence(made, pieces, 4.0), verdict=UNPROVEN)
            out.append(made)
        return out

    def adopt_race(self) -> None:
        """Take what the race saw for the inputs of the proof: nothing is shown, but it is known."""
        self.pieces = self.raced.pieces
        finalists = self.raced.finalists(self.runner.settings.max_loss)[:TOGETHER]
        self.finalists = self._unproven(finalists)

    def _worse(self, name: str) -> bool:
        """Whether the distribution is significantly worse on the inputs it ran on."""
        reference = self.runner.materials.quality.reference
        if reference is None:
            return False
        seen = [piece.seen for piece in self._pieces(name)]
        exact, own = (per_image(seen, n, "features") for n in (EXACT, name))
        return bool(len(own) > 1 and kid_loss(reference, exact, own).low > 0)

    def progress(self) -> str:
        """What is known so far, in a line."""
        if not self.running:
            return f"{self.count} inputs"
        name = min((f.name for f in self.running), key=self._ms)
        seen = [piece.seen for piece in self.pieces if name in piece.seen]
        losses = losses_of(seen, name)
        critical = critical_values([1.0], ERROR * SHARES[0], True)[0]
        bounds = paired_bounds(losses, (critical, critical))
        speedup = self._ms(EXACT) / self._ms(name)
        half = (bounds.high - bounds.low) / 2
        return f"{speedup:.1f}x at {bounds.mean:.3f} ± {half:.3f}, {len(losses)} inputs"


def _both(batch: Batch, name: str) -> NDArray[np.float64]:
    """The mean of an image's loss and its smoothed loss: two views of one quantity."""
    lost = [per_image([batch], EXACT, k) - per_image([batch], name, k) for k in ("score", "smooth")]
    return np.asarray(np.mean(lost, 0))
