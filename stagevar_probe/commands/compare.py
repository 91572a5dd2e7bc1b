"""``stagevar-probe compare``: gather what it needs, say what it will cost, run, write."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import stagevar_runtime
from stagevar_runtime.pipeline import GPU_TILE
from stagevar_runtime.profile.fingerprint import schedule_name

from ..compare.comparison import CALM, ComparisonRun, as_csv, as_table, disturbance, rows
from ..compare.grid import Grid
from ..compare.questions import as_json, findings
from ..files import beside, check_writable, write_whole
from ..measure.costs import describe_scales
from ..measure.hardware import hardware
from ..progress import duration
from ..report.comparison import write_comparison
from .verbs import COUNTS, ModelOptions, Said

logger = logging.getLogger("stagevar_probe")


def compare(
    checkpoint: Path,
    options: ModelOptions,
    profile: Path | None = None,
    output: Path | None = None,
    count: int | None = None,
    keep: Sequence[float] = (),
    span: str = "group",
    grid: bool = True,
    dry_run: bool = False,
    quiet: bool = False,
    command: str = "stagevar-probe compare",
) -> Said:
    """Compare every preset, token option and profile plan with the exact path.

    Writes ``model.compare.html`` and ``.csv`` beside the checkpoint, or by the name ``output``.
    """
    page = output or beside(checkpoint, "compare.html")
    table = page.with_suffix(".csv")
    if checkpoint.exists() and not dry_run:
        check_writable(page, table)
    pipeline = options.load(checkpoint, "auto" if profile is None else profile)
    model = pipeline.model
    kind = "labels" if model.info.classes else "prompts"
    fresh = replace(options, seed=options.seed + 1)  # those of `validate`, which chose no plan
    inputs = fresh.inputs(pipeline, count or COUNTS[kind][0], held_out=True)
    quality = options.quality(checkpoint, pipeline)
    sampling = pipeline.sampling(**options.sampling)
    contest = ComparisonRun(
        model,
        inputs,
        sampling,
        quality,
        options.batch,
        pipeline.profile,
        Grid(keep=tuple(keep) or Grid.keep, span=span) if grid else None,
        GPU_TILE if model.device.type == "cuda" else 1,
        quiet,
    )
    work = contest.work()
    said = (
        f"{checkpoint.name}: {describe_scales(model.scales())}\n"
        f"{work.rows} rows on {work.images} images, metric {quality.name}: "
        f"{work.generations:.1f} generations an image, about {duration(work.seconds)}"
    )
    if dry_run:
        return {"work": asdict(work)}, said
    logger.info(said)
    found = contest.run()
    given = findings(found)
    ratio = disturbance(found)
    if ratio > CALM:
        logger.warning(
            "times are disturbed: the exact path took %.2f times as long at one guidance as at "
            "another, though the work is the same. Compare again on an idle machine",
            ratio,
        )
    job = {
        "checkpoint": checkpoint.name,
        "family": model.info.family,
        "schedule": schedule_name(model.scales()),
        "weights": pipeline.fingerprint.weights,
        "inputs": f"{inputs.name}, sha256:{inputs.sha256}",
        "seed": options.seed,
        "sampling": asdict(sampling),
        "metric": quality.name,
        "features": quality.features.name,
        "likeness": quality.perceptual.likeness,
        "reference": quality.features.source,
        "dtype": str(model.dtype).removeprefix("torch."),
        "hardware": hardware(model),
        "version": stagevar_runtime.__version__,
    }
    write_comparison(page, found, given, job, command)
    write_whole(table, as_csv(found).encode())
    result = {
        "job": job,
        "work": asdict(work),
        "rows": rows(found),
        "left_out": dict(found.lineup.left_out),
        "answers": as_json(given),
        "disturbance": ratio,
        "report": str(page),
        "csv": str(table),
    }
    text = [as_table(found), ""]
    text += [f"{answer.question}\n  {answer.sentence}" for answer in given]
    text += [f"report {page}", f"csv    {table}"]
    return result, "\n".join(text)
