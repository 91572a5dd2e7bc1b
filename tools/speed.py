"""Make the table of docs/benchmark.md from the committed results.

python -m tools.speed
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .marked import fill

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/benchmark.md"
BEFORE = "before fused kernels"  # files named so keep what a GPU did until then
HEAD = (
    "model, device, dtype",
    "batch",
    "run",
    "total ms [min, max]",
    "CPU ms",
    "loop",
    "decode",
    "vs published",
    "vs exact",
    "of ceiling",
)


def rows(doc: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """One row a batch and contender of one result."""
    machine = doc["hardware"]
    threads = f", {machine['threads']} threads" if machine["device"] == "cpu" else ""
    where = f"{doc['model']['name']}, {machine.get('name', machine['device'])}{threads}"
    compiled = doc.get("compile", "off")
    how = "" if compiled.startswith("off") else f", compile {compiled.partition(':')[0]}"
    how += f", {doc['stage']}" if "stage" in doc else ""
    out = []
    for part in doc["batches"]:
        for name, figures in part["runs"].items():
            total = figures["total_ms"]
            out.append(
                (
                    f"{where}, {doc['dtype']}{how}",
                    str(part["batch"]),
                    name,
                    f"{total['median']:.0f} [{total['min']:.0f}, {total['max']:.0f}]",
                    f"{figures['cpu_ms']['median']:.0f}" if machine["device"] == "cpu" else "",
                    f"{figures['loop_ms']['median']:.0f}",
                    f"{figures['decode_ms']['median']:.0f}",
                    _ratio(figures.get("vs_published")),
                    _ratio(figures.get("vs_exact")),
                    f"{figures['loop']['of_ceiling']:.0%} / {figures['decode']['of_ceiling']:.0%}",
                )
            )
    return out


def _ratio(versus: Mapping[str, float] | None) -> str:
    if versus is None:
        return ""
    return f"{versus['total']:.2f}x (loop {versus['loop']:.2f}x, CPU {versus['cpu']:.2f}x)"


def markdown(documents: Sequence[Mapping[str, Any]]) -> str:
    """One Markdown table of all results."""
    body = [row for doc in documents for row in rows(doc)]
    lines = ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    lines += ["| " + " | ".join(row) + " |" for row in body]
    versions = ", ".join(sorted({doc["stagevar"] for doc in documents}))
    lines += [
        "",
        "Milliseconds are per batch: medians, interleaved runs, warm-up not counted. "
        "Ratios are end to end, medians of ratios within a round. *of ceiling*: loop / decode, "
        "share of a large matrix product timed in the same run. "
        f"Version {versions}; `stagevar-probe bench --random SIZE` makes such a row.",
    ]
    return "\n".join(lines)


def page() -> str:
    """docs/benchmark.md with its table made again from ``benchmarks/results/*.json``."""
    paths = sorted((ROOT / "benchmarks/results").glob("*.json"))
    found = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    for path, doc in zip(paths, found, strict=True):
        if path.stem.endswith("_before"):
            doc["stage"] = BEFORE
    table = markdown([doc for doc in found if doc.get("kind") == "stagevar-bench"])
    return fill(PAGE.read_text(encoding="utf-8"), "speed", "speed", table)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
