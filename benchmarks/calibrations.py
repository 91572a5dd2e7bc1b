"""Ten short calibrations of one checkpoint, each with another seed, and what their plans lose.

python benchmarks/calibrations.py checkpoints/scenes/scenes.safetensors --time 2m --fresh 2000

Every calibration runs as a user's does, in a folder of its own. Then the distinct plans run beside
the exact path on the same fresh prompts, which no calibration has seen: those called satisfied on
all of them, the others on the first ``--others``. Takes an hour or two on two cores; finished
calibrations are not made again. Writes benchmarks/results/calibrations.json, from which
``python -m tools.results`` makes the table of docs/results.md.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

from stagevar_probe.commands.options import ModelOptions
from stagevar_probe.evaluate.evaluation import suite_inputs
from stagevar_probe.evaluate.suites import find_suite
from stagevar_probe.measure.figures import Figures
from stagevar_probe.measure.hardware import dtype_name, hardware
from stagevar_probe.measure.measurements import load_measurements
from stagevar_probe.validate.run import validate
from stagevar_runtime.loop.plan import EXACT, plan_for
from stagevar_runtime.profile import load_profile

FRESH_SEED = 77  # of the prompts that check
RESULT = Path(__file__).resolve().parent / "results" / "calibrations.json"


def calibrated(checkpoint: Path, folder: Path, time: str, seed: int) -> Path:
    """The profile of a calibration with a seed; the folder keeps what was made before."""
    own = folder / f"seed-{seed}"
    profile = own / checkpoint.with_suffix(".stagevar.yaml").name
    if not profile.exists():
        own.mkdir(parents=True, exist_ok=True)
        for path in checkpoint.parent.iterdir():
            if ".stagevar." not in path.name:
                shutil.copy(path, own)
        command = [sys.executable, "-m", "stagevar_probe", "calibrate", str(own / checkpoint.name)]
        subprocess.run([*command, "--time", time, "--seed", str(seed)], check=False)
    return profile


def main() -> None:
    """Calibrate, then check the plans on fresh prompts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--time", default="2m")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--fresh", type=int, default=2000)
    parser.add_argument("--others", type=int, default=500)
    parser.add_argument("--suite", default="scenes")
    parser.add_argument("--folder", type=Path, default=Path("runs/calibrations"))
    asked = parser.parse_args()
    profiles = {
        seed: load_profile(calibrated(asked.checkpoint, asked.folder, asked.time, seed))
        for seed in range(asked.seeds)
    }
    options = ModelOptions(metric=asked.suite)
    pipeline = options.load(asked.checkpoint)
    model, sampling = pipeline.model, pipeline.sampling()
    suite = find_suite(asked.suite)
    exact = plan_for(model, (), sampling)
    own = {
        seed: plan_for(model, profile.plan("balanced").steps, sampling)
        for seed, profile in profiles.items()
    }
    names = {s: next(f"seed {o}" for o, p in own.items() if p == plan) for s, plan in own.items()}
    sure = {names[s] for s, p in profiles.items() if p.target and p.target.satisfied is True}
    quality = options.quality(asked.checkpoint, pipeline)
    figures: dict[str, Figures] = {}
    for count, some in ((asked.others, set(names.values()) - sure), (asked.fresh, sure)):
        if some:
            inputs, _ = suite_inputs(suite, count, FRESH_SEED, pipeline.read_condition)
            plans = {EXACT: exact} | {names[s]: plan for s, plan in own.items() if names[s] in some}
            figures |= validate(model, inputs, plans, sampling, quality, options.batch)
    rows = []
    for seed, profile in profiles.items():
        path = asked.folder / f"seed-{seed}" / asked.checkpoint.name
        found = load_measurements(path.with_suffix(".stagevar.measurements.json")).validation
        fresh, mine = figures[names[seed]], found.plans["balanced"]
        assert profile.target is not None
        rows.append(
            {
                "seed": seed,
                "satisfied": profile.target.satisfied,
                "steps": [
                    step.model_dump(mode="json", exclude_defaults=True)
                    for step in profile.plan("balanced").steps
                ],
                "loss": list(mine.loss),
                "inputs": mine.images,
                "fresh_loss": list(fresh.loss),
                "fresh_inputs": fresh.images,
                "speedup_loop": list(fresh.speedup_loop),
                "speedup_total": list(fresh.speedup_total),
                "seconds": dict(found.seconds),
            }
        )
        print(json.dumps(rows[-1]))
    kept = {
        "time": asked.time,
        "suite": asked.suite,
        "batch": options.batch,
        "dtype": dtype_name(model),
        "hardware": hardware(model),
        "rows": rows,
    }
    RESULT.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
