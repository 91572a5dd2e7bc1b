"""What a calibration is told, what it works with, and where its results go."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from stagevar_runtime.hub import output_beside
from stagevar_runtime.model.sampling import Sampling
from stagevar_runtime.options.low_rank import bases_path
from stagevar_runtime.pipeline import Pipeline
from stagevar_runtime.profile import Profile
from stagevar_runtime.profile.discovery import profile_path

from ..datasets.inputs import Inputs
from ..datasets.supply import Supply
from ..measure.costs import Costs, measure_costs
from ..measure.measurements import Measurements
from ..metrics.protocol import Quality
from ..solve.target import Target
from ..validate.verdict import Budget
from .clock import Now


@dataclass(frozen=True)
class Settings:
    """What a calibration is told. ``max_loss`` in the metric's units; see
    :class:`~stagevar_probe.solve.target.Target` for the others that say what is wanted.

    ``seconds``: the time for everything, None for what fits device and model. ``held_out``: inputs
    that a plan is proved with at most, None for as many as the time allows. ``others``: budgets of
    the metrics beside the first; ``also``: one of a kind of prompts.
    """

    max_loss: float
    min_speedup: float | None = None
    max_ms: float | None = None
    loss_asked: bool = False
    seed: int = 0
    batch: int = 16
    rank_images: int = 64
    repeats: int = 2
    quiet: bool = False
    seconds: float | None = None
    held_out: int | None = None
    others: tuple[Budget, ...] = ()
    also: Budget | None = None

    @property
    def target(self) -> Target:
        """What the plans shall reach."""
        return Target(self.max_loss, self.min_speedup, self.max_ms, self.loss_asked)


@dataclass(frozen=True)
class Materials:
    """What is drawn and how it is scored. ``inputs``: to measure with, at most; ``race`` and
    ``proof``: draws without end that share no seed, and where they can no prompt."""

    inputs: Inputs
    race: Supply
    proof: Supply
    sampling: Sampling
    quality: Quality


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


Report = Callable[[Path, Measurements, Profile, Pipeline, Inputs], None]


def _write_report(
    path: Path, measured: Measurements, profile: Profile, pipeline: Pipeline, inputs: Inputs
) -> None:
    from ..report.calibration import write_calibration  # draws with matplotlib, which takes seconds

    write_calibration(path, measured, profile, pipeline, inputs)


@dataclass(frozen=True)
class Tools:
    """What a calibration uses of the outside world, so that it can run on something else."""

    now: Now = time.monotonic
    costs: Callable[..., Costs] = measure_costs
    report: Report = _write_report
