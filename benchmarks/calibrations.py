"""Ten short calibrations of one checkpoint, each with another seed, and what their plans lose.

python benchmarks/calibrations.py checkpoints/scenes/scenes.safetensors --time 2m --fresh 2000

Every calibration runs as a user's does, in a folder of its own. Then all distinct plans run beside
the exact path on the same fresh prompts, which no calibration has seen. Takes hours on two cores;
finished calibrations are not made again. Writes benchmarks/results/calibrations.json and says the
table that docs/results.md shows.
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
from stagevar_probe.measure.measurements import load_measurements
from stagevar_probe.validate.run import validate
from stagevar_runtime.loop.plan import EXACT, plan_for
from stagevar_runtime.profile import load_profile

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
    """Calibrate, then check all plans on fresh prompts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--time", default="2m")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--fresh", type=int, default=2000)
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
    inputs, kinds = suite_inputs(suite, asked.fresh, 77, pipeline.read_condition)
    assert len(kinds) == len(inputs)
    plans = {EXACT: plan_for(model, (), sampling)}
    names: dict[int, str] = {}
    for seed, profile in profiles.items():
        plan = plan_for(model, profile.plan("balanced").steps, sampling)
        known = [name for name, made in plans.items() if made == plan]
        names[seed] = known[0] if known else f"seed {seed}"
        plans[names[seed]] = plan
    quality = options.quality(asked.checkpoint, pipeline)
    figures = validate(model, inputs, plans, sampling, quality, options.batch)
    rows = []
    for seed, profile in profiles.items():
        path = asked.folder / f"seed-{seed}" / asked.checkpoint.name
        found = load_measurements(path.with_suffix(".stagevar.measurements.json")).validation
        fresh, own = figures[names[seed]], found.plans["balanced"]
        assert profile.target is not None
        rows.append(
            {
                "seed": seed,
                "satisfied": profile.target.satisfied,
                "loss": list(own.loss),
                "inputs": own.images,
                "fresh_loss": list(fresh.loss),
                "fresh_inputs": fresh.images,
                "speedup_loop": fresh.speedup_loop.mean,
                "seconds": dict(found.seconds),
            }
        )
        print(json.dumps(rows[-1]))
    RESULT.write_text(json.dumps({"time": asked.time, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
