"""The directions are those of what enters the layers.

pytest tests/probe/observe/test_pca.py
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import invoke, prompts, small_job, tiny_infinity, write_tiny

from stagevar_probe.commands import solve as solve_command
from stagevar_probe.datasets.inputs import Inputs
from stagevar_probe.measure.costs import cost_plans, measure_costs
from stagevar_probe.measure.flops import scale_flops
from stagevar_probe.measure.interventions import (
    Intervention,
    SearchSpace,
    default_interventions,
    default_space,
    run_chunk,
)
from stagevar_probe.measure.measurements import load_measurements, without_bases
from stagevar_probe.observe.pca import measure_bases, measured_ranks
from stagevar_probe.solve.build import problem_from, steps_of
from stagevar_probe.solve.milp import solve
from stagevar_runtime.errors import CalibrationError
from stagevar_runtime.families.var import VAR
from stagevar_runtime.loading import load
from stagevar_runtime.loop.engine import generate, replay
from stagevar_runtime.loop.plan import compile_plan, plan_for
from stagevar_runtime.model.protocol import ScaleSpec
from stagevar_runtime.model.sampling import Sampling
from stagevar_runtime.options.low_rank import Bases, bases_path
from stagevar_runtime.pipeline import Pipeline
from stagevar_runtime.profile import FeatureOption, PlanStep, Profile, load_profile, write_profile

SAMPLING = Sampling(guidance=2.0, top_k=20, top_p=0.95)
INPUTS = Inputs("six", (0, 3, 1, 2, 4, 0), (11, 12, 13, 14, 15, 16))


def entering(model: Any, inputs: Inputs, scale: int) -> dict[tuple[int, str], torch.Tensor]:
    """What enters every layer of every block at a scale, by hand: hooks on the whole batch."""
    seen: dict[tuple[int, str], list[torch.Tensor]] = {}
    handles = [
        layer.module.register_forward_pre_hook(
            lambda module, args, at=(i, name): seen.setdefault(at, []).append(args[0].clone())
        )
        for i, layers in enumerate(model.low_rank.layers)
        for name, layer in layers.items()
    ]
    generate(model, inputs.condition(model), plan_for(model, (), SAMPLING), seed=list(inputs.seeds))
    for handle in handles:
        handle.remove()
    return {at: values[scale].flatten(0, 1).double() for at, values in seen.items()}


@pytest.mark.parametrize("family", ["var", "infinity"])
def test_directions_are_the_principal_components(tiny_var: VAR, family: str) -> None:
    model: Any = tiny_var
    inputs = INPUTS
    if family == "infinity":
        model = tiny_infinity()
        texts = prompts((3, 5, 2, 4, 6, 3))
        inputs = replace(
            INPUTS,
            items=tuple("012345"),
            encode=lambda items: model.condition(
                text=texts["text"][[int(i) for i in items]],
                mask=texts["mask"][[int(i) for i in items]],
            ),
        )
    bases = measure_bases(model, inputs, SAMPLING, {3: 8}, batch=4)
    width, names = model.info.width, [*model.info.layers]
    assert bases.vectors.keys() == {(3, g, n) for g in range(len(model.info.groups)) for n in names}
    seen = entering(model, inputs, 3)
    for group, blocks in enumerate(model.info.groups):
        for name in names:
            vectors, means = bases.vectors[3, group, name], bases.means[3, group, name]
            assert (vectors.shape, means.shape) == ((width, 8), (len(blocks), width))
            parts = [seen[i, name] for i in blocks]
            want = torch.stack([part.mean(0) for part in parts])
            torch.testing.assert_close(means.double(), want, atol=1e-4, rtol=0)
            centred = torch.cat([part - part.mean(0) for part in parts])
            best = torch.linalg.svdvals(centred)[:8].square().sum()
            held = (centred @ vectors.double()).square().sum()
            assert held == pytest.approx(float(best), rel=1e-4)


def test_measured_directions_beat_random_ones(tiny_var: VAR) -> None:
    """Of the same rank; and more of them are closer to exact."""
    tiny_var.low_rank.use(measure_bases(tiny_var, INPUTS, SAMPLING, {3: 32}, 6))
    conditioning = INPUTS.condition(tiny_var)
    ids = generate(
        tiny_var, conditioning, plan_for(tiny_var, (), SAMPLING), seed=list(INPUTS.seeds)
    ).ids
    exact = replay(tiny_var, conditioning, ids, plan_for(tiny_var, (), SAMPLING)).logits[3]

    def error(basis: str, rank: int) -> float:
        option = FeatureOption(rank=rank, basis=basis, layers=("qkv", "proj", "fc1"))
        steps = [PlanStep(scale=3, features=option)]
        plan = compile_plan(steps, tiny_var.info, tiny_var.scales(), SAMPLING)
        got = replay(tiny_var, conditioning, ids, plan).logits[3]
        return float((got - exact).square().mean())

    assert error("pca", 32) < error("pca", 8) and error("pca", 32) < 0.5 * error("random", 32)


def test_nothing_seen_is_an_error(tiny_var: VAR) -> None:
    with pytest.raises(CalibrationError, match="nothing entered a layer at scale 9"):
        measure_bases(tiny_var, INPUTS, SAMPLING, {9: 4}, 6)
    assert not tiny_var.transformer.blocks[0].attn._forward_pre_hooks  # taken away again


def test_menu_has_features_where_the_family_has_them(tiny_var: VAR) -> None:
    space = default_space(tiny_var.info, SAMPLING)
    assert space.features == {f"pca {r}": FeatureOption(rank=r, basis="pca") for r in (32, 16)}
    interventions = [
        intervention
        for intervention in default_interventions(space, tiny_var.scales())
        if intervention.features
    ]
    assert [(intervention.scale, intervention.features) for intervention in interventions] == [
        *((2, "pca 32"), (2, "pca 16"), (3, "pca 32"), (3, "pca 16"))
    ]
    assert measured_ranks(space.steps(intervention, 4) for intervention in interventions) == {
        2: 32,
        3: 32,
    }
    assert not default_space(replace(tiny_var.info, layers={}), SAMPLING).features


def test_an_arm_is_its_plan_run_whole(tiny_var: VAR) -> None:
    tiny_var.low_rank.use(measure_bases(tiny_var, INPUTS, SAMPLING, {2: 16, 3: 16}, 6))
    space = SearchSpace({"published": None}, {}, {}, {"pca": FeatureOption(rank=16, basis="pca")})
    interventions = [Intervention(f"pca at {k}", k, features="pca") for k in (2, 3)]
    seen: dict[str, torch.Tensor] = {}
    run_chunk(tiny_var, INPUTS, space, interventions, SAMPLING, seen.__setitem__)
    for intervention in interventions:
        plan = compile_plan(
            space.steps(intervention, 4), tiny_var.info, tiny_var.scales(), SAMPLING
        )
        conditioning = INPUTS.condition(tiny_var)
        whole = generate(tiny_var, conditioning, plan, seed=list(INPUTS.seeds)).images
        torch.testing.assert_close(seen[intervention.name], whole, atol=1e-5, rtol=0)
        assert not torch.equal(whole, seen["exact"])


def test_features_cost_little_to_measure(tiny_var: VAR) -> None:
    """Generations an image, as calibrate counts them, on a published schedule: under 60."""
    d = 1024
    info = replace(tiny_var.info, width=d, depth=16, layers={"qkv": 3 * d, "proj": d, "fc1": 4 * d})
    info = replace(info, groups=tuple(range(i, i + 4) for i in range(0, 16, 4)))
    sides = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
    scales = tuple(ScaleSpec(k, s, s, s * s) for k, s in enumerate(sides))
    space = default_space(info, SAMPLING)
    whole = sum(scale_flops(info, compile_plan((), info, scales, SAMPLING)))
    work = {True: float(len(space.schedules)), False: float(len(space.schedules))}
    for intervention in (
        intervention for intervention in default_interventions(space, scales) if intervention.scale
    ):
        plan = compile_plan(space.steps(intervention, len(scales)), info, scales, SAMPLING)
        spent = sum(scale_flops(info, plan)[intervention.scale :]) / whole
        work[True] += spent
        work[False] += 0 if intervention.features else spent
    assert work[True] + 1 < 60 and work[True] + 1 < work[False] + 5


def test_costs_need_no_measured_directions(tiny_var: VAR) -> None:
    tiny_var.low_rank.use()
    space = default_space(tiny_var.info, SAMPLING, tiny_var.scales())
    inputs, options = tiny_var.condition(labels=[0, 1]), {**space.tokens, **space.features}
    costs = measure_costs(tiny_var, inputs, SAMPLING, space.options, 1)
    cells = {(k, rows, name) for k in (1, 2, 3) for rows in (1, 2) for name in options}
    cells |= {(k, 2, name) for name, part in space.parts.items() for k in part}
    assert cells < costs.ms.keys() and {"pca 32", "pca 16"} < options.keys()
    one = {"pca": FeatureOption(rank=4, basis="pca")}
    for _, name, plan in cost_plans(tiny_var, SAMPLING, one):
        narrow = [step.low_rank is not None for step in plan]
        assert narrow == [name == "pca" and k > 0 for k in range(4)]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return load(write_tiny(tmp_path_factory.mktemp("bases")), device="cpu", profile=None)


def narrowing(profile: Profile) -> Profile:
    """The profile with plans that all narrow the last scale to 16 measured directions."""
    steps = (PlanStep(scale=3, features=FeatureOption(rank=16, basis="pca")),)
    plans = {name: plan.model_copy(update={"steps": steps}) for name, plan in profile.plans.items()}
    return profile.model_copy(update={"plans": plans})


@pytest.fixture
def with_features(tmp_path: Path, pipeline: Pipeline) -> Path:
    """What a calibration leaves whose plans all narrow the last scale."""
    job = small_job(tmp_path, pipeline)
    profile = narrowing(job.run())
    job.directions.write(job.outputs.bases, profile)
    write_profile(profile, job.outputs.profile)
    return tmp_path


def test_calibration_ships_what_its_plans_need(with_features: Path, pipeline: Pipeline) -> None:
    path = with_features / "m.stagevar.safetensors"
    bases = Bases.load(path, pipeline.fingerprint.weights)
    assert {place[0] for place in bases.vectors} == {3}
    assert {vectors.shape for vectors in bases.vectors.values()} == {(64, 16)}
    pipeline.model.low_rank.use()  # type: ignore[attr-defined]
    pipeline.use_profile(with_features / "m.stagevar.yaml")
    assert "features 16 pca in qkv proj fc1" in str(pipeline.summary())
    measured = load_measurements(with_features / "m.stagevar.measurements.json")
    assert {"pca 32 at 3", "pca 16 at 2"} <= measured.smooth.keys()
    assert (3, 2, "pca 16") in measured.costs.ms  # type: ignore[union-attr]
    model = pipeline.model
    space = replace(measured.space, precision=None)  # what is fast depends on the processor
    assert space == default_space(model.info, pipeline.sampling(), model.scales())


def test_plans_without_directions_leave_no_file(tmp_path: Path, pipeline: Pipeline) -> None:
    path = tmp_path / "m.stagevar.safetensors"
    path.write_text("of an earlier profile")
    job = small_job(tmp_path, pipeline)
    job.directions.try_one()
    made = job.run()
    job.directions.write(path, narrowing(made))
    assert path.exists()
    plain = {name: plan.model_copy(update={"steps": ()}) for name, plan in made.plans.items()}
    job.directions.write(path, made.model_copy(update={"plans": plain}))
    assert not path.exists()


def test_solve_chooses_only_what_is_at_hand(
    with_features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = with_features / "m.stagevar.measurements.json"
    measured = load_measurements(path)
    bases = Bases.load(with_features / "m.stagevar.safetensors", measured.job.weights)
    left = [
        intervention.name
        for intervention in without_bases(measured, bases).interventions
        if intervention.features
    ]
    assert left == ["pca 16 at 3"]
    assert not [
        intervention
        for intervention in without_bases(measured, None).interventions
        if intervention.features
    ]
    assert measured.costs is not None
    for cell in measured.costs.ms:  # narrowing is free of loss and time: nothing else is chosen
        if cell[2] == "pca 16":
            measured.costs.ms[cell] = 1e-3
    measured.smooth["pca 16 at 3"] = list(measured.smooth["exact"])
    problem = problem_from(without_bases(measured, bases), 0.0)
    steps = steps_of(solve(problem, 0.0), measured)
    assert steps[-1].features == FeatureOption(rank=16, basis="pca") and steps[-1].scale == 3
    monkeypatch.setattr(solve_command, "load_measurements", lambda path: measured)
    output = tmp_path / "elsewhere.yaml"
    result = invoke("solve", path, "--max-loss", 0, "--output", output)
    assert "some features cannot be chosen" in result.stdout, result.exception
    written = load_profile(output)
    assert measured_ranks(plan.steps for plan in written.plans.values()) == {3: 16}
    copied = Bases.load(tmp_path / "elsewhere.stagevar.safetensors", measured.job.weights)
    assert copied.vectors.keys() == bases.vectors.keys()


def test_bases_never_take_a_checkpoints_name() -> None:
    """Whatever a profile is called: model.yaml may lie beside model.safetensors."""
    names = ("model.stagevar.yaml", "stagevar.yaml", "model.yaml")
    assert [bases_path(Path("x") / name).name for name in names] == [
        "model.stagevar.safetensors",
        "stagevar.safetensors",
        "model.stagevar.safetensors",
    ]
