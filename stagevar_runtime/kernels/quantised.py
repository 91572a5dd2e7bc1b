"""Matrix products in fewer bits: int8, fp8 or bfloat16 where a model has wider ones.

    int8:  y = (q(x) · q(w)ᵀ) · step(x) · step(w) + b,    q(x) = round(x / step(x)),
           step(x) = max|x| / 127 of every token, step(w) the same of every output channel

fp8 (e4m3) is the same with 448 in the place of 127 and a float's rounding. Weights are quantised
once, activations at every call; sums are exact (int8) or float32, and so is all that follows. A
token with NaN or an infinity leaves as a row that is not finite, a token of zeros as the bias.

Each kind has a definition in plain PyTorch, :func:`emulated`, which runs everywhere at no gain, and
a kernel: on a CPU oneDNN's products of packed int8 or bfloat16 weights, on CUDA
``torch._scaled_mm`` by rows. Processors without an instruction for sums of four products add pairs
in 16 bits, which overflow: there weights have 7 bits (:func:`weight_levels`), and sums are exact
again. :func:`obstacle` says whether the kernel agrees with the definition here and is faster than
the product it stands for, which it times once in a process: no table of processors. The operators
of PyTorch's eager quantisation (``torch.ao``) are as fast, but deprecated and one step for all
tokens; ``qlinear_pointwise`` is what its compiler emits.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from .product import Product

Precision = Literal["int8", "fp8", "bfloat16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
MOST = {"int8": 127.0, "fp8": 448.0}  # the largest number of each kind
SEVEN_BITS = 63.0
LEAST = 1e-30  # in the place of the largest |x| of a token, so that zeros divide
FASTER = 1.1  # times, at least, or a kernel is no gain
TRIAL = (256, 1024, 1024)  # rows, inputs and outputs of the product that is timed
ROUNDS, TRIAL_S = 5, 0.05  # timed at least so often and so long, for each number of rows
TANH = 2 * (2 / torch.pi) ** 0.5  # gelu(x) = x · sigmoid(TANH · (x + CUBE · x³)), tanh's form
CUBE = 0.044715
UNSIGNED = 128  # oneDNN takes activations as uint8: this is their zero


class Quantised(NamedTuple):
    """``values · step``: int8 or fp8 numbers, and one float32 ``(..., 1)`` for each row of them."""

    values: Tensor
    step: Tensor


def quantise(x: Tensor, kind: Precision, most: float | None = None) -> Quantised:
    """Every row of ``x`` ``(..., d)`` to ``kind`` by its own largest magnitude, which becomes
    ``most``: the largest number of the kind, or a smaller one."""
    x, most = x.float(), most or MOST[kind]
    largest = x.abs().amax(-1, keepdim=True).clamp_min_(LEAST)
    scaled = x * (most / largest)
    if kind == "int8":
        return Quantised(scaled.round_().to(torch.int8), largest / most)
    return Quantised(scaled.clamp_(-most, most).to(torch.float8_e4m3fn), largest / most)


def gelu_(x: Tensor) -> Tensor:
    """The tanh-approximated GELU in place: five times as fast on a CPU as PyTorch's."""
    return x.mul_(torch.mul(x, x).mul_(CUBE * TANH).add_(TANH).mul_(x).sigmoid_())


def prepared(weight: Tensor, bias: Tensor | None, kind: Precision) -> Product:
    """``weight`` ``(d_out, d)`` for the kernel of ``kind`` on its device."""
    weight, bias = weight.detach(), None if bias is None else bias.detach()
    return KERNELS[kind](weight, bias)


class emulated:
    """The definition of a product in ``kind``: the same rounding, computed in float32.

    ``most``: what the largest weight of a channel becomes, if not the largest number of the kind.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, kind: Precision, most: float | None = None
    ) -> None:
        self.kind, self.bias = kind, None if bias is None else bias.detach().float()
        self.weight = _rounded(weight.detach(), kind, most)

    @property
    def nbytes(self) -> int:
        """Memory of the rounded weights."""
        return self.weight.nbytes

    def __call__(self, x: Tensor, gelu: bool = False) -> Tensor:
        y = F.linear(_rounded(x, self.kind), self.weight, self.bias)
        return (F.gelu(y, approximate="tanh") if gelu else y).to(x.dtype)


def _rounded(x: Tensor, kind: Precision, most: float | None = None) -> Tensor:
    """What ``kind`` keeps of the rows of ``x``, float32."""
    if kind == "bfloat16":
        return x.bfloat16().float()
    values, step = quantise(x, kind, most)
    return values.float() * step


class OneDNN8:
    """int8 on a CPU: packed weights; sums in int32, scaled to float32 by oneDNN."""

    def __init__(self, weight: Tensor, bias: Tensor | None, most: float | None = None) -> None:
        values, step = quantise(weight, "int8", most or weight_levels())
        self.bias = None if bias is None else bias.float()
        self.step = step.flatten()
        self.zeros = torch.zeros(len(values), dtype=torch.int32)
        self.weight = torch.ops.onednn.qlinear_prepack(values, None)
        self.nbytes = values.nbytes

    def __call__(self, x: Tensor, gelu: bool = False) -> Tensor:
        values, step = quantise(x, "int8")
        unsigned = values.bitwise_xor_(-UNSIGNED).view(torch.uint8)
        y = torch.ops.onednn.qlinear_pointwise(
            *(unsigned, 1.0, UNSIGNED, self.weight, self.step, self.zeros, None),
            *(1.0, 0, torch.float32, "none", [], ""),
        )
        y.mul_(step)
        if self.bias is not None:
            y.add_(self.bias)
        return (gelu_(y) if gelu else y).to(x.dtype)


@cache
@torch.inference_mode()
def weight_levels() -> float:
    """What the largest int8 weight of a channel becomes on this processor: 127, or 63 where pairs
    of products overflow 16 bits (255 * 127 * 2 does, 255 * 63 * 2 does not)."""
    ones = torch.ones(4, 64)
    whole = OneDNN8(ones, None, MOST["int8"])(ones)
    return MOST["int8"] if bool((whole - 64).abs().max() < 1e-3) else SEVEN_BITS


class Bfloat16:
    """bfloat16 products of float32 activations: packed weights on a CPU."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight = weight.bfloat16()
        self.bias = None if bias is None else bias.bfloat16()
        self.nbytes = self.weight.nbytes
        self.packs = weight.device.type == "cpu"
        if self.packs:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight, None)

    def __call__(self, x: Tensor, gelu: bool = False) -> Tensor:
        half = x.bfloat16()
        if self.packs:
            name, form = ("gelu", "tanh") if gelu else ("none", "")
            y = torch.ops.mkldnn._linear_pointwise(half, self.weight, self.bias, name, [], form)
            return y.to(x.dtype)
        y = F.linear(half, self.weight, self.bias)
        return (F.gelu(y, approximate="tanh") if gelu else y).to(x.dtype)


class ScaledMM:
    """fp8 on CUDA: ``torch._scaled_mm`` with a scale for every row of both sides."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, step = quantise(weight, "fp8")
        self.step = step.T.contiguous()  # (1, d_out)
        self.bias = None if bias is None else bias.bfloat16()
        self.nbytes = self.weight.nbytes

    def __call__(self, x: Tensor, gelu: bool = False) -> Tensor:
        values, step = quantise(x.flatten(0, -2), "fp8")
        y = torch._scaled_mm(
            values,
            self.weight.T,
            scale_a=step,
            scale_b=self.step,
            bias=self.bias,
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
        )
        if gelu:
            y = F.gelu(y, approximate="tanh")
        return y.unflatten(0, x.shape[:-1]).to(x.dtype)


KERNELS: dict[Precision, Callable[[Tensor, Tensor | None], Product]] = {
    "int8": OneDNN8,
    "bfloat16": Bfloat16,
    "fp8": ScaledMM,
}


class Chain(NamedTuple):
    """Two products one after the other: a low-rank layer whose halves are quantised."""

    first: Product
    second: Product

    def __call__(self, x: Tensor, gelu: bool = False) -> Tensor:
        return self.second(self.first(x), gelu)

    @property
    def nbytes(self) -> int:
        """Memory of both."""
        return self.first.nbytes + self.second.nbytes


@cache
@torch.inference_mode()
def obstacle(kind: Precision, device: torch.device, dtype: torch.dtype) -> str:
    """Why products in ``kind`` are no gain on ``device`` for a model in ``dtype``; empty if they
    are.

    The kernel runs on numbers that add up to the largest sums and is compared with the definition;
    then it is timed against the product it stands for, in turn, the best round of each.
    """
    if kind == "bfloat16" and dtype == torch.bfloat16:
        return "the model is in bfloat16 already"
    if (kind == "int8") != (device.type == "cpu") and kind != "bfloat16":
        return f"there is no kernel for it on {device.type}"
    try:
        wrong = _disagreement(kind, device, dtype)
        return wrong or _slowness(kind, device, dtype)
    except Exception as error:  # an operator this build or processor lacks
        return f"{type(error).__name__}: {error}".splitlines()[0]


def _disagreement(kind: Precision, device: torch.device, dtype: torch.dtype) -> str:
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(n, 64, generator=generator) for n in (40, 32))
    x[:8], weight[:4] = x[:8].sign(), weight[:4].sign()
    x[8], weight[4] = 1.0, 1.0
    bias = torch.randn(32, generator=generator).to(device, dtype)
    x, weight = x.to(device, dtype), weight.to(device, dtype)
    got = prepared(weight, bias, kind)(x).double()
    levels = weight_levels() if kind == "int8" else None
    wanted = emulated(weight, bias, kind, levels)(x).double()
    off = float(((got - wanted).abs().max() / wanted.abs().max()).nan_to_num(torch.inf))
    most = 1e-5 if kind == "int8" and dtype == torch.float32 else 2.0**-6
    return "" if off <= most else f"off by {off:.2g} of the largest value, expected {most:.2g}"


def _slowness(kind: Precision, device: torch.device, dtype: torch.dtype) -> str:
    from .linear import linear, pack_alone

    rows, inputs, outputs = TRIAL
    x = torch.randn(rows, inputs, device=device, dtype=dtype)
    weight = torch.randn(outputs, inputs, device=device, dtype=dtype)
    product, plain = prepared(weight, None, kind), pack_alone(weight)
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)  # what else the machine runs holds up one thread least
    try:
        for n in (16, rows):  # a fallback may be hundreds of times slower: shown by few rows
            gain = _gain(lambda n=n: linear(x[:n], plain), lambda n=n: product(x[:n]), device)  # type: ignore[misc]
            if gain < (FASTER if n == rows else FASTER / 4):
                name = str(dtype).removeprefix("torch.")
                return f"{n} rows run at {gain:.2g}x of {name} here"
    finally:
        torch.set_num_threads(threads)
    return ""


def _gain(plain: Callable[[], Any], own: Callable[[], Any], device: torch.device) -> float:
    """How many times as fast ``own`` is as ``plain``: the best round of each, in turn."""
    times: list[list[float]] = [[], []]
    begun = time.perf_counter()
    while len(times[0]) < ROUNDS or time.perf_counter() - begun < TRIAL_S:
        for took, run in zip(times, (plain, own), strict=True):
            took.append(_took(run, device))
        if len(times[0]) == 2 and 0 < 20 * min(times[0]) < min(times[1]):
            break  # out of the question
    return min(times[0]) / min(times[1])


def _took(run: Callable[[], Any], device: torch.device) -> float:
    begun = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begun
