"""What a plan may ask of a scale: one pydantic model per option, checked at the file boundary.

To add an option that replaces layers: a model here, its field in
:class:`~stagevar_runtime.profile.schema.PlanStep`, a step with a handler in ``layers.py``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    model_validator,
)
from pydantic_core import PydanticCustomError

from .restorers import RESTORERS
from .selectors import SELECTORS

Layout = Literal["block", "line", "terse"]
MOST_SEED = 2**32 - 1  # of random directions: times a number of groups it is a seed, too


def _named(registry: Mapping[str, object]) -> AfterValidator:
    """Accepts the name of something registered: by us, or since."""

    def check(name: str) -> str:
        if name not in registry:
            raise PydanticCustomError("unregistered", f"Input should be {_listed(registry)}")
        return name

    return AfterValidator(check)


def _enum(registry: Mapping[str, object]) -> Any:
    return Field(json_schema_extra={"enum": [*registry]})


def _listed(names: Iterable[str]) -> str:
    *others, last = map(repr, names)
    return f"{', '.join(others)} or {last}" if others else last


Ratio = Annotated[float, Field(gt=0, le=1)]
Ratios = Annotated[tuple[Ratio, ...], Field(min_length=1)]
SelectorName = Annotated[str, _named(SELECTORS), _enum(SELECTORS)]
RestorerName = Annotated[str, _named(RESTORERS), _enum(RESTORERS)]


class Model(BaseModel):
    """Base of all: unknown keys, NaN and later changes are refused. ``layout`` is for the dump."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    layout: ClassVar[Layout] = "line"  # terse: one line, defaults left out

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: Any) -> Any:
        unknown = [k for k in data if k not in cls.model_fields] if isinstance(data, dict) else []
        if unknown:
            names = ", ".join(cls.model_fields)
            raise ValueError(f"got the unknown key {str(unknown[0])!r}, expected {names}")
        return data


class TokenOption(Model):
    """Run a scale on part of its tokens. ``keep``: the ratio, one for all spans or one each.

    ``select`` ranks the tokens, ``restore`` fills in the others; ``span`` says whether that is
    done around every group of blocks, around every block, or once around all of them.
    """

    layout = "terse"
    keep: Ratio | Ratios
    select: SelectorName
    restore: RestorerName
    span: Literal["group", "block", "all"] = "group"

    @model_validator(mode="after")
    def _one_ratio(self) -> TokenOption:
        if self.span == "all" and isinstance(self.keep, tuple) and len(self.keep) > 1:
            raise ValueError(f"got {len(self.keep)} ratios in keep, expected one with span: all")
        return self


class FeatureOption(Model):
    """Run the linear layers of a scale through ``rank`` directions of what enters them.

    ``basis``: ``pca`` was measured and lies beside the profile, ``random`` is drawn from ``seed``.
    ``layers`` by name; None: those that become cheaper.
    """

    layout = "terse"
    rank: PositiveInt
    basis: Literal["pca", "random"]
    seed: Annotated[int, Field(ge=0, le=MOST_SEED)] = 0
    layers: Annotated[tuple[str, ...], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _seed_of_random(self) -> FeatureOption:
        if self.seed and self.basis != "random":
            raise ValueError(f"got seed {self.seed} with basis {self.basis}, expected it measured")
        return self
