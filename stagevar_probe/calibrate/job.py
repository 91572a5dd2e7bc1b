"""The job: measure, choose, prove, write; within a time. Resumable; files whole or absent."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from typing import Any

import stagevar_runtime
from stagevar_runtime.loop.plan import EXACT
from stagevar_runtime.pipeline import Pipeline
from stagevar_runtime.profile import PlanStep, Profile, write_profile
from stagevar_runtime.profile.fingerprint import schedule_name

from ..measure.description import JobDescription, JobInputs, ScaleSize
from ..measure.hardware import dtype_name, hardware, peak_memory_mb
from ..measure.interventions import (
    Intervention,
    SearchSpace,
    default_interventions,
    default_space,
    fewest_bits,
    possible,
)
from ..measure.measurements import Measurements, write_json
from ..measure.validation import Validation
from ..observe.pca import measured_ranks
from ..progress import duration, timed
from ..solve.build import frontier_point, problem_from
from ..solve.isotonic import disagreements
from ..solve.milp import frontier
from ..validate.verdict import Verdict
from .clock import Clock, default_seconds
from .directions import Directions
from .forecast import Work, exact_seconds, interventions_work
from .identity import identity
from .measuring import Measuring
from .meeting import meet_speed
from .processes import ALONE, Processes
from .profile import build_profile
from .proving import Proof
from .racing import Race, Raced
from .resume import ResumableWork
from .runner import Runner
from .settings import Materials, Outputs, Settings, Tools

logger = logging.getLogger("stagevar_probe")

Steps = tuple[PlanStep, ...]


@dataclass(frozen=True)
class Choice:
    """The plans by name, what was found of them, and whether ``balanced`` meets the target."""

    plans: Mapping[str, Steps]
    validation: Validation
    verdict: Verdict


class CalibrationJob:
    """One calibration of one model."""

    def __init__(
        self,
        pipeline: Pipeline,
        materials: Materials,
        settings: Settings,
        outputs: Outputs,
        processes: Processes = ALONE,
        tools: Tools | None = None,
    ) -> None:
        self.pipeline, self.model = pipeline, pipeline.model
        self.materials, self.settings, self.outputs = materials, settings, outputs
        self.tools = tools or Tools()
        self.target, self.work = settings.target, ResumableWork(outputs.partial, processes)
        self.clock = Clock(settings.seconds or 0.0, self.tools.now)
        self.runner = Runner(pipeline, materials, settings, self.work, self.clock)
        scales, sampling = self.model.scales(), materials.sampling
        self.space: SearchSpace = default_space(
            self.model.info, sampling, scales, fewest_bits(self.model)
        )
        every = default_interventions(self.space, scales)
        self.interventions: list[Intervention] = possible(
            self.space, every, self.model.info, sampling, scales
        )
        self.measuring = Measuring(self.runner, self.space, self.interventions, self.tools.costs)
        needed = measured_ranks(self.space.steps(i, len(scales)) for i in self.interventions)
        self.directions = Directions(self.runner, needed)

    # -- what will be done ---------------------------------------------------------------------

    def description(self) -> JobDescription:
        """What is run, as it goes into the measurements; its hash names the partial state."""
        info, quality, inputs = self.model.info, self.materials.quality, self.materials.inputs
        asked, scales = self.settings, self.model.scales()
        return JobDescription(
            checkpoint=self.pipeline.path.name,
            family=info.family,
            architecture=self.pipeline.fingerprint.architecture,
            weights=self.pipeline.fingerprint.weights,
            tokenizer=self.pipeline.fingerprint.tokenizer,
            classes=info.classes,
            schedule_name=schedule_name(scales),
            scales=tuple(ScaleSize(s.height, s.width, s.tokens) for s in scales),
            groups=tuple((group.start, group.stop) for group in info.groups),
            inputs=JobInputs(
                inputs.name, "sha256:" + inputs.sha256, len(inputs), asked.held_out or 0
            ),
            seed=asked.seed,
            batch=asked.batch,
            sampling=self.materials.sampling,
            metric=quality.name,
            features=quality.features.name,
            likeness=quality.perceptual.likeness,
            reference=quality.features.source,
            max_loss=asked.max_loss,
            dtype=dtype_name(self.model),
            hardware=hardware(self.model),
            version=stagevar_runtime.__version__,
            min_speedup=asked.min_speedup,
            max_ms=asked.max_ms,
            beside=tuple(asdict(b) for b in (*asked.others, asked.also) if b is not None),
        )

    def measuring_work(self) -> Work:
        """Model work per image of a first round of measuring."""
        return interventions_work(self.runner, self.space, self.interventions)

    def trial(self) -> dict[str, Any]:
        """One image through everything: its seconds, memory, and the time the whole job has."""
        one = self.materials.inputs.chunk(0, 1)
        begun = self.tools.now()
        self.directions.try_one()
        self.measuring.chunk(one, self.interventions)
        seconds = self.tools.now() - begun
        work = self.measuring_work()
        return {
            "interventions": work.interventions,
            "generations": work.generations,
            "seconds_one_image": seconds,
            "seconds_estimate": self._seconds(exact_seconds(self.runner)),
            "peak_memory_mb": peak_memory_mb(self.model),
        }

    # -- doing it --------------------------------------------------------------------------------

    def run(self, resume: bool = True) -> Profile:
        """Everything, from where an interrupted run stopped.

        Interrupted once there is a plan, the best so far is written with its evidence before the
        interruption goes on; what was measured is kept for a run that goes on.

        Raises:
            CalibrationError: the partial state belongs to another job and ``resume`` was asked.
        """
        self.work.open(self._marked(), resume)
        per_image = self._begin()
        with timed(self.clock.seconds, self.settings.quiet) as show:
            self.runner.say = lambda text: show(text, self.clock.spent)
            self.directions.measure()
            measured = Measurements(
                job=self.description(), space=self.space, interventions=self.interventions
            )
            self.measuring.run(measured, per_image)
            measured.costs = self.measuring.costs(per_image)
            if self.target.by_speed:
                choice = Choice(*meet_speed(self.runner, measured))
            else:
                choice = self._choose(measured)
        profile = self._write(measured, choice)
        self.work.close()
        return profile

    def _marked(self) -> dict[str, Any]:
        marked = {k: v for k, v in self.description().dump().items() if k != "hardware"}
        own = identity(self.pipeline, self.materials.quality, self.materials.inputs)
        return {**marked, "seconds": self.settings.seconds, **own}

    def _begin(self) -> float:
        """Start the clock, say how long it runs; seconds of one image by the exact path."""

        def measure() -> dict[str, Any]:
            per_image = exact_seconds(self.runner)
            return {"per_image": per_image, "seconds": self._seconds(per_image)}

        found = self.runner.decide("time", measure)
        self.clock.seconds = found["seconds"]
        logger.info(
            "%s; %d interventions; %s at most, %s so far",
            self.target.description(self.materials.quality.name),
            len(self.interventions),
            duration(found["seconds"]),
            duration(self.clock.spent),
        )
        return float(found["per_image"])

    def _seconds(self, per_image: float) -> float:
        asked = self.settings.seconds
        return asked or default_seconds(self.model.device.type, per_image)

    def _choose(self, measured: Measurements) -> Choice:
        """Race, prove, choose; what is known so far is written where that is interrupted."""
        race, proof = Race(self.runner, measured), None
        try:
            race.enter()
            raced = race.run()
            proof = Proof(self.runner, raced)
            proof.run()
        except KeyboardInterrupt:
            if self.work.processes.count == 1 and race.raced.standings:
                self._write(measured, self._conclude(measured, race.raced, proof))
                logger.warning("interrupted: the best plan so far is in %s", self.outputs.profile)
            raise
        return self._conclude(measured, raced, proof)

    def _conclude(self, measured: Measurements, raced: Raced, proof: Proof | None) -> Choice:
        """The plans that are best by what is known, with figures from the inputs they ran on."""
        if proof is None or not proof.pieces:  # interrupted before
            proof = Proof(self.runner, raced)
            proof.adopt_race()
        best = proof.best()
        chosen: dict[str, Steps] = {name: () for name in ("quality", "balanced", "fast")}
        of: dict[str, str] = dict.fromkeys(chosen, EXACT)
        for name, candidate in proof.chosen(best).items():
            if candidate is not None:
                chosen[name], of[name] = candidate.steps, candidate.name
        races = self.runner.figures(raced.pieces, raced.plans)
        figures = races | self.runner.figures(
            proof.pieces, {n: raced.plans[n] for n in (EXACT, *of.values())}
        )
        evidence = {f.name: f.evidence for f in proof.finalists if f.evidence is not None}
        if best is not None and best.evidence is not None:
            evidence["balanced"] = best.evidence
        validation = Validation(
            {EXACT: figures[EXACT], **{n: figures[own] for n, own in of.items() if own in figures}},
            tuple(raced.attempts(races)),
            evidence=evidence,
            seconds={"announced": self.clock.seconds, "taken": self.clock.spent},
        )
        return Choice(chosen, validation, True if best is None else best.verdict)

    def _write(self, measured: Measurements, choice: Choice) -> Profile:
        """Write everything, the profile last."""
        best = frontier(problem_from(measured, self.settings.max_loss))
        measured.validation = replace(
            choice.validation,
            frontier=tuple(frontier_point(s, measured) for s in best),
            not_monotone=tuple(disagreements(measured)),
        )
        now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        profile = build_profile(measured, choice.plans, self.target, choice.verdict, now)
        if self.work.processes.first:
            write_json(self.outputs.measurements, measured.dump())
            shown = self.materials.proof.part(0, self.settings.batch)
            self.tools.report(self.outputs.report, measured, profile, self.pipeline, shown)
            self.directions.write(self.outputs.bases, profile)
            write_profile(profile, self.outputs.profile)
        return profile
