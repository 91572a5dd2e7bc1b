"""``stagevar-probe evaluate``: gather what it needs, say what it will cost, run, write."""

from __future__ import annotations

import logging
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import stagevar_runtime
from stagevar_runtime.errors import CalibrationError
from stagevar_runtime.pipeline import GPU_TILE, schedule_name

from .commands import ModelOptions, Said
from .contest import EXACT
from .cost import describe_scales, hardware
from .evaluate import (
    SUITES,
    Evaluation,
    as_table,
    evaluate,
    evaluation_lineup,
    suite_inputs,
    table,
)
from .files import beside, check_writable
from .measurements import write_json
from .progress import duration
from .report import plots
from .report.html import ReportData, TableData, write_report
from .validate import forecast

logger = logging.getLogger("stagevar_probe")


def evaluate_suite(
    checkpoint: Path,
    options: ModelOptions,
    suite: str = "scenes",
    profile: Path | None = None,
    output: Path | None = None,
    count: int = 1050,
    dry_run: bool = False,
    quiet: bool = False,
    command: str = "stagevar-probe evaluate",
) -> Said:
    """Score the exact path, every preset and every plan of the profile by a suite.

    Writes ``model.evaluation.json`` and ``.html`` beside the checkpoint, or by the name ``output``.

    Raises:
        CalibrationError: an unknown suite, or a model that takes no prompts.
    """
    if suite not in SUITES:
        raise CalibrationError(f"suite {suite!r}, expected one of {', '.join(SUITES)}")
    page = output or beside(checkpoint, "evaluation.html")
    data = page.with_suffix(".json")
    if checkpoint.exists() and not dry_run:
        check_writable(page, data)
    pipeline = options.load(checkpoint, "auto" if profile is None else profile)
    model = pipeline.model
    if model.info.classes:
        raise CalibrationError(
            f"suite {suite} asks with prompts, {checkpoint.name} draws from class labels: "
            "use stagevar-probe validate"
        )
    quality = replace(options, metric=options.metric or suite).quality(checkpoint, pipeline)
    sampling = pipeline.sampling(**options.sampling)
    inputs, kinds = suite_inputs(count, options.seed, pipeline.read_condition)
    tile = GPU_TILE if model.device.type == "cuda" else 1
    made = evaluation_lineup(model, sampling, pipeline.profile, tile)
    batch = min(options.batch, count)
    _, seconds, _ = forecast(model, inputs, made.plans, sampling, batch)
    said = (
        f"{checkpoint.name}: {describe_scales(model.scales())}\n"
        f"suite {suite}, {count} images, {len(made.plans)} different rows, metric "
        f"{quality.name}, features {quality.features.name}: about {duration(seconds)}"
    )
    work = {"rows": len(made.plans), "images": count, "seconds": seconds}
    if dry_run:
        return {"work": work}, said
    logger.info(said)
    found = evaluate(model, inputs, kinds, made, sampling, quality, batch, quiet)
    job = {
        "suite": suite,
        "checkpoint": checkpoint.name,
        "family": model.info.family,
        "schedule": schedule_name(model.scales()),
        "weights": pipeline.fingerprint.weights,
        "profile": pipeline.profile_source if pipeline.profile is None else "beside it",
        "inputs": f"{inputs.name}, sha256:{inputs.sha256}",
        "seed": options.seed,
        "sampling": asdict(sampling),
        "metric": quality.name,
        "features": quality.features.name,
        "dtype": str(model.dtype).removeprefix("torch."),
        "hardware": hardware(model),
        "version": stagevar_runtime.__version__,
    }
    result: dict[str, Any] = {
        "job": job,
        "ceiling": found.ceiling,
        "rows": [
            {"name": entry.name, "kind": entry.kind, **found.figures[entry.name]}
            for entry in made.entries
        ],
        "left_out": dict(made.left_out),
    }
    write_json(data, result)
    write_report(_page(found, job, command), page)
    result |= {"report": str(page), "json": str(data)}
    lines = [as_table(found), "", *ceiling_lines(found), f"report {page}", f"json   {data}"]
    return result, "\n".join(lines)


def ceiling_lines(found: Evaluation) -> list[str]:
    """What the rule and the tokenizer allow at most."""
    lines = ["rendered pictures pass {:.3f} [{:.3f}, {:.3f}]".format(*found.ceiling["real"])]
    if "rebuilt" in found.ceiling:
        rate = "{:.3f} [{:.3f}, {:.3f}]".format(*found.ceiling["rebuilt"])
        lines.append(f"encoded and decoded by the tokenizer they pass {rate}: the ceiling")
    if "nearest_real" in found.ceiling:
        made = found.figures[EXACT]["nearest"][0]
        lines.append(
            f"nearest training picture: {made:.3f} away from a generated one, "
            f"{found.ceiling['nearest_real'][0]:.3f} from a rendered one never trained on"
        )
    return lines


def _page(found: Evaluation, job: dict[str, Any], command: str) -> ReportData:
    head, *rows = table(found)
    exact = found.figures[EXACT]
    best: dict[bool, list[plots.Point]] = {True: [], False: []}
    for entry in found.lineup.entries:
        f = found.figures[entry.name]
        lost, low, high = f["passed_loss"]
        plan = entry.kind in ("plan", EXACT)
        point = plots.Point(f["total_ms"] / f["batch"], lost, low, high, entry.name[:28])
        best[plan].append(point)
    cells = TableData(
        title="Every row",
        header=[head[0] or "row", *head[1:]],
        rows=rows,
        caption="Milliseconds an image, end to end. Passed: the mean over GenEval's six kinds, "
        "then by kind; unseen pairs of colour and shape count apart. Lost: paired with the exact "
        "path. Brackets: 95 %.",
    )
    return ReportData(
        title=f"{job['checkpoint']}: {job['suite']}",
        subtitle=f"{exact['images']} images, batch {exact['batch']}, "
        f"{job['hardware']['device']} {job['dtype']}",
        satisfied=None,
        verdict="The exact path passes {:.3f} [{:.3f}, {:.3f}].".format(*exact["passed"]),
        headlines=[],
        facts=[(name, reason) for name, reason in found.lineup.left_out.items()],
        loss_name="pass rate lost",
        plans=[],
        figures=[
            {
                "title": "Time and pass rate lost",
                "svg": plots.frontier(best[True], None, "pass rate lost", best[False]),
                "caption": "Joined: exact and the profile's plans. Light: presets. Bars: 95 %.",
            }
        ],
        pictures=[
            {"uri": plots.picture_row(found.strips[entry.name]), "caption": entry.name}
            for entry in found.lineup.entries
        ],
        pictures_title="Pictures: the same seeds in every row",
        pictures_caption="; ".join(found.prompts),
        tables=[cells],
        notes=ceiling_lines(found),
        provenance=[(name, str(value)) for name, value in job.items()],
        command=command,
    )
