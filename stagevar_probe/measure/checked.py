"""What solving and reporting take for granted of a measurements file, checked when it is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError

from stagevar_runtime.errors import FAULTS, CalibrationError, one_line

from .interventions import Intervention

Numbers = list[float]
Decibels = list[Annotated[float, Field(allow_inf_nan=True)]]  # of equal pictures: infinite


class _Record(BaseModel):
    """Strict about types and open to more keys: later versions add some."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


class _Inputs(_Record):
    name: str
    sha256: str | None
    count: NonNegativeInt
    held_out: NonNegativeInt


class _Sampling(_Record):
    guidance: float | Annotated[Numbers, Field(min_length=1)]
    temperature: float
    top_k: int | Annotated[list[int], Field(min_length=1)]
    top_p: float


class _Job(_Record):
    checkpoint: str
    family: str
    architecture: str
    weights: str
    schedule_name: str
    scales: Annotated[
        list[Annotated[list[PositiveInt], Field(min_length=3, max_length=3)]], Field(min_length=1)
    ]
    groups: list[Annotated[list[NonNegativeInt], Field(min_length=2, max_length=2)]]
    inputs: _Inputs
    seed: NonNegativeInt
    batch: PositiveInt
    sampling: _Sampling
    metric: str
    max_loss: float
    dtype: str
    hardware: dict[str, str | int | float | bool]
    version: str


class _Rank(_Record):
    scale: NonNegativeInt
    group: NonNegativeInt
    branch: str
    centring: str
    values: dict[str, Numbers]


class _Document(_Record):
    job: _Job
    smooth: dict[str, Numbers]
    score: dict[str, Numbers]
    psnr: dict[str, Decibels]
    sensitivity: dict[str, dict[str, Numbers]]
    ranks: list[_Rank]
    semantic: list[Numbers]
    structural: list[Numbers]
    low: list[Numbers]
    high: list[Numbers]


def check_document(data: Mapping[str, Any], interventions: list[Intervention]) -> None:
    """Raise ValueError for the first thing that is of another type or out of range."""
    try:
        _Document.model_validate(dict(data))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{where} is {first['input']!r:.40}: {first['msg']}") from error
    count = len(data["job"]["scales"])
    for one in interventions:
        ends = (one.scale, one.until if one.until is not None else count)
        if not all(type(k) is int for k in ends) or not 0 <= ends[0] < count or ends[1] > count:
            raise ValueError(f"intervention {one.name!r:.40} is at scales {ends} of {count}")


@contextmanager
def damaged(source: object) -> Iterator[None]:
    """Work on a measurements file whose parts may not fit each other.

    Raises:
        CalibrationError: they do not; names the file.
    """
    try:
        yield
    except FAULTS as error:
        raise CalibrationError(
            f"{source}: damaged measurements, their parts do not fit each other "
            f"({one_line(error)}). Calibrate again"
        ) from error
