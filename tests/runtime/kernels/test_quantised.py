"""Products in fewer bits: their error against float64, what is not finite, what is refused.

pytest tests/runtime/kernels/test_quantised.py
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from stagevar_runtime.kernels import quantised
from stagevar_runtime.kernels.linear import linear
from stagevar_runtime.kernels.quantised import (
    LEAST,
    MOST,
    PRECISIONS,
    SEVEN_BITS,
    Chain,
    OneDNN8,
    Precision,
    emulated,
    gelu_,
    obstacle,
    prepared,
    quantise,
    weight_levels,
)

CPU = torch.device("cpu")
HERE: list[Precision] = [k for k in ("int8", "bfloat16") if not obstacle(k, CPU, torch.float32)]
ROUNDING = {"fp8": 2.0**-4, "bfloat16": 2.0**-9}  # of a number, at most half a last place


def made(kind: Precision, weight: Tensor, bias: Tensor | None, kernel: bool) -> quantised.Product:
    return prepared(weight, bias, kind) if kernel else emulated(weight, bias, kind)


def both() -> list[tuple[Precision, bool]]:
    """Every kind by its definition, and by its kernel where there is one for this processor."""
    return [(k, False) for k in PRECISIONS] + [(k, True) for k in HERE]


def errors(x: Tensor, kind: Precision, most: float | None = None) -> Tensor:
    """What rounding may change at most of every number of the rows of ``x`` (float64)."""
    x = x.double()
    largest = x.abs().amax(-1, keepdim=True)
    if kind == "int8":
        return (largest.clamp_min(LEAST) / (most or MOST[kind]) / 2 * (1 + 1e-5)).expand_as(x)
    tiny = largest.clamp_min(LEAST) / MOST["fp8"] * 2.0**-10 if kind == "fp8" else 1e-38
    return x.abs() * ROUNDING[kind] * (1 + 1e-5) + tiny


def bound(x: Tensor, weight: Tensor, bias: Tensor, kind: Precision, most: float | None) -> Tensor:
    """The largest error that rounding both sides can make, ``(n, d_out)``: the triangle rule.

    bfloat16's kernel rounds bias and result as well; float32 sums are off by a little more.
    """
    dx, dw, wide = errors(x, kind), errors(weight, kind, most), x.double().abs()
    most = dx @ weight.double().abs().T + wide @ dw.T + dx @ dw.T
    size = wide @ weight.double().abs().T + bias.double().abs()
    last = 2.0**-7 if kind == "bfloat16" else 1e-5
    return most + last * (size + most)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    rows=st.integers(1, 9),
    width=st.sampled_from([1, 7, 64, 193]),
    out=st.sampled_from([1, 5, 48]),
    size=st.sampled_from([1e-20, 1e-3, 1.0, 300.0]),
    outliers=st.integers(0, 3),
)
@pytest.mark.parametrize(("kind", "kernel"), both())
def test_error_is_within_what_rounding_can_make(
    kind: Precision, kernel: bool, seed: int, rows: int, width: int, out: int, size: float,
    outliers: int,
) -> None:  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, width, generator=generator) * size
    for _ in range(outliers):
        row, column = (int(torch.randint(n, (), generator=generator)) for n in x.shape)
        x[row, column] = 1e4 * size
    weight = torch.randn(out, width, generator=generator) / width**0.5
    bias = torch.randn(out, generator=generator) * size
    got = made(kind, weight, bias, kernel)(x)
    wanted = F.linear(x.double(), weight.double(), bias.double())
    most = weight_levels() if kernel and kind == "int8" else None
    assert ((got.double() - wanted).abs() <= bound(x, weight, bias, kind, most)).all()


@pytest.mark.parametrize(("kind", "kernel"), both())
@pytest.mark.parametrize("gelu", [False, True])
def test_an_outlier_costs_its_own_row_only(kind: Precision, kernel: bool, gelu: bool) -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(6, 64), torch.randn(32, 64), torch.randn(32)
    product = made(kind, weight, bias, kernel)
    plain = product(x, gelu)
    x[2, 5] = 1e4
    assert torch.equal(product(x, gelu)[3:], plain[3:])
    assert torch.equal(product(x, gelu)[:2], plain[:2])


@pytest.mark.parametrize(("kind", "kernel"), both())
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_so_in_its_row(kind: Precision, kernel: bool, bad: float) -> None:
    torch.manual_seed(1)
    x, weight, bias = torch.randn(5, 64), torch.randn(32, 64), torch.randn(32)
    product = made(kind, weight, bias, kernel)
    plain = product(x)
    x[1, 7] = bad
    got = product(x)
    assert not got[1].isfinite().any()
    if bad != bad:
        assert got[1].isnan().all()
    rest = [0, 2, 3, 4]
    assert torch.equal(got[rest], plain[rest])


@pytest.mark.parametrize(("kind", "kernel"), both())
def test_zeros_give_the_bias(kind: Precision, kernel: bool) -> None:
    weight, bias = torch.randn(32, 64), torch.randn(32).bfloat16().float()
    weight[3] = 0
    x = torch.zeros(3, 64)
    assert torch.equal(made(kind, weight, bias, kernel)(x), bias.expand(3, -1))
    assert torch.equal(made(kind, weight, None, kernel)(x), torch.zeros(3, 32))
    x = torch.randn(3, 64)
    assert torch.equal(made(kind, weight, None, kernel)(x)[:, 3], torch.zeros(3))


@pytest.mark.parametrize("kind", HERE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gelu", [False, True])
def test_kernels_compute_their_definition(kind: Precision, dtype: torch.dtype, gelu: bool) -> None:
    torch.manual_seed(2)
    x = torch.randn(2, 3, 64).to(dtype)
    weight, bias = torch.randn(48, 64).to(dtype), torch.randn(48).to(dtype)
    levels = weight_levels() if kind == "int8" else None
    got, wanted = (
        prepared(weight, bias, kind)(x, gelu),
        emulated(weight, bias, kind, levels)(x, gelu),
    )
    assert got.dtype == wanted.dtype == dtype and got.shape == (2, 3, 48)
    exact = kind == "int8" and dtype == torch.float32
    near = 1e-5 if exact else 2.0**-6
    assert float((got - wanted).abs().max()) <= near * float(wanted.abs().max())


def test_rows_use_the_whole_range() -> None:
    x = torch.tensor([[0.5, -1.0, 0.25], [1e-3, 0.0, -2e-3], [0.0, 0.0, 0.0]])
    values, step = quantise(x, "int8")
    assert values.tolist() == [[64, -127, 32], [64, 0, -127], [0, 0, 0]]
    assert torch.allclose(step[:2, 0], torch.tensor([1 / 127, 2e-3 / 127]))
    values, step = quantise(x, "fp8")
    assert values.float()[0].tolist() == [224.0, -448.0, 112.0]


def test_weights_have_seven_bits_where_pairs_of_products_overflow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever the processor: sums of the largest numbers are exact with what is chosen."""
    if weight_levels() == SEVEN_BITS:
        saturated = OneDNN8(torch.ones(4, 64), None, MOST["int8"])(torch.ones(1, 64))
        assert float(saturated.max()) < 63
    weight = torch.ones(4, 1024).copysign(torch.randn(4, 1))
    got = OneDNN8(weight, None)(torch.ones(2, 1024))
    assert torch.allclose(got, weight.sum(1).expand(2, -1), rtol=1e-6)

    class Saturating(OneDNN8):
        def __call__(self, x: Tensor, gelu: bool = False) -> Tensor:
            return super().__call__(x, gelu).clamp_max(40.0)

    monkeypatch.setattr(quantised, "OneDNN8", Saturating)
    assert weight_levels.__wrapped__() == SEVEN_BITS


def test_gelu_is_torchs() -> None:
    x = torch.cat([torch.linspace(-12, 12, 4001), torch.tensor([0.0, 1e4, -1e4, 1e30, -1e30])])
    wanted = F.gelu(x.double(), approximate="tanh")
    got = gelu_(x.clone()).double()
    assert ((got - wanted).abs() <= 1e-6 * wanted.abs().clamp_min(1)).all()
    assert gelu_(torch.tensor([float("nan")])).isnan().all()


def test_two_products_in_a_row_and_through_linear() -> None:
    torch.manual_seed(3)
    down, up, bias = torch.randn(8, 64), torch.randn(32, 8), torch.randn(32)
    chain = Chain(emulated(down, None, "int8"), emulated(up, bias, "int8"))
    x = torch.randn(5, 64)
    wanted = F.linear(F.linear(x, down), up, bias)
    got = linear(x, torch.empty(0), narrow=chain)
    assert float((got - wanted).norm() / wanted.norm()) < 0.05
    assert chain.nbytes == (8 * 64 + 32 * 8) * 4


class TestObstacle:
    def test_kernels_of_other_devices(self) -> None:
        assert "no kernel for it on cpu" in obstacle("fp8", CPU, torch.float32)
        assert "no kernel" in obstacle("int8", torch.device("cuda"), torch.bfloat16)
        assert "already" in obstacle("bfloat16", CPU, torch.bfloat16)

    def test_a_kernel_that_saturates_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Saturating(emulated):
            def __call__(self, x: Tensor, gelu: bool = False) -> Tensor:
                return super().__call__(x, gelu).clamp_max(40.0)

        monkeypatch.setitem(
            quantised.KERNELS, "int8", lambda weight, bias: Saturating(weight, bias, "int8")
        )
        assert "off by" in obstacle.__wrapped__("int8", CPU, torch.float32)

    def test_a_slow_kernel_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Slow(emulated):
            def __call__(self, x: Tensor, gelu: bool = False) -> Tensor:
                for _ in range(40):
                    super().__call__(x, gelu)
                return super().__call__(x, gelu)

        monkeypatch.setitem(
            quantised.KERNELS, "int8", lambda w, b: Slow(w, b, "int8", weight_levels())
        )
        said = obstacle.__wrapped__("int8", CPU, torch.float32)
        assert "x of float32" in said

    def test_a_missing_operator_is_said(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def missing(weight: Tensor, bias: Tensor | None) -> quantised.Product:
            raise NotImplementedError("no such operator")

        monkeypatch.setitem(quantised.KERNELS, "int8", missing)
        assert "no such operator" in obstacle.__wrapped__("int8", CPU, torch.float32)


@pytest.mark.skipif("int8" not in HERE, reason="no fast int8 products on this processor")
def test_weights_are_kept_in_eight_bits() -> None:
    assert OneDNN8(torch.randn(32, 64), None).nbytes == 32 * 64
