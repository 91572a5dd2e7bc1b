"""Everything a calibration measured, as one JSON file: solving again needs no model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stagevar_runtime.errors import FAULTS, CalibrationError, one_line
from stagevar_runtime.loop.plan import EXACT
from stagevar_runtime.options.low_rank import Bases
from stagevar_runtime.profile import FeatureOption, TokenOption

from ..files import write_whole
from .checked import check_document
from .costs import Costs
from .interventions import Intervention, SearchSpace
from .validation import Validation

VERSION = 1
KIND = "stagevar-measurements"
FEWEST = 12  # images that say something of a distribution
JOB_KEYS = (
    *("checkpoint", "family", "architecture", "weights", "schedule_name", "scales", "groups"),
    *("inputs", "seed", "batch", "sampling", "metric", "max_loss", "dtype", "hardware", "version"),
)
NEWER_KEYS = ("features", "likeness", "reference", "tokenizer", "classes")  # older files lack them


@dataclass
class Measurements:
    """What was measured on the calibration inputs; scores per image, in the order of the inputs.

    ``job`` says what was run (model, inputs, sampling, metric, hardware). ``smooth`` and ``score``
    hold, by intervention, one value an image (:class:`~stagevar_probe.metrics.quality.Quality`);
    ``psnr`` dB to the exact image; ``distribution`` what it adds to the kernel distance lost, times
    1000, where real pictures are known.
    ``sensitivity[scale][name]``; ``ranks``: one dict a (scale, group, branch, centring) with one
    value an image for each measure; ``semantic`` and ``structural`` ``[image][scale]``; ``low`` and
    ``high`` frequency change. ``costs`` from :mod:`.cost`. ``validation``: held-out figures by
    plan.
    """

    job: dict[str, Any]
    space: SearchSpace
    interventions: list[Intervention]
    smooth: dict[str, list[float]] = field(default_factory=dict)
    score: dict[str, list[float]] = field(default_factory=dict)
    psnr: dict[str, list[float]] = field(default_factory=dict)
    distribution: dict[str, list[float]] = field(default_factory=dict)
    sensitivity: dict[int, dict[str, list[float]]] = field(default_factory=dict)
    ranks: list[dict[str, Any]] = field(default_factory=list)
    semantic: list[list[float]] = field(default_factory=list)
    structural: list[list[float]] = field(default_factory=list)
    low: list[list[float]] = field(default_factory=list)
    high: list[list[float]] = field(default_factory=list)
    costs: Costs | None = None
    validation: Validation = field(default_factory=Validation)

    def add(self, chunk: Mapping[str, Any]) -> None:
        """Append what :func:`~.chunk.measure_chunk` gave of one chunk of images."""
        for table in _BY_INTERVENTION:
            own = getattr(self, table)
            for name, values in chunk[table].items():
                own.setdefault(name, []).extend(values)
        for scale, names in chunk["sensitivity"].items():
            mine = self.sensitivity.setdefault(int(scale), {})
            for name, values in names.items():
                mine.setdefault(name, []).extend(values)
        for table in ("semantic", "structural", "low", "high"):
            getattr(self, table).extend(chunk[table])
        known = {_place(row): row for row in self.ranks}
        for row in chunk["ranks"]:
            if _place(row) in known:
                for measure, values in row["values"].items():
                    known[_place(row)]["values"][measure].extend(values)
            else:
                self.ranks.append(row)

    def losses(self, intervention: str, table: str = "smooth") -> NDArray[np.float64]:
        """Exact minus intervention for every image that has both."""
        values = getattr(self, table)
        mine = np.asarray(values[intervention])
        return np.asarray(values[EXACT])[: len(mine)] - mine

    def group_means(
        self, scale: int, centring: str, measure: str, branch: str = "cond"
    ) -> tuple[float, ...] | None:
        """Mean over images of a rank measure, one value per group; None where none was measured."""
        rows = [
            row
            for row in self.ranks
            if (row["scale"], row["branch"], row["centring"]) == (scale, branch, centring)
        ]
        rows.sort(key=lambda row: row["group"])
        return tuple(float(np.mean(row["values"][measure])) for row in rows) or None

    def distribution_worse(self, intervention: str) -> float:
        """How many standard errors the distribution is worse under an intervention than exact's; 0
        where that is not known."""
        values = np.asarray(self.distribution.get(intervention, ()))
        if len(values) < FEWEST or not values.std():
            return 0.0
        return float(values.mean() / values.std() * np.sqrt(len(values)))

    def dump(self) -> dict[str, Any]:
        """JSON-ready, numbers rounded to 6 significant digits."""
        out = asdict(replace(self, validation=Validation())) | {
            "validation": self.validation.dump()
        }
        out["menu"], out["arms"] = out.pop("space"), out.pop("interventions")  # names of version 1
        for kind in ("tokens", "features"):
            options = getattr(self.space, kind)
            out["menu"][kind] = {n: o.model_dump(mode="json") for n, o in options.items()}
        if self.costs:
            out["costs"] = asdict(self.costs) | {
                "ms": [
                    [*cell, ms, self.costs.spread_ms[cell]] for cell, ms in self.costs.ms.items()
                ]
            }
            del out["costs"]["spread_ms"]
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
            absent = [key for key in JOB_KEYS if key not in data["job"]]
            if absent or not data["smooth"].get(EXACT):
                raise ValueError(f"nothing about {absent[0] if absent else 'the exact path'}")
            space = SearchSpace(
                schedules=dict(data["menu"]["schedules"]),
                variants={n: (b, t) for n, (b, t) in data["menu"]["variants"].items()},
                tokens={
                    n: TokenOption.model_validate(t) for n, t in data["menu"]["tokens"].items()
                },
                features={
                    n: FeatureOption.model_validate(f)
                    for n, f in data["menu"].get("features", {}).items()
                },
                parts={
                    n: {int(k): keep for k, keep in part.items()}
                    for n, part in data["menu"].get("parts", {}).items()
                },
                precision=data["menu"].get("precision"),
            )
            costs = data["costs"]
            interventions = [Intervention(**intervention) for intervention in data["arms"]]
            check_document(data, interventions)
            return cls(
                job=data["job"],
                space=space,
                interventions=interventions,
                sensitivity={int(k): v for k, v in data["sensitivity"].items()},
                costs=None
                if costs is None
                else Costs(
                    ms={(k, r, o): ms for k, r, o, ms, _ in costs["ms"]},
                    spread_ms={(k, r, o): s for k, r, o, _, s in costs["ms"]},
                    decode_ms=costs["decode_ms"],
                    batch=costs["batch"],
                    repeats=costs["repeats"],
                ),
                **{
                    name: data[name]
                    for name in (
                        *("smooth", "score", "psnr", "ranks", "semantic"),
                        *("structural", "low", "high"),
                    )
                },
                distribution=data.get("distribution", {}),
                validation=Validation.parse(data["validation"]),
            )
        except FAULTS as error:
            raise CalibrationError(
                f"{source}: damaged measurements ({one_line(error)}). Calibrate again"
            ) from error


def _place(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[k] for k in ("scale", "group", "branch", "centring"))


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


INPUT_KEYS = ("inputs", "seed", "hardware", "max_loss", "min_speedup", "max_ms")


def merged(parts: Sequence[Measurements], sources: Sequence[str]) -> Measurements:
    """Measurements of separate jobs as of one: the same model and settings, other images.

    Costs are the first's. Held-out figures are dropped: they belong to each job's own plans. An
    intervention that one of the jobs gave up keeps what comes before the gap, and counts as given
    up. Features were narrowed to each job's own directions, which no file joins.

    Raises:
        CalibrationError: two of them differ in more than their inputs, or share inputs.
    """
    first = parts[0]
    job = first.job | {"inputs": dict(first.job["inputs"])}
    out = Measurements(job, first.space, first.interventions, costs=first.costs)
    for part, source in zip(parts, sources, strict=True):
        for key in [key for key in (*JOB_KEYS, *NEWER_KEYS) if key not in INPUT_KEYS]:
            if part.job.get(key) != first.job.get(key):
                raise CalibrationError(
                    f"{source}: its {key} is {part.job.get(key)}, that of {sources[0]} is "
                    f"{first.job.get(key)}; only jobs that differ in their inputs can be merged"
                )
        if (part.space, part.interventions) != (first.space, first.interventions):
            raise CalibrationError(f"{source}: measured other interventions than {sources[0]}")
        whole = len(out.smooth.get(EXACT, ()))
        chunk = {name: getattr(part, name) for name in _TABLES}
        for table in _BY_INTERVENTION:
            own = getattr(out, table)
            chunk[table] = {
                name: values
                for name, values in getattr(part, table).items()
                if len(own.get(name, ())) == whole
            }
        out.add(_copied(chunk))
    identities = {(p.job["inputs"]["sha256"], p.job["seed"]) for p in parts}
    if len(identities) < len(parts):
        raise CalibrationError("two of the files measured the same inputs with the same seed")
    digest = hashlib.sha256(json.dumps(sorted(identities)).encode()).hexdigest()
    out.job["inputs"] |= {
        "name": "+".join(dict.fromkeys(part.job["inputs"]["name"] for part in parts)),
        "sha256": f"sha256:{digest}",
        "count": sum(part.job["inputs"]["count"] for part in parts),
    }
    return out


_BY_INTERVENTION = ("smooth", "score", "psnr", "distribution")
_TABLES = ("sensitivity", "ranks", "semantic", "structural", "low", "high")


def _copied(value: Any) -> Any:
    """Nested lists and dicts of its own, so that joining does not change the parts."""
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list) else value


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
