"""Every cell is timed; FLOPs against a count by hand.

pytest tests/probe/measure/test_costs.py
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from stagevar_probe.measure.costs import (
    FULL,
    cost_plans,
    describe_scales,
    measure_costs,
)
from stagevar_probe.measure.flops import block_flops, plan_flops
from stagevar_probe.measure.hardware import hardware, peak_memory_mb
from stagevar_probe.measure.interventions import default_space
from stagevar_runtime.families.var import VAR
from stagevar_runtime.loop.plan import compile_plan
from stagevar_runtime.model.protocol import ModelInfo, ScaleSpec
from stagevar_runtime.model.sampling import Sampling
from stagevar_runtime.profile import FeatureOption, PlanStep, TokenOption

SAMPLING = Sampling(guidance=2.0, top_k=20, top_p=0.95)
HALF = TokenOption(keep=0.5, select="norm", restore="cache", span="all")


def test_every_cell_is_there(tiny_var: VAR) -> None:
    space = default_space(tiny_var.info, SAMPLING, tiny_var.scales())
    tokens = space.tokens
    conditioning = tiny_var.condition(labels=[0, 1])
    costs = measure_costs(tiny_var, conditioning, SAMPLING, {**tokens, **space.parts}, repeats=2)
    full = {(k, rows, FULL) for k in range(4) for rows in (1, 2)}
    reduced = {(k, rows, name) for k in (1, 2, 3) for rows in (1, 2) for name in tokens}
    parts = {(k, 2, name) for name, part in space.parts.items() for k in part}
    assert (2, 2, "guided 0.35") in parts and (1, 2, "guided 0.35") not in parts
    assert costs.ms.keys() == costs.spread_ms.keys() == full | reduced | parts
    assert all(ms > 0 for ms in costs.ms.values()) and costs.decode_ms > 0
    assert all(spread >= 0 for spread in costs.spread_ms.values())
    assert (costs.batch, costs.repeats) == (2, 2)


def test_unguided_models_have_one_row(tiny_var: VAR) -> None:
    off = Sampling(guidance=0.0)
    plans = list(cost_plans(tiny_var, off, {"half": HALF}))
    assert [(rows, name) for rows, name, _ in plans] == [(1, FULL), (1, "half")]
    assert all(step.branches == ("cond",) for _, _, plan in plans for step in plan)


def test_cost_plans_are_what_their_cells_say(tiny_var: VAR) -> None:
    for rows, name, plan in cost_plans(tiny_var, SAMPLING, {"half": HALF}):
        assert all(len(step.branches) == rows for step in plan)
        assert [step.reduced for step in plan] == [name != FULL and k > 0 for k in range(4)]


def info(depth: int = 2, width: int = 10) -> ModelInfo:
    groups = tuple(range(i, i + 1) for i in range(depth))
    return ModelInfo("toy", depth, width, 2, groups, guidance="ramp")


def flops(*steps: PlanStep) -> float:
    scales = tuple(ScaleSpec(k, s, s, s * s) for k, s in enumerate((1, 2)))
    return plan_flops(info(), compile_plan(steps, info(), scales, SAMPLING))


def test_flops_by_hand() -> None:
    """A token: qkv 3d², output d², two FFN layers of 4d² each; a pair: d for qk and d for av."""
    d = 10
    one = 2 * (3 * d * d + d * d + 2 * 4 * d * d)
    pair = 2 * 2 * d
    first = one + 1 * pair
    second = 4 * one + 4 * (1 + 4) * pair
    assert block_flops(info(), 1, 4, 1) == second
    assert flops() == 2 * 2 * (first + second)  # two blocks, two rows
    strong = PlanStep(scale=0, guidance_scale=2.0)
    assert flops(strong, PlanStep(scale=1, guidance="cond")) == 2 * (2 * first + second)
    assert flops(PlanStep(scale=1, guidance="cond")) == 2 * (first + second)  # ramp: 0 at first
    assert flops(PlanStep(scale=1, run="skip")) == 2 * 1 * first  # the ramp starts unguided
    kept = 2 * one + 2 * (1 + 2) * pair
    assert flops(PlanStep(scale=1, tokens=HALF)) == 2 * 2 * (first + kept)


def test_flops_of_groups_with_their_own_ratios() -> None:
    option = TokenOption(keep=(0.5, 0.25), select="norm", restore="cache")
    both = [TokenOption(keep=k, select="norm", restore="cache", span="all") for k in (0.5, 0.25)]
    mixed = flops(PlanStep(scale=1, tokens=option))
    assert mixed == sum(flops(PlanStep(scale=1, tokens=one)) for one in both) / 2


def test_flops_of_narrowed_layers() -> None:
    """Rank 2 of 10: qkv takes 2·(10 + 30) products instead of 300, the output 2·20 instead of
    100, the first FFN layer 2·(10 + 40) instead of 400. Text is left out, narrowed or not."""
    layers = {"qkv": 30, "proj": 10, "text_q": 10, "fc1": 40}
    narrow = replace(info(), layers=layers)
    scales = tuple(ScaleSpec(k, s, s, s * s) for k, s in enumerate((1, 2)))

    def work(**option: Any) -> float:
        step = PlanStep(scale=1, features=FeatureOption(rank=2, basis="random", **option))
        return plan_flops(narrow, compile_plan([step], narrow, scales, SAMPLING))

    saved = 2 * 4 * (300 - 80 + 100 - 40 + 400 - 100)  # a block and row: 2 a product, 4 tokens
    assert flops() - work() == 2 * 2 * saved
    assert flops() - work(layers=("proj", "text_q")) == 2 * 2 * 2 * 4 * (100 - 40)


def test_descriptions(tiny_var: VAR) -> None:
    assert describe_scales(tiny_var.scales()) == "4 scales, 30 tokens, last 4x4"
    assert hardware(tiny_var)["device"] == "cpu"
    assert hardware(tiny_var)["threads"] == torch.get_num_threads()
    assert 10 < peak_memory_mb(tiny_var) < 1e6
