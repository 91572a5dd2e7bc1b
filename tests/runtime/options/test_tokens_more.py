"""Update, highpass and pivot; spans of blocks.

pytest tests/runtime/options/test_tokens_more.py
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import prompts, tiny_infinity, var_states
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import qr
from torch import Tensor

from stagevar_runtime import Sampling
from stagevar_runtime.errors import ProfileError
from stagevar_runtime.families.infinity.model import Infinity
from stagevar_runtime.families.var import VAR
from stagevar_runtime.loop.backward import storing
from stagevar_runtime.loop.engine import Generation, advance, generate, start
from stagevar_runtime.loop.plan import compile_plan
from stagevar_runtime.model.protocol import ModelInfo, ScaleSpec
from stagevar_runtime.options.groups import GroupStep, TokenStep
from stagevar_runtime.options.selectors import SELECTORS, select
from stagevar_runtime.options.sketch import pivots
from stagevar_runtime.options.tokens import TokenContext
from stagevar_runtime.profile import PlanStep, TokenOption

SAMPLING = Sampling(guidance=2.0, top_k=20, top_p=0.95)


def tokens(rows: int, n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, n, d, generator=torch.Generator().manual_seed(seed))


def chosen(context: TokenContext, method: str) -> list[int]:
    return select(context, method).index[0].tolist()


@pytest.mark.parametrize("grid", [(4, 6), (6, 4), (1, 24), (24, 1)])
def test_highpass_against_numpy(grid: tuple[int, int]) -> None:
    x = tokens(1, 24, 5)
    maps = x[0].numpy().reshape(*grid, 5)
    far = np.empty(grid)
    for i in range(grid[0]):
        for j in range(grid[1]):
            near = maps[max(0, i - 1) : i + 2, max(0, j - 1) : j + 2].reshape(-1, 5)
            far[i, j] = np.linalg.norm(maps[i, j] - near.mean(0))
    expected = sorted(np.argsort(far.flatten())[-7:].tolist())
    assert chosen(TokenContext(x, grid, 7), "highpass") == expected


def test_highpass_ignores_a_smooth_offset_that_deviation_follows() -> None:
    x = torch.zeros(1, 64, 3)
    x[0, :32] = 5.0  # one half is bright, the other dark
    x[0, 50] = 1.0  # a speck
    assert 50 in chosen(TokenContext(x, (8, 8), 17), "highpass")  # 16 tokens lie on the edge
    assert 50 not in chosen(TokenContext(x, (8, 8), 17), "deviation")


def test_update_against_numpy() -> None:
    x, before = tokens(1, 36, 5), tokens(1, 9, 5, seed=1)
    doubled = before[0].numpy().reshape(3, 3, 5).repeat(2, 0).repeat(2, 1).reshape(36, 5)
    now = x[0].numpy()
    cosine = (now * doubled).sum(1) / np.linalg.norm(now, axis=1) / np.linalg.norm(doubled, axis=1)
    expected = sorted(np.argsort(cosine)[:8].tolist())
    assert chosen(TokenContext(x, (6, 6), 8, before=(before, (3, 3))), "update") == expected


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 12), st.integers(0, 12), st.integers(0, 999))
def test_pivots_are_those_of_scipy(s: int, more: int, seed: int) -> None:
    q = tokens(3, s + more, s, seed)
    found = pivots(q, s)
    for row in range(3):
        expected = qr(q[row].double().numpy().T, pivoting=True, mode="r")[1][:s]
        assert found[row].tolist() == expected.tolist()


def test_pivot_selects_the_pivots_of_the_sketch() -> None:
    context = TokenContext(tokens(2, 30, 16), (5, 6), 9)
    kept = select(context, "pivot")
    assert torch.equal(kept.index, pivots(context.sketch, 9).sort(dim=1).values)


def test_pivot_beyond_the_sketch_takes_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stagevar_runtime.options.tokens.SKETCH_WIDTH", 3)
    x = tokens(2, 40, 12, seed=3)
    context = TokenContext(x, (5, 8), 11)
    first = pivots(context.sketch, 3)
    kept = select(context, "pivot")
    for row in range(2):
        spanned = x[row, first[row]].double().numpy().T
        rest = x[row].double().numpy()
        rebuilt = (spanned @ np.linalg.lstsq(spanned, rest.T, rcond=None)[0]).T
        missing = np.linalg.norm(rest - rebuilt, axis=1)
        missing[first[row].numpy()] = np.inf
        assert kept.index[row].tolist() == sorted(np.argsort(missing)[-11:].tolist())


@pytest.mark.parametrize("method", ["pivot", "leverage", "highpass", "deviation"])
def test_equal_tokens_still_give_as_many_as_asked(method: str) -> None:
    kept = select(TokenContext(torch.ones(2, 20, 8), (4, 5), 12), method)
    assert (kept.index.diff(dim=1) > 0).all() and kept.index.shape == (2, 12)


def test_sketch_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(
        "stagevar_runtime.options.tokens.orthonormal_sketch",
        lambda x, width: made.append(width) or tokens(1, 16, width),
    )
    context = TokenContext(tokens(1, 16, 8), (4, 4), 5)
    assert context.sketch is context.sketch and made == [5]


# -- spans ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def deep_var() -> VAR:
    """6 blocks in 4 groups, 5 scales."""
    states = var_states(depth=6, sides=(1, 2, 3, 4, 5))
    return VAR.from_tensors(*states, torch.device("cpu"), torch.float32)


def plan_of(model: VAR, *steps: PlanStep):
    return compile_plan(steps, model.info, model.scales(), SAMPLING)


def make(model: VAR, *steps: PlanStep) -> Generation:
    conditioning = model.condition(labels=[0, 1])
    return generate(model, conditioning, plan_of(model, *steps), seed=[3, 4])


def reduced(keep, select="deviation", restore="delta-cache", span="block", scale=4) -> PlanStep:
    option = TokenOption(keep=keep, select=select, restore=restore, span=span)
    return PlanStep(scale=scale, tokens=option)


def test_full_groups_are_cut_where_the_next_scale_looks_back(deep_var: VAR) -> None:
    plan = plan_of(deep_var, reduced((1, 1, 0.5, 0.5, 1, 1)))
    assert plan[3].store == (2, 3, 4)
    assert [(g.blocks.start, g.blocks.stop) for g in plan[3].groups] == [
        *((0, 2), (2, 3), (3, 4), (4, 6))
    ]
    assert [g.tokens.keep if g.tokens else None for g in plan[4].groups] == [
        *(None, None, 12, 12, None, None)
    ]


def test_cutting_groups_changes_nothing(deep_var: VAR) -> None:
    exact = plan_of(deep_var)
    cut = tuple(storing(step, {1, 3, 5}) for step in exact)
    assert len(cut[0].groups) > len(exact[0].groups)
    conditioning = deep_var.condition(labels=[0, 1])
    for plan in (exact, cut):
        made = generate(deep_var, conditioning, plan, seed=[3, 4])
        assert torch.equal(made.images, make(deep_var).images)


@pytest.mark.parametrize("restore", ["cache", "delta-cache", "lift", "none"])
def test_block_span_is_the_group_span_of_single_blocks(restore: str) -> None:
    states = var_states(depth=4)
    model = VAR.from_tensors(*states, torch.device("cpu"), torch.float32)
    assert [len(g) for g in model.info.groups] == [1, 1, 1, 1]
    made = [
        make(model, reduced(0.5, "update", restore, span, scale=3)) for span in ("block", "group")
    ]
    assert torch.equal(made[0].images, made[1].images)


def test_block_span_that_keeps_all_is_full(deep_var: VAR) -> None:
    assert plan_of(deep_var, reduced(1.0))[4].groups == plan_of(deep_var)[4].groups
    made = make(deep_var, reduced(1.0)), make(deep_var, reduced(1.0, span="group"))
    assert torch.equal(made[0].images, made[1].images)
    assert torch.equal(made[0].images, make(deep_var).images)


@pytest.mark.parametrize("select", SELECTORS)
def test_block_spans_run(deep_var: VAR, select: str) -> None:
    steps = reduced(0.6, select, scale=3), reduced((1, 0.5, 0.3, 0.3, 0.5, 1), select)
    plan = plan_of(deep_var, *steps)
    state = start(deep_var, deep_var.condition(labels=[0, 1]), plan, [1, 2])
    with torch.inference_mode():
        for step in plan:
            advance(deep_var, state, step)
    assert [cache.length for cache in state.kv] == [
        14 + 10 + kept for kept in (25, 12, 8, 8, 12, 25)
    ]
    assert torch.isfinite(make(deep_var, *steps).images).all()


def test_block_ratios_and_selectors_are_checked(deep_var: VAR) -> None:
    with pytest.raises(ProfileError, match="gives 4 keep ratios, the model has 6 blocks"):
        plan_of(deep_var, reduced((0.5,) * 4))
    skips = [PlanStep(scale=k, run="skip") for k in range(4)]
    with pytest.raises(ProfileError, match="selects or restores from a cache, but no scale"):
        plan_of(deep_var, *skips, reduced(0.5, "update", "none"))
    whole = reduced(0.5, span="all", scale=3)
    with pytest.raises(ProfileError, match="blocks 0 to 5 at once: give both the same span"):
        plan_of(deep_var, whole, reduced(0.5))


def test_update_alone_stores_inputs_only() -> None:
    info = ModelInfo("toy", 2, 64, 2, (range(0, 1), range(1, 2)))
    scales = tuple(ScaleSpec(k, s, s, s * s) for k, s in enumerate((1, 2, 3, 4)))
    option = TokenOption(keep=0.5, select="update", restore="none")
    plan = compile_plan([PlanStep(scale=3, tokens=option)], info, scales, SAMPLING)
    assert plan[2].store == (0, 1)
    assert plan[3].groups[0] == GroupStep(range(0, 1), TokenStep(8, "update", "none"))


def test_blocks_see_true_positions_in_infinity() -> None:
    """Rotations are gathered by position: keeping all tokens by hand must equal the full run."""
    model: Infinity = tiny_infinity()
    scales = model.scales()
    conditioning = model.condition(**prompts((3, 5)))
    sampling = model.default_sampling
    positions: list[Tensor] = []

    run = model.run

    def watched(state, scale, x, blocks, positions_=None):
        if positions_ is not None:
            positions.append(positions_)
        return run(state, scale, x, blocks, positions_)

    model.run = watched  # type: ignore[method-assign]
    last = len(scales) - 1
    option = TokenOption(keep=0.3, select="pivot", restore="lift", span="block")
    plan = compile_plan([PlanStep(scale=last, tokens=option)], model.info, scales, sampling)
    made = generate(model, conditioning, plan, seed=[1, 2])
    assert torch.isfinite(made.images).all() and len(positions) == model.info.depth
    assert all((p.diff(dim=1) > 0).all() and p.max() < scales[last].tokens for p in positions)
    assert any(p.max() >= p.shape[1] for p in positions)
