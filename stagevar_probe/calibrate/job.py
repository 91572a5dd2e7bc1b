"""The job: measure, choose, prove on held-out inputs, write. Resumable; files whole or absent."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from functools import partial as bind
from pathlib import Path
from typing import Any

import numpy as np

import stagevar_runtime
from stagevar_runtime.hub import output_beside
from stagevar_runtime.loop.plan import EXACT, Plan, plan_for
from stagevar_runtime.model.sampling import Sampling
from stagevar_runtime.options.low_rank import Bases, bases_path, low_rank_of
from stagevar_runtime.pipeline import Pipeline
from stagevar_runtime.profile import PlanStep, Profile, write_profile
from stagevar_runtime.profile.discovery import profile_path
from stagevar_runtime.profile.fingerprint import schedule_name

from ..datasets.inputs import Inputs
from ..files import write_whole
from ..measure.chunk import measure_chunk
from ..measure.costs import Costs, measure_costs, time_generation
from ..measure.figures import Figures
from ..measure.hardware import hardware, peak_memory_mb
from ..measure.interventions import (
    PUBLISHED,
    Intervention,
    SearchSpace,
    default_interventions,
    default_space,
    possible,
)
from ..measure.measurements import Measurements, write_json
from ..measure.validation import Attempt, Validation
from ..metrics.protocol import Quality
from ..observe.pca import BASIS_IMAGES, measure_bases, measured_ranks
from ..progress import meter
from ..solve.build import frontier_point, problem_from, steps_of
from ..solve.candidates import CONTROL, cooler, cooler_helps, field, shortlist, stop_early
from ..solve.isotonic import disagreements
from ..solve.milp import Solution, frontier
from ..solve.target import BUDGETS, Target
from ..validate.run import dump_batch, observe_batch, parse_batch, summarise, warm_up
from .processes import ALONE, Processes
from .profile import build_profile
from .resume import ResumableWork

logger = logging.getLogger("stagevar_probe")

ATTEMPTS = 4  # times a plan is chosen again after it was too slow on fresh inputs
TRIALS = 4  # held-out checks at most, each on new seeds; the last is the exact path's
RACERS = 12  # generations a raced image: about two dozen faster plans, of which some leave early
PROBATION = 0.25  # share of the images after which hopeless interventions are given up


@dataclass(frozen=True)
class Settings:
    """What a calibration is told. ``max_loss`` in the metric's units; see
    :class:`~stagevar_probe.solve.target.Target` for the others that say what is wanted."""

    max_loss: float
    min_speedup: float | None = None
    max_ms: float | None = None
    loss_asked: bool = False
    seed: int = 0
    batch: int = 16
    rank_images: int = 64
    repeats: int = 3
    quiet: bool = False

    @property
    def target(self) -> Target:
        """What the plans shall reach."""
        return Target(self.max_loss, self.min_speedup, self.max_ms, self.loss_asked)


@dataclass(frozen=True)
class Outputs:
    """Where the results go."""

    profile: Path
    measurements: Path
    report: Path

    @classmethod
    def beside(cls, checkpoint: Path, output: Path | None = None) -> Outputs:
        """``model.stagevar.yaml`` and company beside ``model.pth``, or by the name ``output``."""
        if output is None:
            output = profile_path(output_beside(checkpoint))
        stem = output.name.removesuffix(".yaml")
        return cls(
            output,
            output.with_name(f"{stem}.measurements.json"),
            output.with_name(f"{stem}.report.html"),
        )

    @property
    def bases(self) -> Path:
        """What a profile with measured features is shipped with."""
        return bases_path(self.profile)

    @property
    def partial(self) -> Path:
        """The folder that holds an unfinished job."""
        return self.profile.with_name(f".{self.profile.name}.partial")


Proof = tuple[dict[str, tuple[PlanStep, ...]], Validation]
"""Plans by name, and what was found of them on held-out inputs and tried on the way."""


class CalibrationJob:
    """One calibration of one model."""

    def __init__(
        self,
        pipeline: Pipeline,
        inputs: Inputs,
        held_out: Inputs,
        sampling: Sampling,
        quality: Quality,
        settings: Settings,
        outputs: Outputs,
        ranks: Processes = ALONE,
    ) -> None:
        self.pipeline, self.model = pipeline, pipeline.model
        self.inputs, self.held_out = inputs, held_out
        self.sampling, self.quality = sampling, quality
        self.settings, self.outputs = settings, outputs
        self.target, self.partial = settings.target, ResumableWork(outputs.partial, ranks)
        self.space: SearchSpace = default_space(self.model.info, sampling, self.model.scales())
        scales = self.model.scales()
        every = default_interventions(self.space, scales)
        self.interventions: list[Intervention] = possible(
            self.space, every, self.model.info, sampling, scales
        )
        self.bases: Bases | None = None
        self.ranks = measured_ranks(
            self.space.steps(intervention, len(scales)) for intervention in self.interventions
        )

    # -- what will be done ---------------------------------------------------------------------

    def job(self) -> dict[str, Any]:
        """What is run, as it goes into the measurements; its hash names the partial state."""
        scales = self.model.scales()
        speed = {"min_speedup": self.target.min_speedup, "max_ms": self.target.max_ms}
        return {
            "checkpoint": self.pipeline.path.name,
            "family": self.model.info.family,
            "architecture": self.pipeline.fingerprint.architecture,
            "weights": self.pipeline.fingerprint.weights,
            "schedule_name": schedule_name(scales),
            "scales": [[s.height, s.width, s.tokens] for s in scales],
            "groups": [[g.start, g.stop] for g in self.model.info.groups],
            "inputs": {
                "name": self.inputs.name,
                "sha256": "sha256:" + self.inputs.sha256,
                "count": len(self.inputs),
                "held_out": len(self.held_out),
            },
            "seed": self.settings.seed,
            "batch": self.settings.batch,
            "sampling": asdict(self.sampling),
            "metric": self.quality.name,
            "features": self.quality.features.name,
            "likeness": self.quality.perceptual.likeness,
            "reference": self.quality.features.source,
            "max_loss": self.settings.max_loss,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "hardware": hardware(self.model),
            "version": stagevar_runtime.__version__,
            **{name: value for name, value in speed.items() if value is not None},
        }

    def work(self) -> dict[str, float]:
        """Model work before it starts, in full generations (loop FLOPs) an image.

        ``interventions``: how many interventions; ``generations``: calibration, an upper bound
        since hopeless interventions are given up; ``decodes``; ``held_out``: generations a held-out
        image.
        """
        from ..measure.flops import plan_flops

        scales, info = self.model.scales(), self.model.info
        exact = self._compiled(())
        whole = plan_flops(info, exact)
        total = whole * len(self.space.schedules)
        if self.ranks:
            total += whole * min(1.0, BASIS_IMAGES / len(self.inputs))
        for intervention in self.interventions:
            if intervention.scale:
                plan = self._compiled(self.space.steps(intervention, len(scales)))
                total += plan_flops(info, plan) - plan_flops(info, plan[: intervention.scale])
        return {
            "interventions": len(self.interventions),
            "generations": total / whole,
            "decodes": 1 + len(self.interventions) + len(scales),
            "held_out": 2.0 + len(BUDGETS),
        }

    def seconds(self, work: dict[str, float]) -> float:
        """About how long :meth:`run` will take, from two timed batches of the exact path."""
        part = self.inputs.chunk(0, self.settings.batch)
        timed = time_generation(
            self.model, part.condition(self.model), [self._compiled(())], self.sampling, 1
        )[0]
        loop, decode = timed["loop_ms"] / len(part), timed["decode_ms"] / len(part)
        measured = len(self.inputs) * (work["generations"] * loop + work["decodes"] * decode)
        runs = 1.5 * (1 + len(BUDGETS))  # of every held-out image; half of them race before
        if not self.target.by_speed:
            runs += 0.5 * RACERS
        proved = runs * len(self.held_out) * (loop + decode)
        return (measured + proved) / 1000 / self.partial.ranks.count

    def dry_run(self) -> dict[str, Any]:
        """One image through everything: seconds, memory, and what the whole job would take."""
        import time

        one = self.inputs.chunk(0, 1)
        begun = time.perf_counter()
        if self.ranks:
            self._use(measure_bases(self.model, one, self.sampling, self.ranks, 1))
        self._measure(one, self.interventions)
        seconds = time.perf_counter() - begun
        per_image = seconds
        return {
            **self.work(),
            "seconds_one_image": seconds,
            "seconds_estimate": per_image * len(self.inputs)
            + per_image * len(self.held_out) * self.work()["held_out"] / self.work()["generations"],
            "peak_memory_mb": peak_memory_mb(self.model),
        }

    # -- doing it --------------------------------------------------------------------------------

    def run(self, resume: bool = True) -> Profile:
        """Everything, from where an interrupted run stopped.

        Raises:
            CalibrationError: the partial state belongs to another job and ``resume`` was asked.
        """
        self._open(resume)
        measured = self._measured()
        measured.costs = self._costs()
        best = frontier(problem_from(measured, self.settings.max_loss))
        prove = self._meet if self.target.by_speed else self._race
        plans, found = prove(measured)
        measured.validation = replace(
            found,
            frontier=tuple(frontier_point(s, measured) for s in best),
            not_monotone=tuple(disagreements(measured)),
        )
        profile = build_profile(
            measured,
            plans,
            self.target.max_loss,
            self.target.met(found.plans["balanced"]),
            stagevar_runtime.__version__,
            datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            self.target,
        )
        if self.partial.ranks.first:
            write_json(self.outputs.measurements, measured.dump())
            self._report(measured, profile)
            self._write_bases(profile)
            write_profile(profile, self.outputs.profile)
        self.partial.close()
        return profile

    def _open(self, resume: bool) -> None:
        self.partial.open({k: v for k, v in self.job().items() if k != "hardware"}, resume)

    def _bases(self) -> None:
        """Measure the directions that interventions need, once for all processes; use them as
        shipped."""
        if not self.ranks:
            return
        path, weights = self.partial.folder / "bases.safetensors", self.pipeline.fingerprint.weights

        def measure() -> dict[str, Any]:
            found = measure_bases(
                self.model, self.inputs, self.sampling, self.ranks, self.settings.batch
            )
            write_whole(path, found.dump(weights))
            return {"scales": {str(k): rank for k, rank in self.ranks.items()}}

        self.partial.once("bases.json", measure)
        self._use(Bases.load(path, weights))

    def _use(self, bases: Bases) -> None:
        self.bases = bases
        low_rank_of(self.model).use(bases)

    def _write_bases(self, profile: Profile) -> None:
        """What the profile's plans need; a file of an earlier profile goes."""
        needed = measured_ranks(plan.steps for plan in profile.plans.values())
        if self.bases is not None and needed:
            kept = self.bases.cut(needed).dump(self.pipeline.fingerprint.weights)
            write_whole(self.outputs.bases, kept)
        else:
            self.outputs.bases.unlink(missing_ok=True)

    def _measure(
        self, part: Inputs, interventions: Sequence[Intervention], ranked: int = 1
    ) -> dict[str, Any]:
        return measure_chunk(
            self.model, part, self.space, interventions, self.sampling, self.quality, ranked
        )

    def _measured(self) -> Measurements:
        self._bases()
        size = self.settings.batch
        starts = list(range(0, len(self.inputs), size))
        trial = max(1, math.ceil(len(starts) * PROBATION))
        measured = Measurements(self.job(), self.space, self.interventions)
        interventions, first = self.interventions, 0
        with meter("measuring", len(self.inputs), self.settings.quiet) as tick:
            for begins in (starts[:trial], starts[trial:]):
                parts = [self.inputs.chunk(begin, size) for begin in begins]
                ranked = [max(0, min(size, self.settings.rank_images - b)) for b in begins]
                pieces = [
                    (f"chunk-{first + i:05d}.json", bind(self._measure, part, interventions, count))
                    for i, (part, count) in enumerate(zip(parts, ranked, strict=True))
                ]
                for chunk in self.partial.each(pieces, first, tick, size):
                    measured.add(chunk)
                first += len(begins)
                if first < len(starts):
                    interventions = self._survivors(measured)
        return measured

    def _survivors(self, measured: Measurements) -> list[Intervention]:
        """Interventions that could still fit the loosest budget, and those that the curves need."""
        limit = max(BUDGETS.values()) * self.settings.max_loss
        if self.target.by_speed:  # a fast enough plan may need what loses most
            return self.interventions
        kept = []
        for intervention in self.interventions:
            losses = measured.losses(intervention.name)
            lower = losses.mean() - 1.64 * losses.std() / np.sqrt(len(losses))
            curve = intervention.schedule == PUBLISHED and intervention.variant == "cond"
            if lower <= limit or curve or intervention.skip:
                kept.append(intervention)
        logger.info("%d of %d interventions go on", len(kept), len(self.interventions))
        return kept

    def _costs(self) -> Costs:
        def measure() -> dict[str, Any]:
            part = self.inputs.chunk(0, self.settings.batch)
            return measure_costs(
                self.model,
                part.condition(self.model),
                self.sampling,
                self.space.options,
                self.settings.repeats,
            ).dump()

        return Costs.parse(self.partial.once("costs.json", measure))

    def _race(self, measured: Measurements) -> Proof:
        """Candidates on fresh inputs, the fastest within budget on held-out ones.

        All are sampled cooler where that suits the exact path, which is tried first.
        Where the winner misses its target there, the next slower one that kept its budget is tried
        on held-out inputs with new seeds, and after the last the exact path; how often is recorded.
        """
        half = max(self.settings.batch, len(self.held_out) // 2)
        some = self._fresh(1, max(self.settings.batch, math.ceil(half * PROBATION)))
        tokens = [scale.tokens for scale in self.model.scales()]
        control = cooler((), tokens, self.sampling.temperature)
        tried = self._validate({CONTROL: control}, some, "sampling cooler", "cooler")[CONTROL]
        cool = cooler_helps(tried, self.settings.max_loss)
        candidates = field(measured, self.settings.max_loss, cool)
        logger.info("%d plans race, sampled %s", len(candidates), "cooler" if cool else "as exact")
        raced = self._validate(
            {c.name: c.steps for c in candidates},
            self._fresh(1, half),
            "racing plans",
            "race",
            bind(stop_early, max_loss=self.settings.max_loss),
        )
        images = max(figures.images for figures in raced.values())
        stayed = [c for c in candidates if raced[c.name].images == images]
        logger.info("%d of %d candidates ran to the end", len(stayed), len(candidates))
        order = shortlist(stayed, raced, self.settings.max_loss)
        order["balanced"] = order["balanced"][: TRIALS - 1]
        ran = [(CONTROL, 0.0, tried, control)]
        ran += [(c.name, c.loss, raced[c.name], c.steps) for c in candidates]
        attempts = [Attempt(steps, loss, figures, name) for name, loss, figures, steps in ran]
        for trial in range(TRIALS):
            chosen = {name: kept[0].steps if kept else () for name, kept in order.items()}
            figures = self._validate(
                chosen, self._fresh(2 * trial, len(self.held_out)), "held out", f"final-{trial}"
            )
            logger.info(
                "balanced on held-out inputs: loss %.4f [%.4f, %.4f], loop %.2fx",
                *figures["balanced"].loss,
                figures["balanced"].exact_loop_ms / figures["balanced"].loop_ms,
            )
            if self.target.met(figures["balanced"]) or not order["balanced"]:
                break
            order["balanced"] = order["balanced"][1:]  # in the end none: the exact path
        return chosen, Validation(figures, tuple(attempts), trials=trial + 1)

    def _fresh(self, number: int, count: int) -> Inputs:
        """The first held-out items with seeds of their own; number 0: as they are."""
        return replace(
            self.held_out,
            items=self.held_out.items[:count],
            seeds=tuple(s + number * 10_000_019 for s in self.held_out.seeds[:count]),
        )

    def _meet(self, measured: Measurements) -> Proof:
        """The least loss at the speed that was asked for, chosen again while it is too slow."""
        problem = problem_from(measured, self.settings.max_loss)
        assert measured.costs is not None
        attempts: list[Attempt] = []
        half = max(self.settings.batch, len(self.held_out) // 2)
        factor = 1.0
        solutions: dict[str, Solution] = {}
        for attempt in range(ATTEMPTS):
            solutions = self.target.choose(problem, measured.costs, factor)
            balanced = solutions["balanced"]
            steps = steps_of(balanced, measured)
            fresh = self._fresh(attempt + 1, half)
            figures = self._validate(
                {"balanced": steps}, fresh, f"checking plan {attempt + 1}", f"attempt-{attempt}"
            )["balanced"]
            attempts.append(Attempt(steps, balanced.loss, figures))
            if self.target.met(figures) or not balanced.feasible:
                break
            factor = self.target.harder(figures, factor)
        plans = {name: steps_of(solution, measured) for name, solution in solutions.items()}
        found = self._validate(plans, self.held_out, "held out", "final")
        return plans, Validation(found, tuple(attempts))

    def _compiled(self, steps: Sequence[PlanStep]) -> Plan:
        return plan_for(self.model, steps, self.sampling)

    def _validate(
        self,
        plans: dict[str, tuple[PlanStep, ...]],
        inputs: Inputs,
        label: str,
        name: str,
        stop_early: Callable[[Figures], bool] | None = None,
    ) -> dict[str, Figures]:
        """Figures of plans beside exact, batch by batch: pieces ``name-00000.json`` and on.

        ``hopeless``: says of a plan's figures, after a share of the batches, whether it is given
        up; its figures stay. Of so many plans exact alone is run to warm up: medians of times do
        not see one batch.
        """
        compiled = {EXACT: self._compiled(())}
        compiled |= {name: self._compiled(steps) for name, steps in plans.items()}
        size = self.settings.batch
        parts = [inputs.chunk(begin, size) for begin in range(0, len(inputs), size)]
        warm: list[bool] = []

        def observe(part: Inputs) -> dict[str, Any]:
            if not warm:
                first = {EXACT: compiled[EXACT]} if stop_early else compiled
                warm_up(self.model, parts[0], first, self.sampling)
                warm.append(True)
            seen = observe_batch(self.model, part, compiled, self.sampling, self.quality)
            return dump_batch(seen)

        pieces = [(f"{name}-{i:05d}.json", bind(observe, part)) for i, part in enumerate(parts)]
        trial = math.ceil(len(pieces) * PROBATION) if stop_early else 0
        given_up: dict[str, Figures] = {}
        with meter(label, len(inputs), self.settings.quiet) as tick:
            seen = list(map(parse_batch, self.partial.each(pieces[:trial], 0, tick, size)))
            if stop_early:
                early = summarise(self.model, compiled, seen, self.quality)
                given_up = {n: f for n, f in early.items() if n != EXACT and stop_early(f)}
                compiled = {n: plan for n, plan in compiled.items() if n not in given_up}
            seen += map(parse_batch, self.partial.each(pieces[trial:], trial, tick, size))
        return given_up | summarise(self.model, compiled, seen, self.quality)

    def _report(self, measured: Measurements, profile: Profile) -> None:
        from ..report.calibration import write_story

        write_story(self.outputs.report, measured, profile, self.pipeline, self.held_out)
