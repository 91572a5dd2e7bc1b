"""Keep the class-conditional checkpoint's calibration as a result; its table in docs/results.md.

python -m tools.reference checkpoints/fashion/var_fashion.stagevar.measurements.json  # keep
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks/results/var-fashion-calibration.json"
PLANS = ("exact", "quality", "balanced", "fast")
COLUMNS = (
    *("loss, held out [95 %]", "agreement", "KID", "PSNR to exact"),
    *("transformer", "loop", "end to end"),
)


def keep(path: Path) -> None:
    """Write the job and the figures of a measurements file, without one value an image."""
    measured = json.loads(path.read_text(encoding="utf-8"))
    kept = {name: measured[name] for name in ("kind", "job", "validation", "costs")}
    RESULT.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def table(kept: Mapping[str, Any]) -> str:
    """The plans of the calibration with where and how they were run, as Markdown."""
    job, figures = kept["job"], kept["validation"]
    machine = job["hardware"]
    first = figures["exact"]
    lines = [
        f"`calibrate` on the shipped reference checkpoint ({len(job['scales'])} scales, "
        f"{sum(tokens for _, _, tokens in job['scales'])} tokens), guidance "
        f"{job['sampling']['guidance']:g}, {first['images']} held-out images, batch "
        f"{job['batch']}, {job['dtype']}, {machine['device']} ({machine['machine']}, "
        f"{machine['threads']} threads, torch {machine['torch']}), every plan interleaved with "
        "the exact path in one run:",
        "",
        f"| plan | {' | '.join(COLUMNS)} |",
        f"|---|{'---|' * len(COLUMNS)}",
    ]
    for name in PLANS:
        plan = figures[name]
        exact = name == "exact"
        cells = (
            "-" if exact else "{:+.4f} [{:+.4f}, {:+.4f}]".format(*plan["loss"]),
            f"{plan['score'][0]:.3f}",
            f"{plan['kid']:.0f}",
            "-" if exact else f"{plan['psnr'][0]:.1f} dB",
            f"{plan['transformer_ms']:.0f} ms, "
            f"{plan['exact_transformer_ms'] / plan['transformer_ms']:.2f}x",
            f"{plan['loop_ms']:.0f} ms, {plan['exact_loop_ms'] / plan['loop_ms']:.2f}x",
            f"{plan['total_ms']:.0f} ms, {plan['exact_total_ms'] / plan['total_ms']:.2f}x",
        )
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def reference_table() -> str:
    """The table of what is kept."""
    return table(json.loads(RESULT.read_text(encoding="utf-8")))


if __name__ == "__main__":
    keep(Path(sys.argv[1]))
