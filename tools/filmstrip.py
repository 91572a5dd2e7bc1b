"""Draw the README's filmstrip: the shipped scenes checkpoint, exact above and balanced below.

python -m tools.filmstrip

Plan and stages are those of the committed calibration (benchmarks/results/scenes-curves.json).
"""

from __future__ import annotations

import json
from pathlib import Path

import torch

from stagevar_probe.report.filmstrip import film, filmstrip, row
from stagevar_runtime import load
from stagevar_runtime.profile import PlanStep, Stages

ROOT = Path(__file__).resolve().parent.parent
CHECKPOINT = ROOT / "checkpoints/scenes/scenes.safetensors"
CURVES = ROOT / "benchmarks/results/scenes-curves.json"
OUTPUT = ROOT / "docs/results/scenes-filmstrip.svg"
PROMPT, SEED = "a red star above a blue ring", 3


def main() -> None:
    """Write the picture; times are left out, since a page is no place for one run's."""
    torch.set_num_threads(2)
    found = json.loads(CURVES.read_text(encoding="utf-8"))
    steps = [PlanStep.model_validate(step) for step in found["plans"]["balanced"]]
    pipeline = load(CHECKPOINT, profile=None)
    settings = found["job"]["sampling"]
    how = {
        name: settings[name] for name in ("guidance", "temperature", "top_p") if name in settings
    }
    rows = []
    for name in ("exact", "balanced"):
        if name == "balanced":
            pipeline.enable(steps)
        filmed = film(pipeline, [SEED], prompts=[PROMPT], **how)
        filmed.made.scale_ms = []
        rows.append(row(name, filmed))
    stages = Stages.model_validate(found["stages"], strict=False)
    OUTPUT.write_text(filmstrip(rows, pipeline.model.scales(), stages) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
