"""What a profile may say: the pydantic models behind its YAML, checked at the file boundary."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    StringConstraints,
    model_validator,
)

from ..errors import ProfileError
from ..kernels.quantised import Precision
from ..model.inputs import LARGEST, SEEDS
from ..model.sampling import COLDEST, MOST_KEPT
from ..options.asked import FeatureOption, Model, Ratio, TokenOption

Guidance = Literal["full", "cond", "null", "delta"]
RESERVED = "exact"  # the published generation, which no plan may be called
ROUNDING = 1e-5  # of a figure, that it may lie outside its own interval


def _printable(text: str) -> str:
    if not text.isprintable() or not text.strip():
        raise ValueError(
            f"got {text[:40]!a}, expected text of one line, without control characters"
        )
    return text


def _plan_name(name: str) -> str:
    if name == RESERVED:
        raise ValueError(f"got a plan called {name!r}, which is the exact path's name")
    return _printable(name)


def _ordered(interval: tuple[float, float]) -> tuple[float, float]:
    if interval[0] > interval[1]:
        raise ValueError(f"got {list(interval)}, expected the lower end first")
    return interval


Interval = Annotated[tuple[float, float], AfterValidator(_ordered)]
ScaleInterval = Annotated[tuple[NonNegativeInt, NonNegativeInt], AfterValidator(_ordered)]
Hash = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
Schedule = Annotated[tuple[tuple[PositiveInt, PositiveInt], ...], Field(min_length=1)]
PerBatch = NonNegativeFloat | Annotated[tuple[NonNegativeFloat, ...], Field(min_length=1)]
Name = Annotated[str, AfterValidator(_printable), Field(max_length=200)]
PlanName = Annotated[str, AfterValidator(_plan_name), Field(max_length=200)]
Strength = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]  # of guidance
Strengths = Annotated[tuple[Strength, ...], Field(min_length=1)]
Temperature = Annotated[float, Field(ge=COLDEST, le=LARGEST)]
Kept = Annotated[int, Field(ge=0, le=MOST_KEPT)]  # the most likely of the logits
Seed = Annotated[int, Field(ge=0, lt=SEEDS)]
Shares = Annotated[tuple[Annotated[float, Field(ge=0, le=1)], ...], Field(min_length=1)]
Directions = Annotated[tuple[NonNegativeFloat, ...], Field(min_length=1)]


def _check_inside(name: str, value: float | None, interval: tuple[float, float] | None) -> None:
    if value is None or interval is None:
        return
    slack = ROUNDING * max(map(abs, (value, *interval)))
    if not interval[0] - slack <= value <= interval[1] + slack:
        raise ValueError(f"got {name} {value:g}, expected it in its interval {list(interval)}")


class PlanStep(Model):
    """What changes at one scale. ``guidance`` None: as at the scale before; the others are for
    this scale alone, None being the exact path's.

    ``guidance``: ``full`` runs both branches, ``cond`` and ``null`` one alone, ``delta`` cond with
    the last guided scale's difference to null. ``guidance_scale`` is the textbook strength w of
    ``w·cond + (1 - w)·null``; 1 is off. ``null_keep``: the share of the tokens that are guided, and
    so run in the null branch; from then on a scale without it runs cond alone. ``precision``:
    of the blocks' matrix products, in place of the model's dtype.
    """

    layout = "terse"
    scale: NonNegativeInt
    run: Literal["full", "skip"] = "full"
    guidance: Guidance | None = None
    guidance_scale: Strength | None = None
    null_keep: Ratio | None = None
    temperature: Temperature | None = None
    tokens: TokenOption | None = None
    features: FeatureOption | None = None
    precision: Precision | None = None

    @model_validator(mode="after")
    def _consistent(self) -> PlanStep:
        names = [name for name in type(self).model_fields if name not in ("scale", "run")]
        given = [name for name in names if getattr(self, name) is not None]
        if self.run == "skip" and given:
            raise ValueError(
                f"got {', '.join(given)} at skipped scale {self.scale}, expected run: skip alone"
            )
        return self


class Expected(Model):
    """Held-out figures of a plan against the exact path. Lists: one value for each of ``batch``.

    ``loss`` is in the units of ``metric``; ``loss_bounds`` are the ends that the verdict rests on,
    valid though they were looked at on the way. ``loop`` leaves out text encoding and decoding.
    """

    metric: str | None = None
    loss: float | None = None
    loss_ci95: Interval | None = None
    loss_bounds: Interval | None = None
    speedup_loop: PerBatch | None = None
    speedup_total: PerBatch | None = None
    ms_loop: PerBatch | None = None
    ms_total: PerBatch | None = None
    batch: PositiveInt | tuple[PositiveInt, ...] | None = None
    images: PositiveInt | None = None

    @model_validator(mode="after")
    def _inside(self) -> Expected:
        _check_inside("loss", self.loss, self.loss_ci95)
        return self


class PlanEntry(Model):
    """What to do at which scale; scales that no step names run in full, with the rows left.

    ``unproven``: somebody's own plan, which nothing was measured of.
    """

    layout = "block"
    steps: tuple[PlanStep, ...]
    expected: Expected | None = None
    unproven: Literal[True] | None = None

    @model_validator(mode="after")
    def _in_order(self) -> PlanEntry:
        scales = [step.scale for step in self.steps]
        for before, after in pairwise(scales):
            if after <= before:
                raise ValueError(f"got scale {after} after {before}, expected increasing scales")
        branch = "full"
        for step in self.steps:
            branch = step.guidance or branch
            if step.guidance_scale is not None and branch in ("cond", "null"):
                raise ValueError(
                    f"got a guidance_scale at scale {step.scale}, expected none where guidance "
                    f"is {branch}: one branch alone has no strength"
                )
        return self


class Estimate(Model):
    """A measured value and, when there is one, its 95 % interval."""

    value: float
    ci95: Interval | None = None

    @model_validator(mode="after")
    def _inside(self) -> Estimate:
        _check_inside("value", self.value, self.ci95)
        return self


class Boundary(Model):
    """The first scale of a stage, its 95 % interval in scales, and what says so."""

    scale: NonNegativeInt
    ci95: ScaleInterval | None = None
    evidence: str | None = None


class Stages(Model):
    """Where structure and refinement begin; before structure lies the semantic stage."""

    layout = "block"
    structure: Boundary | None = None
    refinement: Boundary | None = None


Satisfied = bool | Literal["unproven"]


class BudgetResult(Model):
    """A budget beside the first: of another metric, or of prompts of one kind (``tag``)."""

    metric: str
    max_loss: NonNegativeFloat
    margin: NonNegativeFloat
    tag: str | None = None
    loss: float | None = None
    loss_bounds: Interval | None = None
    satisfied: Satisfied


class TargetResult(Model):
    """What was asked (``max_loss`` in the units of ``metric``), and if the default plan meets it.

    ``satisfied``: true where the loss is shown to keep the budget, its upper bound within
    ``margin`` beyond it; false where it is shown to break it; ``unproven`` where the estimate keeps
    it and the evidence does not show it. ``more_inputs``: about how many would settle it.
    ``losing``: kinds of prompts that are shown to lose several times the budget. With
    ``min_speedup`` or ``max_ms`` (end to end, the latter an image) the speed was asked for.
    """

    metric: str
    max_loss: NonNegativeFloat
    margin: NonNegativeFloat | None = None
    min_speedup: PositiveFloat | None = None
    max_ms: PositiveFloat | None = None
    satisfied: Satisfied
    more_inputs: NonNegativeInt | None = None
    losing: tuple[str, ...] = ()
    beside: tuple[BudgetResult, ...] = ()

    @property
    def doubt(self) -> str | None:
        """Why the default plan is not to be relied on, in a sentence; None where it is."""
        if self.satisfied is False:
            return "its target is not met"
        if self.satisfied is True:
            return None
        more = f", about {self.more_inputs} more inputs would" if self.more_inputs else ""
        return f"a loss of at most {self.max_loss:g} {self.metric} is not proved{more}"


class CreatedBy(Model):
    """The tool that wrote the profile; ``at`` is ISO 8601."""

    tool: Name
    version: Name
    at: Name | None = None


class PromptSet(Model):
    """The prompts or labels measured on: their number, and how many more were held out."""

    name: str
    sha256: str | None = None
    count: NonNegativeInt
    held_out: NonNegativeInt = 0


class SamplingSettings(Model):
    """Temperature and cut-offs during calibration; 0 switches a cut-off off, None: unknown."""

    temperature: Temperature | None = None
    top_k: Kept | Annotated[tuple[Kept, ...], Field(min_length=1)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None


class Calibration(Model):
    """The conditions of the measurements. ``guidance`` in the family's own published sense.

    ``features``: what distribution and semantic likeness were seen through; ``likeness``: what
    structure was compared by.
    """

    layout = "block"
    prompts: PromptSet
    seeds: tuple[Seed, ...] = (0,)
    dtype: Name
    guidance: Strength | Strengths
    sampling: SamplingSettings = SamplingSettings()
    hardware: dict[str, str | int | float | bool] = Field(default_factory=dict)
    features: str | None = None
    likeness: str | None = None

    def sampling_settings(self) -> dict[str, Any]:
        """Guidance and sampling by the names of :class:`~..model.sampling.Sampling`."""
        return {"guidance": self.guidance, **dict(self.sampling)}


class ModelRef(Model):
    """The model a profile is for. ``schedules``: ``[height, width]`` of every scale, by size.

    ``tokenizer`` is the hash of the image tokenizer, ``classes`` the number of labels: profiles
    made before have neither.
    """

    layout = "block"
    family: Name
    architecture: Hash
    weights: Hash | None = None
    tokenizer: Hash | None = None
    classes: PositiveInt | None = None
    schedules: Annotated[dict[Name, Schedule], Field(min_length=1)]


class ScaleMeasurement(Model):
    """What was measured at one scale.

    Ranks hold one value a group of blocks: ``rank_pca`` and ``rank_svd`` as a fraction of the
    tokens (energy 0.96), ``effective_rank`` and ``stable_rank`` as numbers of directions.
    ``ms`` is one exact pass of this scale.
    """

    scale: NonNegativeInt
    tokens: PositiveInt
    cfg_sensitivity: Estimate | None = None
    cfg_effect: Estimate | None = None
    rank_pca: Shares | None = None
    rank_svd: Shares | None = None
    effective_rank: Directions | None = None
    stable_rank: Directions | None = None
    ms: Estimate | None = None


class Profile(Model):
    """A model's acceleration profile. ``published`` figures come from a paper, not from us."""

    layout = "block"
    schema_version: Literal[2] = 2
    kind: Literal["stagevar-profile"] = "stagevar-profile"
    created_by: CreatedBy
    model: ModelRef
    provenance: Literal["measured", "published"]
    calibration: Calibration | None = None
    stages: Stages | None = None
    target: TargetResult | None = None
    default_plan: PlanName = "balanced"
    plans: dict[PlanName, PlanEntry] = Field(default_factory=dict)
    measurements: tuple[ScaleMeasurement, ...] = ()

    @model_validator(mode="after")
    def _whole(self) -> Profile:
        if self.provenance == "measured" and self.model.weights is None:
            raise ValueError("got no model.weights, expected their hash in a measured profile")
        if self.plans and self.default_plan not in self.plans:
            raise ValueError(
                f"got default_plan {self.default_plan!r}, expected one of {', '.join(self.plans)}"
            )
        count = max(len(schedule) for schedule in self.model.schedules.values())
        rows = [
            (f"plan {name!r}", step.scale) for name, p in self.plans.items() for step in p.steps
        ]
        for where, scale in [*rows, *(("measurements", m.scale) for m in self.measurements)]:
            if scale >= count:
                raise ValueError(f"got scale {scale} in {where}, expected 0 to {count - 1}")
        return self

    def plan(self, name: str | None = None) -> PlanEntry:
        """The plan of this name (None: the default). Raises ProfileError listing the names."""
        name = self.default_plan if name is None else name
        if name not in self.plans:
            names = ", ".join(map(repr, self.plans)) or "no plan at all"
            raise ProfileError(f"profile has no plan {name!r}, it has {names}. Name one of these")
        return self.plans[name]
