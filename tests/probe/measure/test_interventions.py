"""An arm run from a fork is the same plan run whole.

pytest tests/probe/measure/test_interventions.py
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from conftest import var_states
from tape import TapeRecorder
from torch import Tensor

from stagevar_probe.datasets.inputs import Inputs
from stagevar_probe.measure import interventions
from stagevar_probe.measure.flops import scale_flops
from stagevar_probe.measure.interventions import (
    EXACT,
    PUBLISHED,
    Intervention,
    SearchSpace,
    default_interventions,
    default_space,
    fewest_bits,
    run_chunk,
)
from stagevar_probe.observe.observer import ExactObserver
from stagevar_probe.observe.sensitivity import js_divergence
from stagevar_runtime.accelerate.modes import accelerate
from stagevar_runtime.families.var import VAR
from stagevar_runtime.loop.engine import Observer, generate, replay
from stagevar_runtime.loop.plan import compile_plan, plan_for
from stagevar_runtime.model.protocol import ModelInfo, ScaleSpec
from stagevar_runtime.model.sampling import Sampling
from stagevar_runtime.options.precision import precisions_of
from stagevar_runtime.profile import PlanStep, TokenOption

SAMPLING = Sampling(guidance=2.0, top_k=20, top_p=0.95)
SPACE = SearchSpace(
    schedules={PUBLISHED: None, "constant 3": 3.0},
    variants={
        "cond": ("cond", None),
        "null": ("null", None),
        "cool": ("cond", 0.5),
        "delta": ("delta", None),
    },
    tokens={
        "cache": TokenOption(keep=0.5, select="deviation", restore="cache", span="all"),
        "groups": TokenOption(keep=(0.5, 0.3), select="norm", restore="delta-cache"),
        "lift": TokenOption(keep=0.5, select="leverage", restore="lift", span="all"),
        "update": TokenOption(keep=0.5, select="update", restore="delta-cache", span="all"),
        "blocks": TokenOption(keep=(0.5, 1), select="pivot", restore="delta-cache", span="block"),
        "projection": TokenOption(keep=0.5, select="projection", restore="cache"),
    },
    parts={"few": {2: 0.5, 3: 0.25}, "fewer": {3: 0.25}},
    precision="int8",
)
INTERVENTIONS = [
    Intervention("constant 3", 0, "constant 3"),
    *(Intervention(f"{v} from {k}", k, PUBLISHED, v) for v in SPACE.variants for k in (1, 3)),
    Intervention("joint", 2, "constant 3", "cool"),
    Intervention("joint delta", 2, "constant 3", "delta"),
    *(Intervention(f"{t} at {k}", k, tokens=t) for t in SPACE.tokens for k in (2, 3)),
    *(Intervention(name, min(part), part=name) for name, part in SPACE.parts.items()),
    *(Intervention(f"int8 from {k}", k, precision="int8") for k in (0, 2)),
    Intervention("skip from 3", 3, skip=True),
    Intervention("skip from 1", 1, skip=True),
    Intervention("skip 1 to 2", 1, skip=True, until=3),
]
CPU = torch.device("cpu")
INPUTS = Inputs("three", (0, 3, 1), (11, 12, 13))


def run(
    model: VAR,
    interventions: list[Intervention],
    inputs: Inputs = INPUTS,
    space: SearchSpace = SPACE,
):
    seen: dict[str, Tensor] = {}
    names: list[str] = []

    def visit(name: str, images: Tensor) -> None:
        names.append(name)
        seen[name] = images.clone()

    run_chunk(model, inputs, space, interventions, SAMPLING, visit)
    assert len(names) == len(seen)
    return seen


def whole(model: VAR, steps: list[PlanStep], inputs: Inputs = INPUTS) -> Tensor:
    plan = compile_plan(steps, model.info, model.scales(), SAMPLING)
    return generate(model, inputs.condition(model), plan, seed=list(inputs.seeds)).images


@pytest.fixture(scope="module")
def forked(tiny_var: VAR) -> Iterator[dict[str, Tensor]]:
    """Fewer bits by their definition, whatever this processor gains by."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precisions_of(tiny_var), "emulate", True)
        yield run(tiny_var, INTERVENTIONS)


def test_exact_comes_first_and_every_intervention_once(forked: dict[str, Tensor]) -> None:
    assert next(iter(forked)) == EXACT
    assert set(forked) == {EXACT, *(intervention.name for intervention in INTERVENTIONS)}


def test_exact_is_the_plain_generation(tiny_var: VAR, forked: dict[str, Tensor]) -> None:
    torch.testing.assert_close(forked[EXACT], whole(tiny_var, []), atol=1e-5, rtol=0)


@pytest.mark.parametrize("intervention", INTERVENTIONS, ids=lambda intervention: intervention.name)
def test_forked_intervention_is_its_plan_run_whole(
    tiny_var: VAR, forked: dict[str, Tensor], intervention: Intervention
) -> None:
    want = whole(tiny_var, SPACE.steps(intervention, 4))
    torch.testing.assert_close(forked[intervention.name], want, atol=1e-5, rtol=0)
    assert not torch.equal(want, forked[EXACT])  # or the comparison would say nothing


def test_interventions_share_graphs(forked: dict[str, Tensor]) -> None:
    """Replayed from recorded scales every picture is the eager one, and no way to run a scale is
    recorded twice: not for an intervention, and not for a plan that runs it later."""
    model, recorder = VAR.from_tensors(*var_states(), CPU, torch.float32), TapeRecorder()
    fast = accelerate(model, recorder=recorder)
    counts = []
    for turn in range(4):
        inputs = Inputs("three", (0, 3, 1), (11 + turn, 12, 13))
        got = run(model, INTERVENTIONS, inputs)
        counts.append(recorder.recorded)
    assert fast.graphs is not None and not fast.graphs.off, fast.notes()
    model.networks = None
    want = run(model, INTERVENTIONS, inputs)
    for name, images in want.items():
        assert torch.equal(got[name], images), name
    assert counts[1] == counts[2] == counts[3] > 0
    graphs = [graph for home in fast.graphs.homes for graph in home.graphs if graph.replay]
    ran = sum(4 - intervention.scale for intervention in INTERVENTIONS)
    assert counts[3] == len(graphs) < ran  # far fewer than scales that interventions ran
    model.networks = fast.graphs
    for steps in ([], [PlanStep(scale=3, guidance="cond")], [PlanStep(scale=3, run="skip")]):
        assert torch.equal(whole(model, steps, inputs), whole(tiny_plain(), steps, inputs))
    assert recorder.recorded == counts[3]


def tiny_plain() -> VAR:
    return VAR.from_tensors(*var_states(), CPU, torch.float32)


def test_arms_do_not_see_each_other(tiny_var: VAR, forked: dict[str, Tensor]) -> None:
    for intervention in INTERVENTIONS[::3]:
        alone = run(tiny_var, [intervention])
        torch.testing.assert_close(
            alone[intervention.name], forked[intervention.name], atol=1e-5, rtol=0
        )


def test_noise_is_coupled(tiny_var: VAR) -> None:
    """Options that change nothing give the very picture: every arm draws the same numbers."""
    space = SearchSpace(
        schedules={PUBLISHED: None},
        variants={},
        tokens={"all": TokenOption(keep=1.0, select="norm", restore="cache", span="group")},
    )
    seen = run(tiny_var, [Intervention("nothing", 2, tokens="all")], space=space)
    assert torch.equal(seen["nothing"], seen[EXACT])
    cond_only = SearchSpace({PUBLISHED: None}, {"warm": ("cond", 1.0)}, {})
    off = Sampling(guidance=0.0, top_k=20, top_p=0.95)
    images: dict[str, Tensor] = {}
    run_chunk(
        tiny_var,
        INPUTS,
        cond_only,
        [Intervention("same", 2, PUBLISHED, "warm")],
        off,
        images.__setitem__,
    )
    assert torch.equal(images["same"], images[EXACT])


def test_image_of_a_chunk_is_the_image_alone(tiny_var: VAR, forked: dict[str, Tensor]) -> None:
    alone = run(tiny_var, INTERVENTIONS, INPUTS.chunk(1, 1))
    for name, images in alone.items():
        torch.testing.assert_close(images[0], forked[name][1], atol=1e-4, rtol=0)


def test_observer_sees_the_exact_run_alone(tiny_var: VAR) -> None:
    class Count(Observer):
        def __init__(self) -> None:
            self.scales: list[int] = []

        def advanced(self, state, step, ids) -> None:
            self.scales.append(step.scale.index)
            assert state.branches == ("cond", "null")

    count = Count()
    run_chunk(tiny_var, INPUTS, SPACE, INTERVENTIONS, SAMPLING, lambda name, images: None, count)
    assert count.scales == [0, 1, 2, 3]


def test_menu_steps_say_what_the_intervention_is() -> None:
    joint = SPACE.steps(Intervention("joint", 2, "constant 3", "cool"), 4)
    assert [(s.scale, s.guidance_scale, s.guidance, s.temperature) for s in joint] == [
        (0, 3.0, None, None),
        (1, 3.0, None, None),
        (2, None, "cond", 0.5),
        (3, None, "cond", 0.5),
    ]
    assert SPACE.steps(Intervention("t", 2, tokens="lift"), 4) == [
        PlanStep(scale=2, tokens=SPACE.tokens["lift"])
    ]
    skipped = SPACE.steps(Intervention("s", 2, skip=True), 4)
    assert [(s.scale, s.run) for s in skipped] == [(2, "skip"), (3, "skip")]
    inner = SPACE.steps(Intervention("s", 1, skip=True, until=2), 4)
    assert [(s.scale, s.run) for s in inner] == [(1, "skip")]


def scales_of(*sides: int) -> tuple[ScaleSpec, ...]:
    return tuple(ScaleSpec(k, s, s, s * s) for k, s in enumerate(sides))


def info_of(**changes) -> ModelInfo:
    return ModelInfo("toy", 2, 8, 2, (range(0, 1), range(1, 2)), **changes)


@pytest.mark.parametrize(("kind", "off"), [("ramp", 0.0), ("linear", 1.0)])
def test_unguided_model_gets_no_guidance_interventions(kind, off) -> None:
    space = default_space(info_of(guidance=kind), Sampling(guidance=off))
    assert space.variants == {} and list(space.schedules) == [PUBLISHED]
    guided = default_space(info_of(guidance=kind), Sampling(guidance=4.0))
    assert {"cond", "null"} <= set(guided.variants) and len(guided.schedules) > 1


def test_null_is_no_choice_where_rows_depend_on_each_other() -> None:
    space = default_space(info_of(guidance="ramp", rows_independent=False), Sampling(guidance=4.0))
    assert {guidance for guidance, _ in space.variants.values()} == {"cond", "delta"}
    star = info_of(guidance="ramp", rows_independent=False, branches=("cond",))
    assert default_space(star, Sampling(guidance=4.0)).variants == space.variants


def test_delta_is_no_choice_where_hidden_states_are_guided() -> None:
    info = info_of(guides_logits=False)
    assert "delta" not in default_space(info, Sampling(guidance=4.0)).variants


def test_delta_keeps_the_strength_of_its_schedule() -> None:
    steps = SPACE.steps(Intervention("delta", 2, "constant 3", "delta"), 4)
    assert [(s.scale, s.guidance, s.guidance_scale) for s in steps] == [
        *((0, None, 3.0), (1, None, 3.0), (2, "delta", 3.0), (3, "delta", 3.0))
    ]


@pytest.mark.parametrize("sides", [(1, 2, 3, 4, 5, 6, 8), (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)])
@pytest.mark.parametrize("kind", ["ramp", "linear"])
def test_model_work_stays_small(sides: tuple[int, ...], kind: str) -> None:
    """As the calibration prints it: full generations an image, arms from where they begin."""
    info = replace(info_of(guidance=kind), width=1024)
    scales, sampling = scales_of(*sides), Sampling(guidance=4.0)
    space = default_space(info, sampling, scales)
    work = float(len(space.schedules))
    whole = sum(scale_flops(info, compile_plan((), info, scales, sampling)))
    for intervention in default_interventions(space, scales):
        if intervention.scale:
            plan = compile_plan(space.steps(intervention, len(scales)), info, scales, sampling)
            work += sum(scale_flops(info, plan)[intervention.scale :]) / whole
    assert work < 33  # of these models, which have no features


def test_tokens_are_guided_in_part_only_where_that_can_run() -> None:
    """After a map, where guidance is published, and never where null cannot run alone."""
    sampling, info = Sampling(guidance=4.0, guidance_off_from=3), info_of(guidance="linear")
    text = (ScaleSpec(0, 1, 1, 7), *scales_of(1, 2, 3, 4)[1:])
    parts = default_space(info, sampling, text).parts
    assert parts["guided 0.1"] == {2: round(1.6 / 9, 4)} and parts["guided 0.35"] == {2: 0.6222}
    final = (*scales_of(1, 2, 3), ScaleSpec(3, 4, 4, 16, "final"))
    assert set(default_space(info, Sampling(guidance=4.0), final).parts["guided 0.35"]) == {2}
    for other in ({"guides_logits": False}, {"rows_independent": False}):
        refused = info_of(guidance="linear", **other)
        assert not default_space(refused, Sampling(guidance=4.0), scales_of(1, 2, 3)).parts
    assert not default_space(info, Sampling(guidance=1.0), scales_of(1, 2, 3)).parts


def test_default_arms_compile_and_are_named_apart() -> None:
    info, scales = info_of(guidance="ramp"), scales_of(1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
    sampling = Sampling(guidance=4.0)
    space = default_space(info, sampling, scales)
    interventions = default_interventions(space, scales)
    assert len({intervention.name for intervention in interventions}) == len(interventions)
    exact = compile_plan((), info, scales, sampling)
    for intervention in interventions:
        plan = compile_plan(space.steps(intervention, len(scales)), info, scales, sampling)
        first = next(k for k, (a, b) in enumerate(zip(plan, exact, strict=True)) if a.asked)
        assert first == (0 if intervention.schedule != PUBLISHED else intervention.scale)
    assert {
        intervention.scale
        for intervention in interventions
        if intervention.skip and intervention.until is None
    } == {7, 8, 9}
    inner = {
        (intervention.scale, intervention.until)
        for intervention in interventions
        if intervention.until is not None
    }
    assert inner == {(7, 8), (7, 9), (8, 9)}
    parts = {
        intervention.part: intervention.scale for intervention in interventions if intervention.part
    }
    assert parts == {"guided 0.35": 8, "guided 0.2": 6, "guided 0.1": 5}
    assert space.parts["guided 0.35"] == {8: round(89.6 / 169, 4), 9: 0.35}
    assert (
        min(intervention.scale for intervention in interventions if intervention.tokens) >= 7
    )  # only scales that hold many tokens


def test_observed_delta_is_what_the_delta_plan_does(tiny_var: VAR) -> None:
    """From one exact run, the distribution that a delta plan would have drawn from."""
    sampling = Sampling(guidance=2.0, temperature=0.8)
    observer = ExactObserver(tiny_var, sampling, rank_images=0)
    conditioning = INPUTS.condition(tiny_var)
    ids = generate(
        tiny_var, conditioning, plan_for(tiny_var, (), sampling), seed=[1, 2, 3], observer=observer
    ).ids
    assert "delta" not in observer.sensitivity[0]
    for k in (1, 2, 3):
        steps = [PlanStep(scale=k, guidance="delta")]
        plan = compile_plan(steps, tiny_var.info, tiny_var.scales(), sampling)
        delta = replay(tiny_var, conditioning, ids, plan)
        exact = replay(tiny_var, conditioning, ids, plan_for(tiny_var, (), sampling))
        want = js_divergence(exact.guided[k], delta.guided[k]).mean(1)
        got = observer.sensitivity[k]["delta"]
        torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-3)


def test_products_in_fewer_bits_begin_at_every_scale_where_the_model_gains(
    tiny_var: VAR, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = precisions_of(tiny_var)
    monkeypatch.setattr(known, "emulate", False)
    monkeypatch.setattr(known, "hindrance", lambda kind: "slow")
    assert fewest_bits(tiny_var) is None
    monkeypatch.setattr(known, "hindrance", lambda kind: "")
    monkeypatch.setattr(interventions, "weight_levels", lambda: 127.0)
    assert fewest_bits(tiny_var) == "int8"
    monkeypatch.setattr(interventions, "weight_levels", lambda: 63.0)
    assert fewest_bits(tiny_var) is None  # seven bits are no gain worth a loss
    scales = tiny_var.scales()
    space = default_space(tiny_var.info, SAMPLING, scales, "int8")
    found = [a for a in default_interventions(space, scales) if a.precision]
    assert [a.scale for a in found] == [0, 1, 2, 3]
    steps = space.steps(found[2], len(scales))
    assert steps == [PlanStep(scale=k, precision="int8") for k in (2, 3)]
    assert not [
        a
        for a in default_interventions(default_space(tiny_var.info, SAMPLING, scales), scales)
        if a.precision
    ]
