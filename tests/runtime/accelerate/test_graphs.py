"""Recorded scales against the eager loop, on a tape.

pytest tests/runtime/accelerate/test_graphs.py
"""

import logging
from collections.abc import Sequence

import pytest
import torch
from conftest import prompts, tiny_infinity, var_states
from tape import TapeRecorder
from tiny_families import features, tiny_hart, tiny_star, tiny_switti

from stagevar_runtime import Sampling
from stagevar_runtime.accelerate import graphs
from stagevar_runtime.accelerate.graphs import Graphs
from stagevar_runtime.families.var import VAR
from stagevar_runtime.loop.engine import Generation, Observer, generate
from stagevar_runtime.loop.plan import Plan, compile_plan
from stagevar_runtime.model.protocol import Conditioning, ScaleModel
from stagevar_runtime.options.selectors import SELECTORS
from stagevar_runtime.profile import FeatureOption, PlanStep, TokenOption

CPU = torch.device("cpu")
SAMPLING = Sampling(guidance=2.0, top_k=20, top_p=0.95)


def var(**shape) -> VAR:
    return VAR.from_tensors(*var_states(sides=(1, 2, 3, 4, 6), **shape), CPU, torch.float32)


def labels(model: ScaleModel, turn: int) -> Conditioning:
    return model.condition(labels=[turn % 5, (turn + 2) % 5])


def text(model: ScaleModel, turn: int) -> Conditioning:
    return model.condition(**prompts((3, 7), seed=turn))


def plan_of(model: ScaleModel, steps: Sequence[PlanStep], sampling: Sampling = SAMPLING) -> Plan:
    return compile_plan(steps, model.info, model.scales(), sampling)


def same(a: Generation, b: Generation) -> None:
    for k, (x, y) in enumerate(zip(a.ids, b.ids, strict=True)):
        assert torch.equal(x, y), f"scale {k}"
    assert torch.equal(a.images, b.images)


def late(*options: TokenOption) -> list[PlanStep]:
    """Guidance dropped at scale 2, tokens reduced at the last scales."""
    steps = [PlanStep(scale=2, guidance="cond")]
    return steps + [PlanStep(scale=3 + i, tokens=option) for i, option in enumerate(options)]


PLANS = {
    "exact": [],
    "cond": late(),
    "null": [PlanStep(scale=3, guidance="null")],
    "skip": [PlanStep(scale=2, run="skip"), PlanStep(scale=4, run="skip")],
    "delta": [PlanStep(scale=3, guidance="delta")],
    "reduced": late(
        TokenOption(keep=0.6, select="deviation", restore="cache"),
        TokenOption(keep=0.4, select="leverage", restore="lift"),
    ),
    "block": late(
        TokenOption(keep=0.6, select="update", restore="delta-cache", span="block"),
        TokenOption(keep=0.4, select="pivot", restore="none", span="block"),
    ),
    "seeded": late(TokenOption(keep=0.5, select="projection", restore="cache")),
    "features": [PlanStep(scale=3, features=FeatureOption(rank=16, basis="random"))],
    "part": [PlanStep(scale=2, null_keep=0.5)],
    "parts": [PlanStep(scale=2, null_keep=0.5), PlanStep(scale=3, null_keep=0.3)],
}


@pytest.mark.parametrize("name", list(PLANS))
def test_graphs_equal_the_eager_loop(name: str) -> None:
    """Five generations that differ in everything but their shape."""
    model, recorder = var(), TapeRecorder()
    plan, recorded = plan_of(model, PLANS[name]), Graphs(model.info, recorder)
    for turn in range(5):
        conditioning, seed = labels(model, turn), turn if turn % 2 else [turn, turn + 9]
        want = generate(model, conditioning, plan, seed=seed)
        same(generate(model, conditioning, plan, seed=seed, graphs=recorded), want)
    running = sum(step.run != "skip" for step in plan)
    assert recorder.recorded == running and not recorded.off
    assert recorder.replayed == 3 * running
    assert f"graphs: {running} of scales" in (said := recorded.notes()[0])
    assert said.endswith("eager: none")


def ways(model: ScaleModel, sampling: Sampling) -> dict[str, list[PlanStep]]:
    """Plans of the kinds that a user has, on the last scales of ``model``."""
    last = len(model.scales()) - 1
    tokens = TokenOption(keep=0.5, select="leverage", restore="lift")
    plans = {
        "cfg-off": [PlanStep(scale=last - 1, guidance="cond")],
        "skip-2": [PlanStep(scale=last - 1, run="skip"), PlanStep(scale=last, run="skip")],
    }
    if model.info.family != "hart":  # its last scale is the diffusion's
        dropped = PlanStep(scale=last - 1, guidance="cond", tokens=tokens)
        plans["balanced-like"] = [dropped, PlanStep(scale=last, tokens=tokens)]
    else:
        del plans["skip-2"]
        plans["skip-1"] = [PlanStep(scale=last - 1, run="skip")]
    return plans


FAMILIES = {
    "var": (lambda: var(), "labels"),
    "infinity": (lambda: tiny_infinity({}), "text"),
    "switti": (tiny_switti, "features"),
    "switti-ar": (lambda: tiny_switti(causal=True), "features"),
    "star": (tiny_star, "features"),
    "hart": (tiny_hart, "features"),
}


@pytest.mark.parametrize("name", list(FAMILIES))
def test_one_set_of_graphs_serves_every_plan(name: str) -> None:
    """Scales that two plans run alike are recorded once; every picture is the eager one."""
    make, inputs = FAMILIES[name]
    model, recorder = make(), TapeRecorder()
    condition = {"labels": labels, "text": text, "features": features}[inputs]
    sampling = model.default_sampling
    recorded, count = Graphs(model.info, recorder), len(model.scales())
    plans = {"exact": [], **ways(model, sampling)}
    new = {}
    for plan_name, steps in plans.items():
        plan, before = plan_of(model, steps, sampling), recorder.recorded
        for turn in range(4):
            conditioning = condition(model, turn)
            want = generate(model, conditioning, plan, seed=turn)
            same(generate(model, conditioning, plan, seed=turn, graphs=recorded), want)
        new[plan_name] = recorder.recorded - before
    assert not recorded.off, recorded.off
    assert new["exact"] == count and new["cfg-off"] == 2  # the two scales without null
    if "skip-2" in new:
        assert new["skip-2"] == 0 and new["balanced-like"] == 2
    else:  # the last scale starts from fewer keys
        assert new["skip-1"] == 1
    assert len(recorded.homes) == 1


def test_a_second_generation_of_the_same_shape_runs_eagerly() -> None:
    """While one is going on, another may not move into its memory."""
    model, recorder = var(), TapeRecorder()
    recorded, plan = Graphs(model.info, recorder), plan_of(model, [])
    for turn in range(3):
        generate(model, labels(model, turn), plan, seed=turn, graphs=recorded)
    inner: list[Generation] = []

    class Nested(Observer):
        def advanced(self, state, step, ids) -> None:
            if step.scale.index == 2:
                inputs = labels(model, 8)
                inner.append(generate(model, inputs, plan, seed=8, graphs=recorded))

    got = generate(model, labels(model, 4), plan, seed=4, observer=Nested(), graphs=recorded)
    same(got, generate(model, labels(model, 4), plan, seed=4))
    same(inner[0], generate(model, labels(model, 8), plan, seed=8))


def infinity(**options):
    return tiny_infinity(options)


@pytest.mark.parametrize(
    ("make", "condition"),
    [
        (infinity, text),
        (lambda: infinity(level="chunk", guidance_layer=[-2, 0]), text),
        (lambda: tiny_infinity(patchify=True), text),
    ],
)
@pytest.mark.parametrize(
    "steps", [[], late(TokenOption(keep=0.5, select="highpass", restore="cache"))]
)
def test_graphs_of_infinity(make, condition, steps) -> None:
    check_family(make(), condition, steps)


@pytest.mark.parametrize(
    "make", [tiny_switti, lambda: tiny_switti(causal=True), tiny_star, tiny_hart]
)
@pytest.mark.parametrize("drop", [False, True])
def test_graphs_of_other_families(make, drop: bool) -> None:
    check_family(make(), features, late() if drop else [])


def check_family(model: ScaleModel, condition, steps: Sequence[PlanStep]) -> None:
    sampling = model.default_sampling
    plan, recorder = plan_of(model, steps, sampling), TapeRecorder()
    recorded = Graphs(model.info, recorder)
    for turn in range(4):
        conditioning = condition(model, turn)
        want = generate(model, conditioning, plan, seed=turn)
        same(generate(model, conditioning, plan, seed=turn, graphs=recorded), want)
    assert not recorded.off, recorded.off
    assert recorder.recorded == len(plan)


def test_trusted_graphs_run_no_python(monkeypatch: pytest.MonkeyPatch) -> None:
    model = var()
    recorded, plan = Graphs(model.info, TapeRecorder()), plan_of(model, PLANS["reduced"])
    for turn in range(3):
        generate(model, labels(model, turn), plan, seed=turn, graphs=recorded)
    monkeypatch.setattr(graphs, "run_step", lambda *_: pytest.fail("ran eagerly"))
    generate(model, labels(model, 7), plan, seed=7, graphs=recorded)


def test_a_graph_that_holds_on_to_an_old_value_is_found(caplog) -> None:
    """Python read a number that differs between generations: right when recorded, wrong later."""
    model = var()
    plain = model.embed
    model.embed = lambda state, scale: (  # type: ignore[method-assign]
        plain(state, scale) * (1 + 0.1 * state.noise.seeds[0] * (scale.index == 2))
    )
    recorded, plan = Graphs(model.info, TapeRecorder()), plan_of(model, [])
    with caplog.at_level(logging.WARNING, "stagevar_runtime"):
        for turn in range(5):
            conditioning = labels(model, turn)
            want = generate(model, conditioning, plan, seed=turn)
            same(generate(model, conditioning, plan, seed=turn, graphs=recorded), want)
    assert "scale 2 runs eagerly: graph was off by" in caplog.text
    assert "2: graph was off by" in " ".join(recorded.notes())


def test_what_fails_to_record_runs_eagerly(caplog) -> None:
    model = var()
    plain = model.embed

    def waiting(state, scale):
        x = plain(state, scale)
        return x if x.sum().item() < 1e9 else -x

    model.embed = waiting  # type: ignore[method-assign]
    recorded, plan = Graphs(model.info, TapeRecorder()), plan_of(model, PLANS["cond"])
    with caplog.at_level(logging.WARNING, "stagevar_runtime"):
        for turn in range(3):
            conditioning = labels(model, turn)
            want = generate(model, conditioning, plan, seed=turn)
            same(generate(model, conditioning, plan, seed=turn, graphs=recorded), want)
    assert caplog.text.count("graphs are switched off: RuntimeError") == 1
    assert "the host cannot wait" in recorded.notes()[0] and len(recorded.homes) == 0


def test_a_replay_that_fails_runs_eagerly() -> None:
    model = var()
    recorded, plan = Graphs(model.info, TapeRecorder()), plan_of(model, PLANS["cond"])
    for turn in range(3):
        generate(model, labels(model, turn), plan, seed=turn, graphs=recorded)

    def fail() -> None:
        raise RuntimeError("device side")

    (home,) = recorded.homes
    next(graph for graph in home.graphs if graph.scale == 3).replay = fail
    want = generate(model, labels(model, 4), plan, seed=4)
    same(generate(model, labels(model, 4), plan, seed=4, graphs=recorded), want)
    assert not recorded.off
    assert "3: failed (RuntimeError: device side)" in " ".join(recorded.notes())


def test_shapes_are_bounded_and_share_rooms() -> None:
    model = var()
    recorded = Graphs(model.info, TapeRecorder(), limit=2)
    plan = plan_of(model, [])

    def images(count: int, turn: int) -> None:
        inputs = model.condition(labels=[(turn + i) % 5 for i in range(count)])
        want = generate(model, inputs, plan, seed=turn)
        same(generate(model, inputs, plan, seed=turn, graphs=recorded), want)

    for turn in range(4):
        images(2, turn)
        images(1, turn)
    two, one = recorded.homes
    assert one.buffers is two.buffers
    tokens = sum(scale.tokens for scale in model.scales())
    assert recorded.room_bytes() == 2 * 2 * (2 * 2) * tokens * 64 * 4  # k, v; blocks; rows
    for turn in range(3):
        images(3, turn)
    assert len(recorded.homes) == 2 and two not in list(recorded.homes)
    images(2, 9)


def test_graphs_of_a_shape_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "GRAPHS", 3)
    model, recorder = var(), TapeRecorder()
    recorded, plan = Graphs(model.info, recorder), plan_of(model, [])
    for turn in range(4):
        want = generate(model, labels(model, turn), plan, seed=turn)
        same(generate(model, labels(model, turn), plan, seed=turn, graphs=recorded), want)
    (home,) = recorded.homes
    assert len(home.graphs) == 3 and recorder.recorded == 0  # forgotten before their second use


def test_memory_that_runs_out_runs_eagerly(caplog, monkeypatch: pytest.MonkeyPatch) -> None:
    model, recorder = var(), TapeRecorder()
    recorded, plan = Graphs(model.info, recorder), plan_of(model, [])

    def full(function):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(recorder, "record", full)
    with caplog.at_level(logging.WARNING, "stagevar_runtime"):
        for turn in range(3):
            want = generate(model, labels(model, turn), plan, seed=turn)
            same(generate(model, labels(model, turn), plan, seed=turn, graphs=recorded), want)
    assert caplog.text.count("graphs are switched off: OutOfMemoryError") == 1
    assert "Tried to allocate 2.00 GiB" in recorded.notes()[0] and recorded.room_bytes() == 0


def test_layers_made_anew_are_not_replayed_with_the_old_ones() -> None:
    model = var()
    recorded, plan = Graphs(model.info, TapeRecorder()), plan_of(model, PLANS["features"])
    for turn in range(3):
        generate(model, labels(model, turn), plan, seed=turn, graphs=recorded)
    model.low_rank.forget()
    want = generate(model, labels(model, 4), plan, seed=4)
    same(generate(model, labels(model, 4), plan, seed=4, graphs=recorded), want)
    assert "3: its inputs were of another kind" in " ".join(recorded.notes())


def test_temperature_and_strength_need_no_new_graphs() -> None:
    model = var()
    recorded = Graphs(model.info, TapeRecorder())
    for turn in range(3):
        sampling = Sampling(guidance=2.0 + turn, temperature=1.0 + turn, top_k=20)
        plan = plan_of(model, [], sampling)
        generate(model, labels(model, turn), plan, seed=turn, graphs=recorded)
    assert len(recorded.homes) == 1


def test_conditioning_of_the_caller_stays_as_it_is() -> None:
    """One branch alone takes the caller's tensors as they are; graphs must not write there."""
    model = tiny_hart()
    sampling = Sampling(guidance=0.0, top_k=20)
    recorded, plan = Graphs(model.info, TapeRecorder()), plan_of(model, [], sampling)
    assert plan[0].branches == ("cond",)
    first, other = features(model, 0), features(model, 5)
    other.cond["position"].add_(1)
    before = {name: t.clone() for name, t in first.cond.items()}
    for turn, inputs in enumerate((first, first, other, other, first)):
        want = generate(model, inputs, plan, seed=turn)
        same(generate(model, inputs, plan, seed=turn, graphs=recorded), want)
    assert all(torch.equal(first.cond[name], t) for name, t in before.items())


def test_observers_see_the_eager_loop() -> None:
    class Seen(Observer):
        groups = 0

        def group(self, state, step, number, x) -> None:
            self.groups += 1

    model, seen = var(), Seen()
    recorded = Graphs(model.info, TapeRecorder())
    for turn in range(4):
        generate(
            model,
            labels(model, turn),
            plan_of(model, []),
            seed=turn,
            observer=seen,
            graphs=recorded,
        )
    assert seen.groups == 4 * 5 * len(model.info.groups) and recorded.recorded == 0


def test_seeded_selectors_say_so() -> None:
    seeded = {name for name, selector in SELECTORS.items() if selector.seeded}
    assert seeded == {"norm", "projection"}
