"""What a command ran, as its files keep it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, NamedTuple

import stagevar_runtime
from stagevar_runtime.model.sampling import Sampling
from stagevar_runtime.pipeline import Pipeline
from stagevar_runtime.profile.fingerprint import schedule_name

from ..datasets.inputs import Inputs
from ..metrics.protocol import Quality
from .hardware import Hardware, dtype_name, hardware

SPARED = (
    "tokenizer",
    "classes",
    "min_speedup",
    "max_ms",
    "beside",
)  # a file that was not asked for them lacks them


class ScaleSize(NamedTuple):
    """One scale of the schedule, in tokens."""

    height: int
    width: int
    tokens: int


@dataclass(frozen=True)
class JobInputs:
    """``count`` inputs that were measured; ``held_out``: asked for to prove plans with, 0 for as
    many as the time allows."""

    name: str
    sha256: str
    count: int
    held_out: int


@dataclass(frozen=True, kw_only=True)
class JobDescription:
    """Model, inputs, sampling, metric, budgets and machine of one calibration.

    ``groups``: first and last + 1 block of each. ``features``, ``likeness``: what the metric and
    the structural curve look through; ``reference``: where real pictures are from. Older files
    know none of the three, nor ``tokenizer`` (its hash) and ``classes`` (0 without labels).
    ``beside``: budgets beside the first.
    """

    checkpoint: str
    family: str
    architecture: str
    weights: str
    tokenizer: str | None = None
    classes: int | None = None
    schedule_name: str
    scales: tuple[ScaleSize, ...]
    groups: tuple[tuple[int, int], ...]
    inputs: JobInputs
    seed: int
    batch: int
    sampling: Sampling
    metric: str
    features: str | None = None
    likeness: str | None = None
    reference: str | None = None
    max_loss: float
    dtype: str
    hardware: Hardware
    version: str
    min_speedup: float | None = None
    max_ms: float | None = None
    beside: tuple[Mapping[str, Any], ...] = ()

    @property
    def scale_names(self) -> list[str]:
        """``1x1``, ``2x2``, ..."""
        return [f"{scale.height}x{scale.width}" for scale in self.scales]

    def dump(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            name: x for name, x in asdict(self).items() if x not in (None, ()) or name not in SPARED
        }

    @classmethod
    def parse(cls, data: Mapping[str, Any]) -> JobDescription:
        """The inverse of :meth:`dump`.

        Raises:
            AttributeError, StagevarError, TypeError, ValueError: it is damaged.
        """
        for part in fields(cls):
            if part.default is MISSING and part.name not in data:
                raise ValueError(f"nothing about {part.name}")
        return cls(
            **{part.name: data[part.name] for part in fields(cls) if part.name in data}
            | {
                "scales": tuple(ScaleSize(*size) for size in data["scales"]),
                "groups": tuple((begin, end) for begin, end in data["groups"]),
                "inputs": JobInputs(**data["inputs"]),
                "sampling": Sampling(**data["sampling"]),
                "hardware": dict(data["hardware"]),
                "beside": tuple(data.get("beside", ())),
            }
        )


@dataclass(frozen=True)
class RunDescription:
    """What a comparison or an evaluation ran. ``own``: what only an evaluation says."""

    checkpoint: str
    family: str
    schedule: str
    weights: str
    inputs: str
    seed: int
    sampling: Sampling
    metric: str
    features: str
    likeness: str
    reference: str | None
    dtype: str
    hardware: Hardware
    version: str
    own: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        pipeline: Pipeline,
        inputs: Inputs,
        seed: int,
        sampling: Sampling,
        quality: Quality,
        **own: str,
    ) -> RunDescription:
        """Of a run with these; ``seed``: of inputs and noise."""
        model = pipeline.model
        return cls(
            pipeline.path.name,
            model.info.family,
            schedule_name(model.scales()),
            pipeline.fingerprint.weights,
            f"{inputs.name}, sha256:{inputs.sha256}",
            seed,
            sampling,
            quality.name,
            quality.features.name,
            quality.perceptual.likeness,
            quality.features.source,
            dtype_name(model),
            hardware(model),
            stagevar_runtime.__version__,
            own,
        )

    def dump(self) -> dict[str, Any]:
        """JSON-ready."""
        out = asdict(self)
        return {**out, **out.pop("own")}
