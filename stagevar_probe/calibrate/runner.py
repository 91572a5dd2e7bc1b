"""Runs plans on batches as pieces of the job: made once, by one process, kept with their time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from stagevar_runtime.loop.plan import EXACT, Plan, plan_for
from stagevar_runtime.pipeline import Pipeline
from stagevar_runtime.profile import PlanStep

from ..datasets.inputs import Inputs
from ..datasets.supply import Supply
from ..measure.figures import Figures
from ..validate.run import Batch, dump_batch, observe_batch, parse_batch, summarise, warm_up
from .clock import CLOSING, Clock
from .resume import ResumableWork
from .settings import Materials, Settings

Say = Callable[[str], None]


@dataclass(frozen=True)
class Piece:
    """One batch drawn by several plans: its inputs, what was seen, and how long it took."""

    inputs: Inputs
    seen: Batch
    seconds: float


class Runner:
    """The model with everything that runs plans on it, the job's folder and its clock."""

    def __init__(
        self,
        pipeline: Pipeline,
        materials: Materials,
        settings: Settings,
        work: ResumableWork,
        clock: Clock,
    ) -> None:
        self.pipeline, self.model = pipeline, pipeline.model
        self.materials, self.settings = materials, settings
        self.work, self.clock = work, clock
        self.say: Say = lambda text: None
        self._warm = False

    @property
    def count(self) -> int:
        """Processes that share the work."""
        return self.work.processes.count

    def compiled(self, steps: Sequence[PlanStep]) -> Plan:
        """Steps as the model runs them."""
        return plan_for(self.model, steps, self.materials.sampling)

    def decide(self, name: str, make: Callable[[], Mapping[str, Any]]) -> Any:
        """What the first process decides by its clock, for all processes and for a run that goes
        on; the time that was spent by then counts there, too."""

        def decided() -> dict[str, Any]:
            return {**make(), "spent": self.clock.spent}

        found = self.work.once(f"{name}.json", decided)
        self.clock.resume(found["spent"])
        return found

    def round(
        self, stage: str, plans: Mapping[str, Plan], supply: Supply, begin: int, size: int
    ) -> list[Piece]:
        """A batch of ``size`` draws for every process, from number ``begin`` on, by all plans."""
        starts = [begin + i * size for i in range(self.count)]
        parts = [supply.part(start, size) for start in starts]
        pieces = [
            (f"{stage}-{start:06d}.json", partial(self._observe, part, plans))
            for start, part in zip(starts, parts, strict=True)
        ]
        found = self.work.each(pieces)
        return [
            Piece(part, parse_batch(data["batch"]), data["seconds"])
            for part, data in zip(parts, found, strict=True)
        ]

    def time_for(self, name: str, pieces: Sequence[Piece], until: float = 1 - CLOSING) -> bool:
        """Whether another round like the last is over before a share of the time is; the first
        process decides."""
        last = max(piece.seconds for piece in pieces[-self.count :])
        return bool(self.decide(name, lambda: {"go": self.clock.left(until) > last})["go"])

    def _observe(self, part: Inputs, plans: Mapping[str, Plan]) -> dict[str, Any]:
        sampling, quality = self.materials.sampling, self.materials.quality
        if not self._warm:  # medians of times do not see one batch, so exact alone
            warm_up(self.model, part, {EXACT: plans[EXACT]}, sampling)
            self._warm = True
        begun = self.clock.spent
        seen = observe_batch(self.model, part, plans, sampling, quality)
        return {"seconds": self.clock.spent - begun, "batch": dump_batch(seen)}

    def figures(self, pieces: Sequence[Piece], plans: Mapping[str, Plan]) -> dict[str, Figures]:
        """Figures of every plan, each from the batches that it ran on."""
        found: dict[str, Figures] = {}
        for name, plan in plans.items():
            seen = [piece.seen for piece in pieces if name in piece.seen]
            if seen:
                found |= summarise(self.model, {name: plan}, seen, self.materials.quality)
        return found
