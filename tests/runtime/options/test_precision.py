"""Scales whose matrix products run in fewer bits.

pytest tests/runtime/options/test_precision.py
"""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from conftest import CHECKPOINT, prompts, tiny_infinity
from pydantic import ValidationError

from stagevar_runtime import load
from stagevar_runtime.errors import ProfileError
from stagevar_runtime.families.var import VAR
from stagevar_runtime.kernels import quantised
from stagevar_runtime.kernels.quantised import PRECISIONS, Chain, Precision, emulated
from stagevar_runtime.loop.engine import generate, replay
from stagevar_runtime.loop.plan import compile_plan
from stagevar_runtime.model.protocol import Conditioning, ScaleModel
from stagevar_runtime.options import precision as module
from stagevar_runtime.options.layers import stand_ins
from stagevar_runtime.options.precision import Precisions, precisions_of
from stagevar_runtime.profile import FeatureOption, PlanStep, TokenOption
from stagevar_runtime.summary import summary_row

NEAR = {"int8": 0.1, "fp8": 0.2, "bfloat16": 0.03}  # of the logits of a small random model


@pytest.fixture(params=["var", "infinity"])
def drawn(request: pytest.FixtureRequest, tiny_var: VAR) -> tuple[ScaleModel, Conditioning]:
    """A model of each family whose layers can be quantised, as such, and three things to draw."""
    model: Any = tiny_var if request.param == "var" else tiny_infinity()
    model.precisions = Precisions(model.precisions.layers)
    model.precisions.emulate = True
    if request.param == "var":
        return model, model.condition(labels=torch.tensor([0, 3, 1]))
    return model, model.condition(**prompts((3, 5, 2)))


def plan_of(model: Any, *steps: PlanStep) -> Any:
    return compile_plan(steps, model.info, model.scales(), model.default_sampling)


def logits(model: Any, conditioning: Any, ids: list, *steps: PlanStep) -> list[torch.Tensor]:
    return replay(model, conditioning, ids, plan_of(model, *steps)).logits


def off(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / a.norm())


@pytest.mark.parametrize("kind", PRECISIONS)
def test_a_scale_is_rounded_and_those_before_it_are_not(drawn: Any, kind: Precision) -> None:
    model, conditioning = drawn
    last = len(model.scales()) - 1
    ids = generate(model, conditioning, seed=[1, 2, 3]).ids
    exact = logits(model, conditioning, ids)
    got = logits(model, conditioning, ids, PlanStep(scale=last - 1, precision=kind))
    assert all(map(torch.equal, exact[: last - 1], got[: last - 1]))
    for k in (last - 1, last):  # the last one sees rounded keys and values
        assert 0 < off(exact[k], got[k]) < NEAR[kind]
    assert off(exact[last], got[last]) < off(exact[last - 1], got[last - 1])


@pytest.mark.parametrize(
    "beside",
    [
        {"guidance": "cond"},
        {"guidance": "delta"},
        {"guidance": "null"},
        {"null_keep": 0.5},
        {"tokens": TokenOption(keep=0.5, select="pivot", restore="lift")},
        {"features": FeatureOption(rank=16, basis="random")},
        {"temperature": 0.5},
    ],
)
def test_composes_with_every_option(drawn: Any, beside: dict[str, Any]) -> None:
    model, conditioning = drawn
    last = len(model.scales()) - 1
    ids = generate(model, conditioning, seed=[1, 2, 3]).ids
    plain = logits(model, conditioning, ids, PlanStep(scale=last, **beside))
    got = logits(model, conditioning, ids, PlanStep(scale=last, precision="int8", **beside))
    assert got[-1].shape == plain[-1].shape
    tight = "tokens" not in beside  # which tokens are chosen may change
    assert 0 < off(plain[-1], got[-1]) < (0.15 if tight else 1.0)
    made = generate(
        model,
        conditioning,
        plan_of(model, PlanStep(scale=last, precision="int8", **beside)),
        seed=[1, 2, 3],
    )
    assert made.images.isfinite().all()


def test_every_linear_layer_of_the_blocks_is_replaced(drawn: Any) -> None:
    model, _ = drawn
    whole = plan_of(model, PlanStep(scale=1, precision="int8"))[1].layers
    made = stand_ins(model, 0, whole)
    assert len(made) == model.info.depth
    for block in made.values():
        assert {*model.info.layers, "fc2"} == set(block)
        assert all(isinstance(product, emulated) for product in block.values())
    assert stand_ins(model, 3, whole) is made  # recorded graphs go by identity
    low = FeatureOption(rank=16, basis="random")
    both = plan_of(model, PlanStep(scale=1, features=low, precision="int8"))[1].layers
    narrow = stand_ins(model, 1, both)
    assert stand_ins(model, 1, both) is narrow
    assert isinstance(narrow[0]["qkv"], Chain) and narrow[0]["fc2"] is made[0]["fc2"]
    assert precisions_of(model).nbytes > 0
    precisions_of(model).forget()
    assert precisions_of(model).nbytes == 0


def test_without_a_kernel_scales_run_in_the_models_dtype(
    drawn: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model, conditioning = drawn
    model.precisions.emulate = False
    monkeypatch.setattr(module, "obstacle", lambda *_: "it is slow here")
    exact = generate(model, conditioning, seed=[1, 2, 3])
    plan = plan_of(model, PlanStep(scale=1, precision="int8"), PlanStep(scale=2, precision="int8"))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            made = generate(model, conditioning, plan, seed=[1, 2, 3])
    assert torch.equal(made.images, exact.images)
    said = [r.message for r in caplog.records if "int8" in r.message]
    assert len(said) == 1 and "slow here" in said[0]
    assert model.precisions.description("int8") == "not int8: it is slow here"


def test_copies_have_a_bound(drawn: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = drawn
    model.precisions.emulate = False
    monkeypatch.setattr(module, "COPIES_LIMIT", 100)
    assert "GiB" in model.precisions.hindrance("int8")


def test_a_model_in_bfloat16_has_such_products(drawn: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = drawn
    layers = [
        {n: x._replace(weight=x.weight.bfloat16()) for n, x in block.items()}
        for block in model.precisions.layers
    ]
    model.precisions = Precisions(layers)
    assert model.precisions.at("bfloat16", {}) == {}
    assert model.precisions.description("bfloat16") == "bfloat16"


@pytest.mark.skipif(
    bool(quantised.obstacle("int8", torch.device("cpu"), torch.float32)),
    reason="no fast int8 products on this processor",
)
def test_the_kernel_does_what_the_definition_does(
    drawn: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, conditioning = drawn
    rounded = partial(quantised.emulated, most=quantised.weight_levels())
    monkeypatch.setattr(module, "emulated", rounded)
    last = len(model.scales()) - 1
    ids = generate(model, conditioning, seed=[1, 2, 3]).ids
    steps = [PlanStep(scale=k, precision="int8") for k in range(last + 1)]
    wanted = logits(model, conditioning, ids, *steps)
    model.precisions.emulate = False
    got = logits(model, conditioning, ids, *steps)
    for a, b in zip(wanted, got, strict=True):
        assert off(a, b) < 0.02  # a number between two steps may go either way


def test_what_is_asked_and_done_is_said(drawn: Any) -> None:
    model, _ = drawn
    step = plan_of(model, PlanStep(scale=1, precision="int8"))[1]
    row = summary_row(model, step, 0.0, 2)
    assert row.asked == "precision int8" and "int8 emulated" in row.done.split(", ")


def test_what_a_profile_may_say() -> None:
    assert PlanStep(scale=1, precision="fp8").model_dump(exclude_defaults=True) == {
        "scale": 1,
        "precision": "fp8",
    }
    with pytest.raises(ValidationError, match="precision"):
        PlanStep(scale=1, precision="int4")
    with pytest.raises(ValidationError, match="precision"):
        PlanStep(scale=1, run="skip", precision="int8")


def test_families_without_it_refuse(tiny_var: VAR) -> None:
    info = replace(tiny_var.info, layers={})
    with pytest.raises(ProfileError, match="int8"):
        compile_plan(
            [PlanStep(scale=1, precision="int8")],
            info,
            tiny_var.scales(),
            tiny_var.default_sampling,
        )


def test_a_pipeline_emulates_by_choice_only() -> None:
    pipeline = load(CHECKPOINT, profile=None, emulate=True)
    pipeline.enable([PlanStep(scale=6, precision="fp8")])
    made = pipeline.generate(labels=[1, 2], seed=0)
    assert made.images.isfinite().all()
    assert "fp8 emulated" in str(pipeline.summary())
    pipeline = load(CHECKPOINT, profile=None)
    pipeline.enable([PlanStep(scale=6, precision="fp8")])
    assert "not fp8: there is no kernel for it on cpu" in str(pipeline.summary())


def test_a_processor_without_bfloat16_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "obstacle", lambda *_: "256 rows run at 0.5x of float32 here")
    cpu = torch.device("cpu")
    (said,) = module.dtype_notes(cpu, torch.bfloat16)
    assert "no gain" in said and "0.5x" in said
    assert module.dtype_notes(cpu, torch.float32) == []
    assert module.dtype_notes(torch.device("cuda"), torch.bfloat16) == []
    monkeypatch.setattr(module, "obstacle", lambda *_: "")
    assert module.dtype_notes(cpu, torch.bfloat16) == []
