"""Everything a calibration measured, as one JSON file: solving again needs no model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from stagevar_runtime.errors import FAULTS, CalibrationError, StagevarError, one_line
from stagevar_runtime.loop.plan import EXACT
from stagevar_runtime.options.low_rank import Bases
from stagevar_runtime.profile import FeatureOption, TokenOption

from ..files import write_whole
from .checked import check_document
from .costs import Costs
from .description import JobDescription, JobInputs
from .interventions import Intervention, SearchSpace
from .per_image import BY_INTERVENTION, PerImage, parse_tables
from .validation import Validation

VERSION = 1
KIND = "stagevar-measurements"


@dataclass(kw_only=True)
class Measurements(PerImage):
    """What was measured of the calibration inputs: tables of scores, what was run (``job``), what
    was tried, what it costs, and held-out figures by plan (``validation``)."""

    job: JobDescription
    space: SearchSpace
    interventions: list[Intervention]
    costs: Costs | None = None
    validation: Validation = field(default_factory=Validation)

    def dump(self) -> dict[str, Any]:
        """JSON-ready, numbers rounded to 6 significant digits."""
        out = {
            "job": self.job.dump(),
            **self.tables(),
            "costs": self.costs and self.costs.dump(),
            "validation": self.validation.dump(),
            "menu": _dump_space(self.space),  # names of version 1
            "arms": [asdict(intervention) for intervention in self.interventions],
        }
        return {"kind": KIND, "version": VERSION, **_rounded(out)}

    @classmethod
    def parse(cls, data: Mapping[str, Any], source: object) -> Measurements:
        """The inverse of :meth:`dump`.

        Raises:
            CalibrationError: not a measurements file, or of another version.
        """
        if not isinstance(data, Mapping):
            raise CalibrationError(f"{source}: holds a {type(data).__name__}, expected {KIND}")
        if data.get("kind") != KIND or data.get("version") != VERSION:
            raise CalibrationError(
                f"{source}: got kind {data.get('kind')!r} version {data.get('version')!r}, "
                f"expected {KIND} version {VERSION}"
            )
        try:
            if not data["smooth"].get(EXACT):
                raise ValueError("nothing about the exact path")
            job = JobDescription.parse(data["job"])
            interventions = [Intervention(**intervention) for intervention in data["arms"]]
            check_document(data, interventions)
            return cls(
                **parse_tables(data),
                job=job,
                space=_parse_space(data["menu"]),
                interventions=interventions,
                costs=None if data["costs"] is None else Costs.parse(data["costs"]),
                validation=Validation.parse(data["validation"]),
            )
        except (*FAULTS, StagevarError) as error:
            raise CalibrationError(
                f"{source}: damaged measurements ({one_line(error)}). Calibrate again"
            ) from error


def _dump_space(space: SearchSpace) -> dict[str, Any]:
    options = {
        kind: {n: o.model_dump(mode="json") for n, o in getattr(space, kind).items()}
        for kind in ("tokens", "features")
    }
    return asdict(space) | options


def _parse_space(data: Mapping[str, Any]) -> SearchSpace:
    """Older files know neither features nor parts nor precision."""
    return SearchSpace(
        schedules=dict(data["schedules"]),
        variants={n: (branch, warm) for n, (branch, warm) in data["variants"].items()},
        tokens={n: TokenOption.model_validate(t) for n, t in data["tokens"].items()},
        features={n: FeatureOption.model_validate(f) for n, f in data.get("features", {}).items()},
        parts={
            n: {int(k): keep for k, keep in part.items()}
            for n, part in data.get("parts", {}).items()
        },
        precision=data.get("precision"),
    )


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, Mapping):
        return {str(k): _rounded(v) for k, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_rounded(v) for v in value]
    return value


def write_json(path: Path, data: Any) -> None:
    """Write JSON whole or not at all."""
    write_whole(path, json.dumps(_rounded(data), separators=(",", ":")).encode())


def as_written(data: Any) -> Any:
    """``data`` as it is after it was written and read again."""
    return json.loads(json.dumps(_rounded(data)))


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        CalibrationError: missing or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CalibrationError(f"{path}: cannot be read as measurements ({error})") from error


def load_measurements(path: str | Path) -> Measurements:
    """Read a measurements file."""
    return Measurements.parse(read_json(Path(path)), path)


OWN = ("inputs", "seed", "hardware", "max_loss", "min_speedup", "max_ms", "beside")  # of each job


def merged(parts: Sequence[Measurements], sources: Sequence[str]) -> Measurements:
    """Measurements of separate jobs as of one: the same model and settings, other images.

    Costs are the first's. Held-out figures are dropped: they belong to each job's own plans. An
    intervention that one of the jobs gave up keeps what comes before the gap, and counts as given
    up. Features were narrowed to each job's own directions, which no file joins.

    Raises:
        CalibrationError: two of them differ in more than their inputs, or share inputs.
    """
    first = parts[0]
    out = Measurements(
        job=first.job,
        space=first.space,
        interventions=first.interventions,
        costs=first.costs,
    )
    for part, source in zip(parts, sources, strict=True):
        for key in [key.name for key in fields(JobDescription) if key.name not in OWN]:
            if getattr(part.job, key) != getattr(first.job, key):
                raise CalibrationError(
                    f"{source}: its {key} is {getattr(part.job, key)}, that of {sources[0]} is "
                    f"{getattr(first.job, key)}; only jobs that differ in their inputs can be "
                    "merged"
                )
        if (part.space, part.interventions) != (first.space, first.interventions):
            raise CalibrationError(f"{source}: measured other interventions than {sources[0]}")
        whole = len(out.smooth.get(EXACT, ()))
        without_gaps: dict[str, Any] = {
            table: {
                name: values
                for name, values in getattr(part, table).items()
                if len(getattr(out, table).get(name, ())) == whole
            }
            for table in BY_INTERVENTION
        }
        out.add(replace(part, **without_gaps))
    out.job = replace(first.job, inputs=_joined([part.job for part in parts]))
    return out


def _joined(jobs: Sequence[JobDescription]) -> JobInputs:
    """The inputs of several jobs as one's."""
    identities = {(job.inputs.sha256, job.seed) for job in jobs}
    if len(identities) < len(jobs):
        raise CalibrationError("two of the files measured the same inputs with the same seed")
    digest = hashlib.sha256(json.dumps(sorted(identities)).encode()).hexdigest()
    return JobInputs(
        name="+".join(dict.fromkeys(job.inputs.name for job in jobs)),
        sha256=f"sha256:{digest}",
        count=sum(job.inputs.count for job in jobs),
        held_out=jobs[0].inputs.held_out,
    )


def without_bases(measured: Measurements, bases: Bases | None) -> Measurements:
    """The measurements less the interventions whose directions are not at hand."""
    held: dict[int, int] = {}
    for place, vectors in bases.vectors.items() if bases else ():
        held[place[0]] = vectors.shape[1]
    interventions = [
        intervention
        for intervention in measured.interventions
        if intervention.features is None
        or (option := measured.space.features[intervention.features]).basis != "pca"
        or option.rank <= held.get(intervention.scale, 0)
    ]
    return replace(measured, interventions=interventions)
