"""A comparison as rows of JSON, as CSV and as a table of text."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Any

from stagevar_runtime.loop.plan import EXACT

from ..measure.figures import Figures
from ..tables import NONE, columns
from ..validate.rows import Row
from .comparison import Comparison, pareto


def as_rows(found: Comparison) -> list[dict[str, Any]]:
    """One JSON-ready dict per row, the exact path first."""
    front = pareto(found.figures)
    return [
        {
            "name": row.name,
            "kind": row.kind,
            "guidance": row.guidance,
            "steps": [step.model_dump(mode="json", exclude_defaults=True) for step in row.steps],
            "pareto": row.name in front,
            **found.figures[row.name].dump(),
        }
        for row in found.rows
    ]


TRIPLES = ("score", "loss", "smooth_loss", "psnr", "ssim", "speedup_loop", "speedup_total")
SINGLES = ("loop_ms", "decode_ms", "total_ms")


def as_csv(found: Comparison) -> str:
    """All figures as CSV: a value and its interval each in a column."""
    table = []
    for row in as_rows(found):
        line = {key: row[key] for key in ("name", "kind", "pareto", "images", "batch", "flops")}
        for key in TRIPLES:
            line |= dict(zip((key, f"{key}_low", f"{key}_high"), row[key], strict=True))
        line |= {key: row[key] for key in SINGLES}
        for key, base in (("loop_ci95", "loop_ms"), ("total_ci95", "total_ms")):
            line |= {f"{base}_low": row[key][0], f"{base}_high": row[key][1]}
        if "kid" in row:
            line |= {"kid": row["kid"], "kid_low": row["kid_ci95"][0]}
            line |= {"kid_high": row["kid_ci95"][1], "kid_loss": row["kid_loss"][0]}
            line |= {"kid_loss_low": row["kid_loss"][1], "kid_loss_high": row["kid_loss"][2]}
            line["kid_name"] = row["kid_name"]
        if "perceptual" in row:
            names = ("perceptual", "perceptual_low", "perceptual_high")
            line |= dict(zip(names, row["perceptual"], strict=True))
            line["perceptual_name"] = row["perceptual_name"]
        table.append(line)
    out = io.StringIO()
    writer = csv.DictWriter(out, list(table[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return out.getvalue()


HEAD = ("", "total", "x", "loop", "x", "GFLOP", "score", "loss")


def head(f: Figures) -> list[str]:
    """Names of the columns of :func:`cells`, for these figures."""
    names = [*HEAD, f.kid_name or "KID", "PSNR", "SSIM"]
    return [*names, f.perceptual_name] if f.perceptual_name else names


def cells(row: Row, f: Figures, best: bool) -> list[str]:
    """One row of figures as text: values with half widths of their intervals."""

    def half(triple: Sequence[float]) -> float:
        return (triple[-1] - triple[-2]) / 2

    same = row.kind == EXACT
    out = [
        ("* " if best else "  ") + row.name,
        f"{f.total_ms:.1f} ±{half(f.total_ci95):.1f}",
        f"{f.speedup_total[0]:.2f} ±{half(f.speedup_total):.2f}",
        f"{f.loop_ms:.1f} ±{half(f.loop_ci95):.1f}",
        f"{f.speedup_loop[0]:.2f} ±{half(f.speedup_loop):.2f}",
        f"{f.flops / 1e9:.3g}",
        f"{f.score[0]:.4f} ±{half(f.score):.4f}",
        NONE if same else "{:+.4f} [{:+.4f}, {:+.4f}]".format(*f.loss),
        f"{f.kid:.2f} ±{half(f.kid_ci95):.2f}" if f.kid_ci95 else NONE,
        NONE if same else f"{f.psnr[0]:.2f} ±{half(f.psnr):.2f}",
        NONE if same else f"{f.ssim[0]:.4f} ±{half(f.ssim):.4f}",
    ]
    if f.perceptual is not None:
        out.append(NONE if same else f"{f.perceptual[0]:.4f} ±{half(f.perceptual):.4f}")
    return out


def as_table(found: Comparison) -> str:
    """The figures as text, with intervals; ``*`` marks what nothing beats in time and loss."""
    front = pareto(found.figures)
    rows = [cells(row, found.figures[row.name], row.name in front) for row in found.rows]
    return columns([head(found.figures[EXACT]), *rows])
