"""The comparison as one HTML file: the answers, the Pareto plot, pictures, every row."""

from __future__ import annotations

from pathlib import Path

from stagevar_runtime.loop.plan import EXACT

from ..compare.comparison import Comparison, disturbance, pareto
from ..compare.paired import Finding
from ..compare.table import cells, head
from ..measure.description import RunDescription
from ..validate.rows import LOOKED
from . import plots
from .html import ReportData, TableData, write_report

SHOWN = (EXACT, "guidance", "preset", "plan", "skip")  # kinds whose pictures are shown


def write_comparison(
    path: Path, found: Comparison, given: list[Finding], job: RunDescription, command: str
) -> None:
    """Write the report of a comparison, whole or not at all."""
    write_report(comparison_data(found, given, job, command), path)


def comparison_data(
    found: Comparison, given: list[Finding], job: RunDescription, command: str
) -> ReportData:
    """Everything the report shows. ``job``: what was run."""
    front = pareto(found.figures)
    exact = found.figures[EXACT]
    fast = [name for name in front if name != EXACT]
    return ReportData(
        title=f"{job.checkpoint}: every method side by side",
        subtitle=f"{job.family}, {len(found.rows)} rows, {exact.images} images, "
        f"batch {exact.batch}, {job.hardware['device']} {job.dtype}",
        satisfied=None,
        verdict=f"{len(fast)} of {len(found.rows) - 1} rows are on the Pareto front of "
        f"end-to-end time and {exact.metric} lost: nothing else tried is both faster and "
        f"better. What lies within intervals of another is not told apart from it.",
        headlines=[],
        facts=[(name, reason) for name, reason in found.rows.left_out.items()],
        loss_name=f"{exact.metric} lost",
        plans=[],
        figures=[
            {
                "title": "Pareto front",
                "svg": _plot(found, front),
                "caption": "Joined: not beaten in both. Light: beaten. Bars: 95 % over images.",
            }
        ],
        pictures=[
            {"uri": plots.picture_row(found.pictures[row.name]), "caption": row.name}
            for row in found.rows
            if row.name in found.pictures and (row.kind in SHOWN or row.name in front)
        ],
        pictures_title="Pictures: the same seeds in every row",
        pictures_caption="Presets, plans, retuned exact paths and the Pareto front.",
        tables=[*map(_finding_table, given), _rows_table(found, front)],
        notes=[
            *(f"{finding.question} {finding.sentence}" for finding in given),
            "Every row draws the same noise for the same token: PSNR and SSIM compare pictures of "
            "one seed. They mean little for rows whose early guidance differs.",
            "Speed-ups are against this project's own exact path, in interleaved batches. Rows of "
            f"equal work (the exact path at any guidance) differ by {disturbance(found):.2f}x in "
            "loop time: no difference below that means anything.",
        ],
        provenance=[(name, str(value)) for name, value in job.dump().items()],
        command=command,
    )


def _plot(found: Comparison, front: set[str]) -> str:
    """Named: the front and the presets."""
    points: dict[bool, list[plots.Point]] = {True: [], False: []}
    for row in found.rows:
        f = found.figures[row.name]
        best = row.name in front
        ms, (loss, low, high) = f.total_ms / f.batch, f.loss
        name = row.name if best or row.kind in ("preset", "plan") else ""
        points[best].append(plots.Point(ms, loss, low, high, name[:28]))
    loss_name = f"{found.figures[EXACT].metric} lost"
    return plots.frontier(points[True], None, loss_name, points[False])


def _finding_table(finding: Finding) -> TableData:
    header, *lines = finding.table or [[""]]
    return TableData(
        title=finding.question, header=header, rows=lines[:60], caption=finding.sentence
    )


def _rows_table(found: Comparison, front: set[str]) -> TableData:
    return TableData(
        title="Every row",
        header=[cell or "row" for cell in head(found.figures[EXACT])],
        rows=[cells(row, found.figures[row.name], row.name in front) for row in found.rows],
        caption="Milliseconds per batch, GFLOP per image (blocks only). * on the Pareto front. "
        "± half a 95 % interval. ST-LPIPS, where it is installed: perceptual distance to exact, on "
        f"at most {LOOKED} images.",
    )
