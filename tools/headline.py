"""Make the table of README.md from the committed results.

python -m tools.headline
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .marked import fill

ROOT = Path(__file__).resolve().parent.parent
RESULTS, PAGE = ROOT / "benchmarks/results", ROOT / "README.md"
SCENES = {
    "profile: balanced": "**`balanced`, found by `calibrate`**",
    "switti": "guidance off late, cool (Switti)",
    "stagevar": "StageVAR as published",
    "fastvar": "FastVAR as published",
    "skip-2": "last two scales left out",
}
GPU = {"exact": "exact path", "balanced-like": "`balanced`-like plan"}


def load(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / name).read_text(encoding="utf-8"))


def rows() -> Iterator[tuple[str, str, str, str]]:
    """What ran, what it lost, loop only, end to end."""
    found = load("scenes-evaluation.json")
    by_name = {row["name"]: row for row in found["rows"]}
    yield f"*scenes, text to image, {found['job']['hardware']['device'].upper()}*", "", "", ""
    for name, title in SCENES.items():
        row = by_name[name]
        lost = "{:.3f} [{:.3f}, {:.3f}]".format(*row["passed_loss"])
        yield title, lost, f"{row['speedup_loop'][0]:.2f}x", f"{row['speedup_total'][0]:.2f}x"
    found = load("var-fashion-calibration.json")
    plan = found["validation"]["balanced"]
    yield f"*fashion, by class, {found['job']['hardware']['device'].upper()}*", "", "", ""
    yield (
        SCENES["profile: balanced"],
        "{:.3f} [{:.3f}, {:.3f}]".format(*plan["loss"]),
        f"{plan['exact_loop_ms'] / plan['loop_ms']:.2f}x",
        f"{plan['exact_total_ms'] / plan['total_ms']:.2f}x",
    )
    for path in sorted(RESULTS.glob("infinity-2b-random_h100*.json")):
        bench = json.loads(path.read_text(encoding="utf-8"))
        when = ", before fused kernels" if path.stem.endswith("_before") else ""
        yield f"*Infinity-2B, 1024², {bench['hardware']['name']}, random weights{when}*", "", "", ""
        runs = bench["batches"][0]["runs"]
        for name, title in GPU.items():
            versus = runs[name]["vs_published"]
            yield (
                f"{title}, against the published loop",
                "-",
                *(f"{versus[key]:.2f}x" for key in ("loop", "total")),
            )


def table() -> str:
    """Four columns."""
    lines = ["| | lost, held out [95 %] | loop only | end to end |", "|---|---|---|---|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows()]
    return "\n".join(lines)


def page() -> str:
    """The page with its table made again."""
    return fill(PAGE.read_text(encoding="utf-8"), "headline", "headline", table())


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
