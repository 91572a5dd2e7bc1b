"""The fused kernels against their definitions, by Triton's interpreter: run by test_fused.py.

TRITON_INTERPRET=1 pytest tests/runtime/kernels/interpreted.py
"""

import numpy as np
import pytest
import torch
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from triton.runtime import interpreter

from stagevar_runtime.kernels import groups, heads, mounted, norms, pairs
from stagevar_runtime.kernels.groups_triton import group_norm
from stagevar_runtime.kernels.heads_triton import split
from stagevar_runtime.kernels.norms_triton import add_norm
from stagevar_runtime.kernels.pairs_triton import draw

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FEW = settings(max_examples=16, deadline=None, derandomize=True)
cast = interpreter.InterpreterBuilder.cast_impl


def rounded(self, src, dst_type):
    """The interpreter cuts a float32 off to make a bfloat16; a GPU rounds to nearest even."""
    if src.dtype.scalar != tl.float32 or dst_type.scalar != tl.bfloat16:
        return cast(self, src, dst_type)
    bits = np.ascontiguousarray(src.data, np.float32).view(np.uint32)
    bits = bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)
    return interpreter.TensorHandle((bits >> 16).astype(np.uint16), dst_type.scalar)


interpreter.InterpreterBuilder.cast_impl = rounded
for name in ("create_fp_trunc", "create_fp_ext"):
    setattr(interpreter.InterpreterBuilder, name, rounded)


def close(got: Tensor, wanted: Tensor, rounding: torch.dtype | None = None) -> None:
    """Equal within 1e-5, or two units in the last place of the largest value of a row."""
    assert got.shape == wanted.shape and got.dtype == wanted.dtype
    unit = mounted.UNITS.get(rounding or wanted.dtype)
    most = wanted.double().abs().amax(-1, keepdim=True).clamp_min(1e-3)
    off = ((got.double() - wanted.double()).abs() / most).amax()
    assert off <= (1e-5 if unit is None else 2 * unit)


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed + 7 * len(shape) + shape[-1])
    return torch.randn(*shape, generator=generator).to(dtype)


@FEW
@given(
    *(st.sampled_from(DTYPES), st.sampled_from([(1, 1), (2, 1), (2, 2), (4, 2)])),
    *(st.integers(1, 5), st.sampled_from([1, 24, 130]), st.integers(0, 99)),
    *(st.sampled_from(["layer", "weighted", "rms", "twice", "bare"]), st.booleans()),
    *(st.booleans(), st.booleans()),
)
def test_add_norm(dtype, rows, n, width, seed, kind, gated, modulate, wide) -> None:
    """Every family's residual and norm; ``wide``: a float32 stream of low precision layers."""
    stream = torch.float32 if wide else dtype
    x = 3 + normal(seed, rows[0], n, width, dtype=stream)
    y = normal(seed, rows[1], n, width, dtype=stream if kind == "twice" else dtype)
    weight = normal(seed, width, dtype=stream)
    stepwise = kind in ("rms", "twice") and not wide
    norm = norms.Norm("rms" if kind in ("rms", "twice") else "layer", stepwise=stepwise)
    if kind != "layer":
        norm = norms.Norm(
            *(norm.kind, weight if kind != "bare" else None),
            *(weight if kind == "weighted" else None, 1e-5, stepwise),
        )
    vectors = normal(seed, rows[0], 1, 6 * width, dtype=stream).chunk(6, -1)
    gate = (vectors[0] if kind != "weighted" else weight) if gated else None
    inner = norms.Norm("rms", weight) if kind == "twice" else None
    step = None if kind == "bare" else norms.Step(y, gate, inner, stepwise)
    mod = vectors[1:3] if modulate else (None, None)
    assert norms.can_add_norm(x, step, norm, mod[0])
    args = (x, step, norm, *mod, dtype)
    got, wanted = add_norm(*args), norms.add_norm(*args)
    close(got[0], wanted[0], dtype)
    if width > 1:  # one channel alone is normed to noise
        terms = [t.abs().amax() for t in (wanted[1], *mod[1:], norm.weight) if t is not None]
        scale = float(torch.stack([t.float() for t in terms]).amax())
        off = (got[1].double() - wanted[1].double()).abs().amax() / scale
        assert off <= (1e-5 if dtype == torch.float32 else 3 * mounted.UNITS[dtype])


HEADS = [
    *(heads.Heads(3), heads.Heads(3, rotate="pairs"), heads.Heads(3, rotate="halves")),
    *(heads.Heads(3, "unit", "pairs", rounds=False), heads.Heads(3, "whole", "pairs")),
    *(heads.Heads(3, "none"), heads.Heads(3, "unit", parts=1), heads.Heads(3, "whole", parts=1)),
]


@FEW
@given(
    *(st.sampled_from(DTYPES), st.sampled_from(HEADS), st.integers(1, 3), st.integers(1, 5)),
    *(st.sampled_from([2, 8, 24]), st.integers(0, 99), st.booleans(), st.booleans()),
)
def test_split(dtype, how, rows, n, dim, seed, own_tables, cached) -> None:
    product = 1 + normal(seed, rows, n, how.parts * how.count * dim, dtype=dtype)
    scale = normal(seed, 1, how.count, 1, 1).exp()
    angles = normal(seed, rows if own_tables else 1, n, dim if how.rotate == "halves" else dim // 2)
    rotation = None if how.rotate == "none" else (angles.cos(), angles.sin())
    buffers = [torch.full((2, rows + 1, how.count, n + 4, dim), 7.0, dtype=dtype) for _ in "ab"]
    slots = [tuple(b[:, 1:, :, 3 : 3 + n]) for b in buffers] if cached and how.parts == 3 else None
    args = (product, how, scale, rotation)
    assert heads.can_split(product, how, rotation, slots and slots[0])
    got = split(*args, slots and slots[0])
    wanted = heads.split(*args, slots and slots[1])
    assert len(got) == len(wanted) == how.parts
    for a, b in zip(got, wanted, strict=True):
        close(a, b)
    around = buffers[0].clone()
    if slots:  # nothing else was written
        around[:, 1:, :, 3 : 3 + n] = 7.0
    assert (around == 7.0).all()


@FEW
@given(
    *(st.sampled_from(DTYPES), st.integers(1, 2), st.sampled_from([(32, 32), (4, 20), (2, 6)])),
    *(st.integers(1, 19), st.integers(1, 9), st.booleans(), st.integers(0, 99)),
)
def test_group_norm(dtype, images, shape, height, width, silu, seed) -> None:
    count, channels = shape
    norm = nn.GroupNorm(count, channels, eps=1e-6).to(dtype).requires_grad_(False)
    norm.weight.copy_(normal(seed, channels))
    norm.bias.copy_(normal(seed + 1, channels))
    x = 5 + normal(seed, images, channels, height, width)
    x = x.to(dtype).contiguous(memory_format=torch.channels_last)
    if channels // count * height * width < 4:  # of so few values the norm is noise
        return
    exact = groups.normed(x.double(), norm.double(), silu)
    norm.to(dtype)
    assert groups.can_norm(x)
    got, plain = group_norm(x, norm, silu), groups.normed(x, norm, silu)
    assert got.is_contiguous(memory_format=torch.channels_last) and got.dtype == plain.dtype
    off = (got.double() - exact).abs().amax() / exact.abs().amax().clamp_min(1)
    assert off <= (1e-5 if dtype == torch.float32 else 2 * mounted.UNITS[dtype])


def test_group_norm_over_many_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """More tiles than slices, the last slice short and the tile before it full."""
    from stagevar_runtime.kernels import groups_triton

    monkeypatch.setattr(groups_triton, "SLICES", 3)
    norm = nn.GroupNorm(4, 8).requires_grad_(False)
    x = (10 + normal(0, 2, 8, 21, 17)).contiguous(memory_format=torch.channels_last)
    close(group_norm(x, norm), groups.normed(x.double(), norm.double()).float())


@FEW
@given(
    *(st.sampled_from([None, (3.0, -2.0), (1.5, -0.5)]), st.sampled_from([1.0, 0.5, 0.7])),
    *(st.sampled_from([0.0, 0.6, 0.97, 1.0]), st.integers(1, 40), st.integers(1, 9)),
    st.integers(0, 99),
)
def test_draw(weights, temperature, top_p, n, bits, seed) -> None:
    how = pairs.Pairs(weights, temperature, top_p)
    logits = 2 * normal(seed, 4, n, 2 * bits)
    clocks = torch.empty(2 if weights else 4, n * bits, 2)
    clocks.exponential_(generator=torch.Generator().manual_seed(seed))
    assert pairs.can_draw(logits, how, clocks)
    got, wanted = draw(logits, how, clocks), pairs.drawn(logits, how, clocks)
    won = (pairs.probabilities(logits, how) / clocks).view(*wanted.shape, 2)
    clear = (won[..., 1] / won[..., 0] - 1).abs() > 1e-5
    likely = pairs.probabilities(logits, pairs.Pairs(weights, temperature)).amin(-1)
    if 0 < top_p < 1:
        clear &= ((likely - (1 - top_p)).abs() > 1e-6).view(wanted.shape)
    assert got.dtype == torch.long and torch.equal(got[clear], wanted[clear])
    assert (~clear).sum() <= 2


@pytest.mark.parametrize("dtype", DTYPES)
def test_kernels_mount(dtype: torch.dtype) -> None:
    found, notes = mounted.fused(torch.device("cpu"), dtype)
    assert found.names() == ["add_norm", "split", "group_norm", "draw"] and not notes


RIGHT = {"add_norm": add_norm, "split": split, "group_norm": group_norm, "draw": draw}


@pytest.mark.parametrize("name", list(RIGHT))
def test_a_wrong_kernel_is_left_out(name: str) -> None:
    right = RIGHT[name]

    def wrong(*args):
        out = right(*args)
        for t in out if isinstance(out, tuple) else (out,):
            t.select(1, 0).add_(1 if name == "draw" else 0.1)
        return out

    def broken(*args):
        raise RuntimeError("PTX was compiled with an unsupported toolchain\nmore")

    cpu, dtype = torch.device("cpu"), torch.float32
    assert not mounted.disagreement(name, right, cpu, dtype)
    assert mounted.disagreement(name, wrong, cpu, dtype).startswith("off by")
    said = mounted.disagreement(name, broken, cpu, dtype)
    assert said.startswith("RuntimeError: PTX was compiled with an unsupported toolchain")


def models():
    from conftest import prompts, tiny_infinity, var_states
    from tiny_families import features, tiny_hart, tiny_star, tiny_switti

    from stagevar_runtime.families.var import VAR

    cpu = torch.device("cpu")
    yield VAR.from_tensors(*var_states(), cpu, torch.float32), lambda m: m.condition(labels=[1, 2])
    yield tiny_infinity({"schedule": "1x1 2x2 4x4"}), lambda m: m.condition(**prompts((3, 5)))
    for make in (tiny_switti, lambda: tiny_switti(causal=True), tiny_star, tiny_hart):
        yield make(), lambda m: features(m, 0)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(6))
def test_families_run_on_kernels(number: int) -> None:
    """Logits, canvas and picture of the same ids, with kernels and with their definitions."""
    from stagevar_runtime.accelerate.modes import accelerate
    from stagevar_runtime.loop.engine import generate, replay

    model, condition = list(models())[number]
    inputs, ran = condition(model), []

    def counted(name, run):
        def call(*args):
            ran.append(name)
            return run(*args)

        return call

    made = generate(model, inputs, seed=3)
    wanted = replay(model, inputs, made.ids, seed=3)
    found, _ = mounted.fused(torch.device("cpu"), torch.float32)
    counting = {name: counted(name, getattr(found, name)) for name in found.names()}
    accelerate(model, "auto", kernels=mounted.Kernels(**counting))
    got = replay(model, inputs, made.ids, seed=3)
    for a, b in zip(got.logits, wanted.logits, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(got.image, wanted.image, atol=1e-4, rtol=0)
    again = generate(model, inputs, seed=3)
    assert all(map(torch.equal, again.ids, made.ids))
    bits = {"draw"} if model.info.bits else set()
    assert set(ran) == {"add_norm", "split", "group_norm"} | bits
