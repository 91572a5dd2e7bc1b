"""Nothing in the loop makes the host wait for a device.

On a CPU nobody waits, so operators that would be waited for on a GPU are refused by name.

pytest tests/runtime/model/test_no_waiting.py
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from conftest import prompts, tiny_infinity, var_states
from tiny_families import features, tiny_hart, tiny_star, tiny_switti
from torch.utils._python_dispatch import TorchDispatchMode

from stagevar_runtime import Sampling
from stagevar_runtime.families.var import VAR
from stagevar_runtime.loop.engine import advance, start
from stagevar_runtime.loop.plan import compile_plan
from stagevar_runtime.model import sampling
from stagevar_runtime.model.protocol import Conditioning, ScaleModel
from stagevar_runtime.model.sampling import Noise, multinomial_no_sync
from stagevar_runtime.options.restorers import RESTORERS
from stagevar_runtime.options.selectors import SELECTORS
from stagevar_runtime.profile import PlanStep, TokenOption

SAMPLING = Sampling(guidance=2.0, temperature=0.9, top_k=20, top_p=0.95)
CPU = torch.device("cpu")


class NoWaiting(TorchDispatchMode):
    """Raises at operators whose result the host waits for.

    Also at those that do it inside, where no dispatch is seen: ``multinomial`` and
    ``linalg.cholesky`` check their input and wait for the answer.
    """

    WAIT = (
        *("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "unique"),
        *("_unique2", "bincount", "multinomial", "_linalg_check_errors", "linalg_cholesky"),
        *("linalg_eigh", "linalg_svd", "linalg_qr", "linalg_inv", "repeat_interleave"),
    )

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        masks = name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        if masks or name in self.WAIT:
            raise AssertionError(f"{func} makes the host wait")
        return func(*args, **(kwargs or {}))


@contextmanager
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def refuse(*_args, **_kwargs):
        raise AssertionError("a tensor was read on the host")

    with monkeypatch.context() as patch:
        for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__"):
            patch.setattr(torch.Tensor, name, refuse)
        patch.setattr(torch, "tensor", refuse)  # copies from the host, and waits
        patch.setattr(sampling, "multinomial", multinomial_no_sync)  # what a GPU runs
        with NoWaiting():
            yield


def tiny_var() -> VAR:
    return VAR.from_tensors(*var_states(sides=(1, 2, 3, 4, 6)), CPU, torch.float32)


def condition(model: ScaleModel) -> Conditioning:
    if model.info.family == "var":
        return model.condition(labels=[0, 1])
    if model.info.family == "infinity":
        return model.condition(**prompts((3, 7)))
    return features(model, 0)


def loop(monkeypatch, model: ScaleModel, steps: list[PlanStep], seed, settings=SAMPLING) -> None:
    plan = compile_plan(steps, model.info, model.scales(), settings)
    state = start(model, condition(model), plan, seed)
    with torch.inference_mode(), no_waiting(monkeypatch):
        for step in plan:
            advance(model, state, step)
    assert torch.isfinite(state.canvas).all()


MODELS = {
    "var": tiny_var,
    "infinity": tiny_infinity,
    "switti": tiny_switti,
    "switti-ar": lambda: tiny_switti(causal=True),
    "star": tiny_star,
    "hart": tiny_hart,
}


@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.parametrize("seed", [3, [3, 4]])
def test_the_exact_loop_never_waits(monkeypatch, name: str, seed) -> None:
    model = MODELS[name]()
    loop(monkeypatch, model, [], seed)
    loop(monkeypatch, model, [PlanStep(scale=2, guidance="cond")], seed, model.default_sampling)


@pytest.mark.parametrize("make", [tiny_var, tiny_infinity])
@pytest.mark.parametrize("select", list(SELECTORS))
@pytest.mark.parametrize("restore", list(RESTORERS))
def test_no_selector_or_restorer_waits(monkeypatch, make, select: str, restore: str) -> None:
    option = TokenOption(keep=0.5, select=select, restore=restore)
    steps = [PlanStep(scale=3, guidance="delta"), PlanStep(scale=4, tokens=option)]
    loop(monkeypatch, make(), steps, [3, 4])


def test_the_check_can_fail(monkeypatch) -> None:
    x = torch.arange(3)
    square = torch.eye(3)
    for wait in (
        lambda: x.sum().item(),
        lambda: x.tolist(),
        lambda: bool(x[0]),
        lambda: x[x > 1],
        lambda: torch.linalg.cholesky(square),
        lambda: square.multinomial(1),
    ):
        with pytest.raises(AssertionError), no_waiting(monkeypatch):
            wait()


@pytest.mark.parametrize("shape", [(40, 2), (3, 1000)])
def test_the_race_draws_what_multinomial_draws(shape: tuple[int, int]) -> None:
    """So ids on a GPU equal the publishers', whose code calls multinomial."""
    for seed in range(5):
        noise, generator = Noise(seed, 1, CPU), torch.Generator().manual_seed(seed)
        p = torch.randn(shape, generator=torch.Generator().manual_seed(99)).softmax(-1)
        p[:, 0] = 0.0
        for _ in range(2):
            want = torch.multinomial(p, 1, True, generator=generator)
            assert torch.equal(multinomial_no_sync(p, noise.shared), want)
