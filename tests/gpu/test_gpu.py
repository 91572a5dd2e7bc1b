"""pytest -m gpu tests/gpu — what only a CUDA device shows: graphs, compiled blocks, no waiting."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from conftest import SHARED, golden, infinity_states, prompts, var_states
from safetensors.torch import load_file

from stagevar_probe.bench.published.infinity import PublishedInfinity
from stagevar_probe.bench.published.var import PublishedVAR
from stagevar_runtime import Sampling, load
from stagevar_runtime.accelerate.compiled import compile_model
from stagevar_runtime.accelerate.modes import accelerate
from stagevar_runtime.families.infinity.model import Infinity
from stagevar_runtime.families.var import VAR
from stagevar_runtime.kernels import mounted
from stagevar_runtime.kernels.settings import running
from stagevar_runtime.loop.engine import advance, generate, replay, start
from stagevar_runtime.loop.plan import Plan, compile_plan, plan_for
from stagevar_runtime.model.protocol import Conditioning, ScaleModel
from stagevar_runtime.options.restorers import RESTORERS
from stagevar_runtime.options.selectors import SELECTORS
from stagevar_runtime.profile import PlanStep, TokenOption

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("default"),  # compilers warn of what they find on the machine
]
SAMPLING = Sampling(guidance=2.0, temperature=0.9, top_k=20, top_p=0.95)
REDUCED = TokenOption(keep=0.5, select="deviation", restore="cache")
PLANS: dict[str, list[PlanStep]] = {
    "exact": [],
    "late": [PlanStep(scale=3, guidance="cond"), PlanStep(scale=4, tokens=REDUCED)],
    "lift": [
        PlanStep(scale=4, tokens=TokenOption(keep=0.5, select="leverage", restore="lift")),
    ],
    "released": [
        PlanStep(scale=2, guidance="null"),
        PlanStep(scale=3, tokens=TokenOption(keep=0.5, select="projection", restore="cache")),
        PlanStep(scale=4, run="skip"),
    ],
}


@pytest.fixture(scope="module")
def cuda() -> torch.device:
    return torch.device("cuda")


def make(family: str, device: torch.device, dtype: torch.dtype) -> ScaleModel:
    if family == "var":
        return VAR.from_tensors(*var_states(sides=(1, 2, 3, 4, 6)), device, dtype)
    return Infinity.from_tensors(*infinity_states(), device, dtype, {"size": "0.06M"})


def condition(model: ScaleModel, turn: int) -> Conditioning:
    if model.info.family == "var":
        return model.condition(labels=[turn % 5, (turn + 2) % 5])
    return model.condition(**prompts((3, 7 - turn % 3), seed=turn))


def plan_of(model: ScaleModel, name: str) -> Plan:
    return compile_plan(PLANS[name], model.info, model.scales(), SAMPLING)


@pytest.mark.parametrize("family", ["var", "infinity"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", list(PLANS))
def test_graphs_draw_what_the_eager_loop_draws(family: str, dtype, name: str, cuda) -> None:
    """Five generations: eager, recorded, checked, replayed twice. Same kernels, so equal."""
    model = make(family, cuda, dtype)
    plan = plan_of(model, name)
    fast = accelerate(model, "graphs")
    assert fast.graphs is not None
    for turn in range(5):
        inputs = condition(model, turn)
        want = generate(model, inputs, plan, seed=turn)
        got = generate(model, inputs, plan, seed=turn, graphs=fast.graphs)
        assert all(map(torch.equal, got.ids, want.ids)), turn
        assert torch.equal(got.canvas, want.canvas), turn
        torch.testing.assert_close(got.images, want.images, atol=8 / 255, rtol=0)
    said = " ".join(fast.notes())
    print(said)
    assert not fast.graphs.off, said
    if name in ("exact", "late"):
        assert "failed" not in said and "off by" not in said.partition("decoder")[0], said
    assert any(graph.trusted for home in fast.graphs.homes for graph in home.graphs), said


@pytest.mark.parametrize("family", ["var", "infinity"])
def test_graphs_of_two_shapes_take_turns(family: str, cuda) -> None:
    model = make(family, cuda, torch.float32)
    fast = accelerate(model, "graphs")
    for turn in range(6):
        for name in ("exact", "late"):
            plan, inputs = plan_of(model, name), condition(model, turn)
            want = generate(model, inputs, plan, seed=turn)
            got = generate(model, inputs, plan, seed=turn, graphs=fast.graphs)
            assert all(map(torch.equal, got.ids, want.ids)), (turn, name)


def test_a_scale_that_cannot_be_captured_runs_eagerly(cuda) -> None:
    """The host waits at scale 2: that capture fails, and nothing else may suffer."""
    model = make("var", cuda, torch.float32)
    plan, plain = plan_of(model, "exact"), model.embed

    def waiting(state, scale):
        x = plain(state, scale)
        return x if scale.index != 2 or x.sum().item() < 1e9 else -x

    model.embed = waiting  # type: ignore[method-assign]
    fast = accelerate(model, "graphs")
    assert fast.graphs is not None
    for turn in range(5):
        inputs = condition(model, turn)
        want = generate(model, inputs, plan, seed=turn)
        got = generate(model, inputs, plan, seed=turn, graphs=fast.graphs)
        assert all(map(torch.equal, got.ids, want.ids)), turn
        assert torch.randn(8, device=cuda).isfinite().all()
    said = " ".join(fast.notes())
    assert "2: failed" in said and not fast.graphs.off, said
    assert [graph.scale for home in fast.graphs.homes for graph in home.graphs if graph.trusted], (
        said
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_kernel_agrees_with_its_definition(dtype: torch.dtype, cuda) -> None:
    found, notes = mounted.fused(cuda, dtype)
    assert not notes and len(found.names()) == len(mounted.CHECKS)


@pytest.mark.parametrize("family", ["var", "infinity"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kernels_and_graphs_keep_the_logits(family: str, dtype: torch.dtype, cuda) -> None:
    """By default: logits of the same ids as the plain path's, in float32 within 2e-4."""
    model = make(family, cuda, dtype)
    ids = generate(model, condition(model, 0), plan_of(model, "exact"), seed=0).ids
    wanted = replay(model, condition(model, 0), ids, plan_of(model, "exact"))
    fast = accelerate(model, "auto")
    assert not fast.trouble, fast.notes()
    got = replay(model, condition(model, 0), ids, plan_of(model, "exact"))
    for a, b in zip(got.logits, wanted.logits, strict=True):
        limit = 2e-4 if dtype == torch.float32 else 0.05
        torch.testing.assert_close(a, b, atol=limit * float(b.abs().max().clamp_min(1)), rtol=0)
    for turn in range(5):
        made = generate(model, condition(model, turn), plan_of(model, "late"), seed=turn)
        eager = generate(model, condition(model, turn), plan_of(model, "late"), seed=turn)
        assert torch.isfinite(made.images).all()
        assert all(map(torch.equal, made.ids, eager.ids)), turn
    assert fast.graphs is not None and not fast.graphs.off, fast.notes()


@pytest.mark.parametrize("case", ["var", "var_shared_adaln", "star"])
def test_golden_cases_in_float32(case: str, tmp_path, cuda) -> None:
    """The publisher's logits, canvas and image within 2e-4: float32 means float32, kernels too."""
    manifest = golden(case, tmp_path)
    want = load_file(SHARED / "golden" / case / "expected.safetensors")
    want = {name: tensor.to(cuda) for name, tensor in want.items()}
    name = "star_tiny.pth" if case == "star" else manifest["files"][0]["path"]
    pipeline = load(tmp_path / name, profile=None, device=cuda, dtype=torch.float32)
    assert not pipeline.fast.trouble, pipeline.fast.notes()
    model, said = pipeline.model, manifest["arguments"]
    inputs = {"labels": want["in.labels"].cpu()} if case != "star" else {}
    if case == "star":
        text = {"context": want["in.hidden"], "pooled": want["in.pool"], "mask": want["in.mask"]}
        text["mask"] = text["mask"] == 1
        inputs = {n: t[:1] for n, t in text.items()} | {f"null_{n}": t[1:] for n, t in text.items()}
    sampling = Sampling(guidance=said["cfg"], top_k=said["top_k"], top_p=said["top_p"])
    ids = [want[f"s{k}.ids"] for k in range(len(model.scales()))]
    got = replay(model, model.condition(**inputs), ids, plan_for(model, (), sampling))
    for k, logits in enumerate(got.logits):
        torch.testing.assert_close(logits, want[f"s{k}.logits"], atol=2e-4, rtol=0)
    torch.testing.assert_close(got.canvas, want["s9.canvas"], atol=2e-4, rtol=0)
    torch.testing.assert_close(got.image, want["image"], atol=2e-4, rtol=0)


@pytest.fixture
def clean_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("clean_dynamo")
def test_compiled_blocks_are_right_and_settle(cuda) -> None:
    """float32 within 1e-4 of eager on the first scales; nothing is compiled after the third."""
    model = make("var", cuda, torch.float32)
    plan = plan_of(model, "late")
    want = generate(model, condition(model, 0), plan, seed=0)
    said = compile_model(model, "auto")
    counters = torch._dynamo.utils.counters["stats"]
    compiled = []
    for turn in range(5):
        got = generate(model, condition(model, turn), plan, seed=turn)
        compiled.append(counters["unique_graphs"])
        if turn == 0:
            agree = [float((a == b).float().mean()) for a, b in zip(got.ids, want.ids, strict=True)]
            assert sum(agree) / len(agree) > 0.97, agree
    assert compiled[0] > 0 and compiled[2] == compiled[4], compiled
    assert said.startswith("auto: ")


@pytest.mark.parametrize("family", ["var", "infinity"])
@pytest.mark.parametrize("select", list(SELECTORS))
@pytest.mark.parametrize("restore", list(RESTORERS))
def test_the_loop_never_waits(family: str, select: str, restore: str, cuda) -> None:
    model = make(family, cuda, torch.bfloat16)
    option = TokenOption(keep=0.5, select=select, restore=restore)
    steps = [PlanStep(scale=2, guidance="delta"), PlanStep(scale=4, tokens=option)]
    plan = compile_plan(steps, model.info, model.scales(), SAMPLING)
    for seed in (3, [3, 4]):
        with torch.inference_mode():
            for mode in ("default", "error"):  # the first time caches are filled
                state = start(model, condition(model, 0), plan, seed)
                torch.cuda.set_sync_debug_mode(mode)
                try:
                    for step in plan:
                        advance(model, state, step)
                finally:
                    torch.cuda.set_sync_debug_mode("default")
        assert torch.isfinite(state.canvas).all()


def test_published_loops_draw_the_same_ids(cuda) -> None:
    sampling = replace(SAMPLING, temperature=1.0)  # VAR's publishers have none
    for family, published in (("var", PublishedVAR), ("infinity", PublishedInfinity)):
        model = make(family, cuda, torch.float32)
        inputs = condition(model, 0)
        with running(model.device, model.dtype):
            want = published(model)(inputs, sampling, 5)  # type: ignore[operator]
        got = generate(model, inputs, plan_for(model, (), sampling), seed=5)
        same = sum(int((a == b).sum()) for a, b in zip(got.ids, want.ids, strict=True))
        assert same / sum(a.numel() for a in got.ids) > 0.98


def test_memory_is_given_back(cuda) -> None:
    """Generations of one shape do not pile up memory."""
    model = make("infinity", cuda, torch.bfloat16)
    fast, held = accelerate(model, "graphs"), []
    for turn in range(6):
        inputs = condition(model, turn)
        generate(model, inputs, plan_for(model, (), SAMPLING), seed=turn, graphs=fast.graphs)
        held.append(torch.cuda.memory_allocated())
    assert held[5] <= held[4] <= held[3]
