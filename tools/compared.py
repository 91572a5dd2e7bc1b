"""Keep a comparison as a result and make docs/compared.md from it.

stagevar-probe compare CHECKPOINT --json > compared.json
python -m tools.compared compared.json     # keep, then the page
python -m tools.compared                   # the page, from what is kept
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks/results/var-fashion-compare.json"
PAGE = ROOT / "docs/compared.md"
KEPT = (
    *("name", "kind", "guidance", "steps", "pareto", "metric", "images", "batch"),
    *("score", "loss", "smooth_loss", "psnr", "ssim", "kid", "kid_ci95", "kid_loss"),
    *("perceptual", "perceptual_name", "transformer_ms", "loop_ms", "decode_ms", "total_ms"),
    *("loop_ci95", "total_ci95", "speedup_loop", "speedup_total", "flops"),
)
ALWAYS = ("exact", "guidance", "preset", "plan", "skip")
COLUMNS = ("ms an image", "end to end", "loop", "score", "lost [95 %]", "KID", "KID lost [95 %]")


def keep(path: Path) -> None:
    """Write what a comparison found, without the times of every scale."""
    found = json.loads(path.read_text(encoding="utf-8"))
    kept = {key: found[key] for key in ("job", "work", "left_out", "answers", "disturbance")}
    kept["rows"] = [{key: row[key] for key in KEPT if key in row} for row in found["rows"]]
    RESULT.write_text(json.dumps(_rounded(kept), indent=1) + "\n", encoding="utf-8")


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    return [_rounded(part) for part in value] if isinstance(value, list) else value


def line(row: Mapping[str, Any]) -> str:
    """One row of the table."""
    same = row["name"] == "exact"
    signed = "{:+.4f} [{:+.4f}, {:+.4f}]"
    cells = (
        f"**{row['name']}**" if row["pareto"] else row["name"],
        f"{row['total_ms'] / row['batch']:.2f}",
        f"{row['speedup_total'][0]:.2f}x",
        f"{row['speedup_loop'][0]:.2f}x",
        f"{row['score'][0]:.3f}",
        "-" if same else signed.format(*row["loss"]),
        f"{row['kid']:.0f}" if "kid" in row else "-",
        "-" if same or "kid" not in row else "{:+.0f} [{:+.0f}, {:+.0f}]".format(*row["kid_loss"]),
        "-" if same else f"{row['psnr'][0]:.1f}",
    )
    return f"| {' | '.join(cells)} |"


def page(found: Mapping[str, Any]) -> str:
    """The whole page."""
    job, rows = found["job"], found["rows"]
    machine, first = job["hardware"], rows[0]
    shown = [row for row in rows if row["kind"] in ALWAYS or row["pareto"]]
    lines = [
        "# Every method side by side",
        "",
        "Made by `tools/compared.py` from "
        "[one run](../benchmarks/results/var-fashion-compare.json) of `stagevar-probe compare` on "
        f"`{job['checkpoint']}`: guidance {job['sampling']['guidance']:g}, {first['images']} "
        f"images a row, batch {first['batch']}, {job['dtype']}, {machine['device']} "
        f"({machine['machine']}, {machine['threads']} threads, torch {machine['torch']}). Same "
        "seeds and noise in every row, batches interleaved. Speed-ups are against this project's "
        f"exact path in the same run; rows of equal work differ by {found['disturbance']:.2f}x in "
        "time, so smaller differences mean nothing. Score and losses are "
        f"{first['metric']}; KID is times 1000, by the scorer's features.",
        "",
        "## The questions",
        "",
    ]
    for answer in found["answers"]:
        lines += [f"**{answer['question']}** {answer['sentence']}", ""]
    lines += [
        "## The rows",
        "",
        f"{len(shown)} of {len(rows)}: the exact path at other guidance, presets, the profile's "
        "plans, skips, and whatever nothing beats in both end-to-end time and loss (bold).",
        "",
        f"| row | {' | '.join(COLUMNS)} | PSNR |",
        f"|---|{'---|' * (len(COLUMNS) + 1)}",
        *map(line, sorted(shown, key=lambda row: (row["name"] != "exact", row["total_ms"]))),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Keep a result if one is named, then write the page."""
    if len(sys.argv) > 1:
        keep(Path(sys.argv[1]))
    PAGE.write_text(page(json.loads(RESULT.read_text(encoding="utf-8"))), encoding="utf-8")


if __name__ == "__main__":
    main()
