"""The commands that run no model: ``solve``, ``report`` and ``merge`` work on measurement files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import stagevar_runtime
from stagevar_runtime.errors import CalibrationError, ProfileError, ProfileMismatchError
from stagevar_runtime.options.low_rank import Bases, bases_path
from stagevar_runtime.profile import load_profile, write_profile

from ..calibrate.job import solution_row
from ..calibrate.profile import build_profile
from ..files import check_writable, write_whole
from ..measure.measurements import load_measurements, merged, write_json
from ..observe.pca import measured_ranks, without_bases
from ..solve.build import problem_from, steps_of
from ..solve.isotonic import disagreements
from ..solve.milp import frontier
from ..solve.target import Target

Said = tuple[dict[str, Any], str]


def target_of(
    default: float, max_loss: float | None, min_speedup: float | None, max_ms: float | None
) -> Target:
    """The goal that options ask for; without any, the ``default`` loss."""
    loss = default if max_loss is None else max_loss
    return Target(loss, min_speedup, max_ms, loss_asked=max_loss is not None)


def solve(
    path: Path,
    max_loss: float | None,
    output: Path | None,
    min_speedup: float | None = None,
    max_ms: float | None = None,
) -> Said:
    """``stagevar-probe solve``."""
    if output is not None:
        check_writable(output)
    whole = load_measurements(path)
    job, beside = whole.job, bases_path(path.with_name(_stem(path) + ".yaml"))
    bases = Bases.load(beside, job["weights"]) if beside.exists() else None
    measured = without_bases(whole, bases)
    if max_loss is None and min_speedup is None and max_ms is None:
        min_speedup, max_ms = job.get("min_speedup"), job.get("max_ms")
    target = target_of(job["max_loss"], max_loss, min_speedup, max_ms)
    problem = problem_from(measured, target.max_loss)
    assert measured.costs is not None
    found = target.choose(problem, measured.costs)
    result: dict[str, Any] = {
        "max_loss": target.max_loss,
        "min_speedup": target.min_speedup,
        "max_ms": target.max_ms,
        "feasible": found["balanced"].feasible,
        "predicted": True,
        "plans": {name: solution_row(s, measured) for name, s in found.items()},
        "frontier": [solution_row(s, measured) for s in frontier(problem)],
        "not_monotone": disagreements(measured),
    }
    lines = [f"{target.description(job['metric'])}; losses are predictions"]
    for name, s in found.items():
        short = "" if s.feasible or not target.by_speed else ", and nothing is fast enough"
        lines.append(f"{name:<9} {s.speedup:.2f}x loop, predicted loss {s.loss:+.4f}{short}")
    lines += result["not_monotone"]
    if len(measured.interventions) < len(whole.interventions):
        lines.append(f"some features cannot be chosen: {beside} does not hold their directions")
    if output is not None:
        profile = build_profile(
            replace(measured, validation={}),
            {name: steps_of(s, measured) for name, s in found.items()},
            target.max_loss,
            False,
            stagevar_runtime.__version__,
            datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            target,
        )
        needed = measured_ranks(plan.steps for plan in profile.plans.values())
        if bases is not None and needed and bases_path(output) != beside:
            write_whole(bases_path(output), bases.cut(needed).dump(job["weights"]))
        write_profile(profile, output)
        result["profile"] = str(output)
        lines.append(
            f"profile {output} (not validated: stagevar-probe validate {output} --model …)"
        )
    return result, "\n".join(lines)


def _stem(path: Path) -> str:
    """What a measurements file shares with the profile that was written with it."""
    return path.name.removesuffix(".measurements.json")


def merge(paths: Sequence[Path], output: Path) -> Said:
    """``stagevar-probe merge``."""
    if len(paths) < 2:
        raise CalibrationError(f"got {len(paths)} measurement files, expected 2 or more")
    check_writable(output)
    joined = merged([load_measurements(path) for path in paths], [str(path) for path in paths])
    write_json(output, joined.dump())
    images = len(joined.smooth["exact"])
    given_up = sum(
        len(joined.smooth.get(intervention.name, ())) < images
        for intervention in joined.interventions
    )
    result = {"output": str(output), "images": images, "files": [str(path) for path in paths]}
    return result | {"given_up": given_up}, (
        f"{images} images from {len(paths)} files in {output}; {given_up} of "
        f"{len(joined.interventions)} interventions were not run on all of them\n"
        f"next: stagevar-probe solve {output}"
    )


def report(path: Path, profile_path: Path | None, output: Path | None) -> Said:
    """``stagevar-probe report``."""
    from ..report.calibration import write_story

    measured = load_measurements(path)
    stem = _stem(path)
    profile = load_profile(profile_path or path.with_name(f"{stem}.yaml"))
    for what, mine, theirs in (
        ("architecture", measured.job["architecture"], profile.model.architecture),
        ("weights", measured.job["weights"], profile.model.weights),
    ):
        if mine != theirs:
            raise ProfileMismatchError(
                f"the profile's {what} is {theirs}, the measurements' is {mine}. Name the profile "
                f"that was written with {path.name}: --profile",
                field=what,
                expected=mine,
                found=theirs,
            )
    stages = profile.stages
    if not (profile.target and stages and stages.structure and stages.refinement):
        raise ProfileError("the profile has no target or stages, expected a calibrated one")
    target = output or path.with_name(f"{stem}.report.html")
    write_story(target, measured, profile)
    return {"report": str(target)}, f"report {target}"
