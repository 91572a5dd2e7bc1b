"""Whoever runs a plan runs the pipeline's: kept tokens are rounded to the tiles of the device.

A model that says it lies on a GPU is driven through every entry point; its ``run`` is watched.

    pytest tests/probe/test_one_plan.py
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import invoke, write_tiny
from torch import Tensor

from stagevar_probe.bench.timing import LATE, plan_named
from stagevar_probe.compare.grid import Grid, assemble
from stagevar_probe.datasets.inputs import Inputs
from stagevar_probe.evaluate.evaluation import suite_rows
from stagevar_probe.measure.costs import cost_plans
from stagevar_probe.measure.interventions import Intervention, SearchSpace, run_chunk
from stagevar_runtime import Pipeline, load
from stagevar_runtime.families import var
from stagevar_runtime.families.parts import codebook
from stagevar_runtime.loop.plan import Plan
from stagevar_runtime.model.protocol import GPU_TILE, tile_on
from stagevar_runtime.profile import PlanStep, TokenOption, load_profile, write_profile

KEEP = 0.3  # 5 of the last scale's 16 tokens, 8 in tiles
OPTION = TokenOption(keep=KEEP, select="deviation", restore="cache", span="all")
STEPS = (PlanStep(scale=3, tokens=OPTION),)
Seen = list[tuple[int, int]]  # scale, tokens that ran there


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Seen]:
    """Models loaded from now on take a CPU for a GPU; what they run where is written down."""
    seen: Seen = []
    run = var.VAR.run

    def watched(self, state, scale, x: Tensor, *rest) -> Tensor:
        seen.append((scale.index, x.shape[1]))
        return run(self, state, scale, x, *rest)

    gpu = type("Gpu", (), {"type": "cuda"})
    monkeypatch.setattr(codebook, "tile_on", lambda device: tile_on(gpu))
    monkeypatch.setattr(var.VAR, "run", watched)
    yield seen


def reduced(seen: Seen) -> set[tuple[int, int]]:
    """Where how many tokens ran, of the scales that did not run whole."""
    return {(k, tokens) for k, tokens in seen if tokens < (k + 1) ** 2}


def kept(plan: Plan) -> set[tuple[int, int]]:
    return {(s.scale.index, g.tokens.keep) for s in plan for g in s.groups if g.tokens}


def by_pipeline(pipeline: Pipeline) -> None:
    pipeline.enable(STEPS)
    pipeline(labels=[0], seed=[1])


def by_interventions(pipeline: Pipeline) -> None:
    space = SearchSpace({"published": None}, {}, {"few": OPTION})
    found = [Intervention("few at 3", 3, tokens="few")]
    inputs = Inputs("labels", (0, 1), (0, 1))
    run_chunk(pipeline.model, inputs, space, found, pipeline.sampling(), lambda *_: None)


@pytest.mark.parametrize("entry", [by_pipeline, by_interventions])
def test_what_runs(entry: Callable[[Pipeline], None], on_gpu: Seen, tiny_files: Path) -> None:
    entry(load(tiny_files, device="cpu", profile=None))
    assert reduced(on_gpu) == {(3, GPU_TILE)}


def test_what_is_planned(on_gpu: Seen, tiny_files: Path, calibrated_once: Path) -> None:
    pipeline = load(tiny_files, device="cpu", profile=None)
    model, sampling = pipeline.model, pipeline.sampling()
    profile = load_profile(calibrated_once / "var_tiny.stagevar.yaml")
    entry = profile.plans["balanced"].model_copy(update={"steps": STEPS})
    profile = profile.model_copy(update={"plans": {"balanced": entry}})
    rows = assemble(model.info, model.scales(), sampling, profile, None, Grid())
    plans = {
        "bench": plan_named("balanced", model, sampling, profile),
        "compare": rows.plans["profile: balanced"],
        "evaluate": suite_rows(model, sampling, profile).plans["profile: balanced"],
        "pipeline": pipeline.enable(STEPS).plan(),
    }
    assert {name: kept(plan) for name, plan in plans.items()} == {
        name: {(3, GPU_TILE)} for name in plans
    }
    costs = [plan for _, name, plan in cost_plans(model, sampling, {"few": OPTION}) if name]
    others = [plan_named(LATE, model, sampling, None), *costs, *rows.plans.values()]
    tokens = {tokens for plan in others for _, tokens in kept(plan)}
    assert tokens == {GPU_TILE}  # of 9 and of 16: all other ratios are whole


def test_what_is_certified(on_gpu: Seen, tmp_path: Path) -> None:
    """A calibration, and the commands that run its profile, here with a plan of ours in it."""
    path = write_tiny(tmp_path)
    ours = path.with_suffix(".stagevar.yaml")
    small = ("--held-out", 2, "--batch", 2)
    for command in (
        ("calibrate", path, "-q", "--count", 4, *small),
        ("validate", ours, "-m", path, *small),
        ("generate", path, "--plan", "balanced", "-o", tmp_path / "a.png"),
    ):
        on_gpu.clear()
        done = invoke(*command)
        assert done.exception is None, done
        assert {tokens for _, tokens in reduced(on_gpu)} == {GPU_TILE}, command
        profile = load_profile(ours)
        entry = profile.plans["balanced"].model_copy(update={"steps": STEPS})
        write_profile(profile.model_copy(update={"plans": {"balanced": entry}}), ours)
