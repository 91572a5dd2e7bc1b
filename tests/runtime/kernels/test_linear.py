"""Fast products, sampling, compiled blocks; no timing.

pytest tests/runtime/kernels/test_linear.py
"""

from collections.abc import Iterator

import pytest
import torch
from conftest import var_states
from torch.nn import functional as F

from stagevar_runtime import Sampling, StagevarError
from stagevar_runtime.accelerate.compiled import compile_model, compiled_regions
from stagevar_runtime.families.var import VAR
from stagevar_runtime.kernels import linear as products
from stagevar_runtime.kernels.linear import Linear, linear, pack
from stagevar_runtime.loop import engine
from stagevar_runtime.loop.engine import generate
from stagevar_runtime.loop.plan import compile_plan, plan_for
from stagevar_runtime.model.sampling import mask_logits
from stagevar_runtime.profile import FeatureOption, PlanStep, TokenOption

SAMPLING = Sampling(guidance=2.0, top_k=20, top_p=0.95)
CPU = torch.device("cpu")


def fresh_model(sides: tuple[int, ...] = (1, 2, 3, 4)) -> VAR:
    return VAR.from_tensors(*var_states(sides=sides), CPU, torch.float32)


@pytest.mark.parametrize("shape", [(1, 64), (2, 5, 64), (3, 0, 64), (300, 64)])
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_linear_equals_torch(shape: tuple[int, ...], gelu: bool, packed: bool) -> None:
    torch.manual_seed(0)
    layer, x = Linear(64, 48), torch.randn(shape)
    want = F.linear(x, layer.weight, layer.bias)
    want = F.gelu(want, approximate="tanh") if gelu else want
    if packed:
        assert pack(layer) == (products.backend(CPU, torch.float32) == "onednn")
    with torch.no_grad():
        got = linear(x, layer.weight, layer.bias, gelu)
        torch.testing.assert_close(got, want, atol=1e-5, rtol=0)
        if not gelu:
            torch.testing.assert_close(layer(x), want, atol=1e-5, rtol=0)


def test_linear_has_gradients() -> None:
    layer = Linear(8, 4)
    pack(layer)
    layer(torch.randn(3, 8)).sum().backward()
    assert layer.weight.grad is not None and layer.weight.grad.abs().sum() > 0


def test_large_models_and_other_dtypes_are_not_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not pack(Linear(8, 4).to(torch.float16))
    monkeypatch.setattr(products, "PACK_LIMIT", 100)
    layer = Linear(8, 4)
    assert not pack(layer) and not hasattr(layer.weight, "packed")


@pytest.mark.parametrize("top_k", [1, 7, 40, 900])
@pytest.mark.parametrize("top_p", [0.0, 0.3, 0.95, 1.0])
def test_mask_equals_the_published_one(top_k: int, top_p: float) -> None:
    logits = torch.randn(2, 30, 1000, generator=torch.Generator().manual_seed(top_k)) * 3
    want = logits.masked_fill(
        logits < logits.topk(top_k, dim=-1)[0].amin(-1, keepdim=True), -torch.inf
    )
    if 0 < top_p < 1:
        ascending, order = want.sort(dim=-1, descending=False)
        drop = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - top_p
        drop[..., -1:] = False
        want = want.masked_fill(drop.scatter(-1, order, drop), -torch.inf)
    assert torch.equal(mask_logits(logits, top_k, top_p), want)


def test_mask_keeps_ties_with_the_last_of_top_k() -> None:
    logits = torch.tensor([[[3.0, 1.0, 1.0, 1.0, 0.0]]])
    assert mask_logits(logits, 2, 0.0).isfinite().tolist() == [[[True, True, True, True, False]]]


def test_decoder_is_laid_out_channels_last(tiny_var: VAR) -> None:
    convolutions = [w for w in tiny_var.tokenizer.decoder.parameters() if w.ndim == 4]
    assert convolutions
    assert all(w.is_contiguous(memory_format=torch.channels_last) for w in convolutions)
    made = generate(
        tiny_var, tiny_var.condition(labels=[0, 1]), plan_for(tiny_var, (), SAMPLING), seed=0
    )
    assert made.images.is_contiguous()


class Counting:
    """A backend that runs graphs eagerly and counts them."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return graph.forward


@pytest.fixture
def clean_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    with torch._dynamo.config.patch(verbose=False):
        yield
    torch._dynamo.reset()


@pytest.mark.parametrize("reduced", [False, True])
def test_compiled_blocks_do_not_break_or_recompile(clean_dynamo, reduced: bool) -> None:
    """12 scales: past the default limit of 8; fullgraph makes a graph break an error."""
    model = fresh_model(sides=tuple(range(1, 13)))
    option = TokenOption(keep=0.5, select="deviation", restore="cache")
    steps = [PlanStep(scale=10, guidance="cond"), PlanStep(scale=11, tokens=option)]
    plan = compile_plan(steps if reduced else (), model.info, model.scales(), SAMPLING)
    conditioning = model.condition(labels=[0, 1])
    eager = generate(model, conditioning, plan, seed=[1, 2])
    counting = Counting()
    with torch._dynamo.config.patch(recompile_limit=8):
        assert compile_model(model, "max", backend=counting).startswith("max: 3 regions")
        first = generate(model, conditioning, plan, seed=[1, 2])
        compiled = counting.graphs
        second = generate(model, conditioning, plan, seed=[3, 4])
    assert len(plan) <= compiled <= 2 * len(plan) + 1  # once a shape, not once a block
    assert counting.graphs == compiled
    for a, b in zip(eager.ids, first.ids, strict=True):
        assert torch.equal(a, b)
    torch.testing.assert_close(first.images, eager.images, atol=1e-4, rtol=0)
    assert not torch.equal(second.ids[-1], first.ids[-1])


def test_compiled_blocks_take_narrowed_layers(clean_dynamo) -> None:
    model = fresh_model()
    step = PlanStep(scale=3, features=FeatureOption(rank=8, basis="random"))
    plan = compile_plan([step], model.info, model.scales(), SAMPLING)
    conditioning = model.condition(labels=[0, 1])
    eager = generate(model, conditioning, plan, seed=[1, 2])
    compile_model(model, "max", backend="eager")
    compiled = generate(model, conditioning, plan, seed=[1, 2])
    torch.testing.assert_close(compiled.images, eager.images, atol=1e-4, rtol=0)


def test_auto_is_off_on_a_cpu_and_off_undoes(clean_dynamo) -> None:
    model = fresh_model()
    assert compile_model(model, "auto") == "off (auto, cpu)"
    assert all(module._compiled_call_impl is None for module in compiled_regions(model))
    compile_model(model, "max", backend="eager")
    assert all(module._compiled_call_impl is not None for module in compiled_regions(model))
    assert compile_model(model, "off") == "off"
    assert all(module._compiled_call_impl is None for module in compiled_regions(model))
    with pytest.raises(StagevarError, match="'fast', expected one of auto, off, max"):
        compile_model(model, "fast")


def test_fast_path_equals_plain_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replay with oneDNN products against PyTorch's own, float32 within 1e-4."""
    model = fresh_model()
    conditioning = model.condition(labels=[0, 1])
    made = generate(model, conditioning, plan_for(model, (), SAMPLING), seed=1)
    fast = engine.replay(model, conditioning, made.ids, plan_for(model, (), SAMPLING))
    monkeypatch.setattr(products, "_onednn", lambda: None)
    assert products.backend(CPU, torch.float32) == "torch"
    plain = engine.replay(model, conditioning, made.ids, plan_for(model, (), SAMPLING))
    for a, b in zip(fast.logits, plain.logits, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=0)
    torch.testing.assert_close(fast.image, plain.image, atol=1e-4, rtol=0)
    assert len(plan_for(model, (), SAMPLING)) == 4
