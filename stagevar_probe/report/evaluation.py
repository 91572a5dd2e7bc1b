"""The evaluation as one HTML file: time against pass rate, pictures, every row, the ceiling."""

from __future__ import annotations

from pathlib import Path

from stagevar_runtime.loop.plan import EXACT

from ..evaluate.evaluation import Evaluation, table
from ..measure.description import RunDescription
from ..tables import ranged
from . import plots
from .html import ReportData, TableData, write_report


def write_evaluation(path: Path, found: Evaluation, job: RunDescription, command: str) -> None:
    """Write the report of an evaluation, whole or not at all."""
    write_report(evaluation_data(found, job, command), path)


def ceiling_lines(found: Evaluation) -> list[str]:
    """What the suite and the tokenizer allow at most."""
    suite, ceiling, lines = found.suite, found.ceiling, []
    sentences = {
        "real": f"{suite.made} pictures pass {{}}",
        "rebuilt": "encoded and decoded by the tokenizer they pass {}: the ceiling",
        **suite.description,
    }
    for name in (name for name in sentences if name in ceiling):
        rates = [ranged(ceiling[name])]
        rates += [f"{head} {ranged(ceiling[f'{name} {head}'])}" for head in suite.beside]
        lines.append(sentences[name].format(", ".join(rates)))
    made = found.figures[EXACT].nearest
    if made and "nearest_real" in ceiling:
        lines.append(
            f"nearest training picture: {made.mean:.3f} away from a generated one, "
            f"{ceiling['nearest_real'][0]:.3f} from a {suite.made} one never trained on"
        )
    return lines


def evaluation_data(found: Evaluation, job: RunDescription, command: str) -> ReportData:
    """Everything the report shows. ``job``: what was run."""
    head, *rows = table(found)
    exact = found.figures[EXACT]
    best: dict[bool, list[plots.Point]] = {True: [], False: []}
    for row in found.rows:
        f = found.figures[row.name]
        lost, low, high = f.passed_loss
        plan = row.kind in ("plan", EXACT)
        point = plots.Point(f.total_ms / f.batch, lost, low, high, row.name[:28])
        best[plan].append(point)
    cells = TableData(
        title="Every row",
        header=[head[0] or "row", *head[1:]],
        rows=rows,
        caption=f"Milliseconds per image, end to end. {found.suite.caption} Lost: paired with the "
        "exact path. Brackets: 95 %.",
    )
    return ReportData(
        title=f"{job.checkpoint}: {found.suite.name}",
        subtitle=f"{exact.images} images, batch {exact.batch}, "
        f"{job.hardware['device']} {job.dtype}",
        satisfied=None,
        verdict=f"The exact path passes {ranged(exact.passed)}.",
        headlines=[],
        facts=[(name, reason) for name, reason in found.rows.left_out.items()],
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
            {"uri": plots.picture_row(found.pictures[row.name]), "caption": row.name}
            for row in found.rows
        ],
        pictures_title="Pictures: the same seeds in every row",
        pictures_caption="; ".join(found.prompts),
        tables=[cells],
        notes=ceiling_lines(found),
        provenance=[(name, str(value)) for name, value in job.dump().items()],
        command=command,
    )
