"""A model against what its publisher's code gave for the same weights, inputs and noise."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from stagevar_runtime import Sampling
from stagevar_runtime.loop import engine
from stagevar_runtime.loop.plan import plan_for
from stagevar_runtime.model.protocol import Conditioning, ScaleModel

TOLERANCE = {"atol": 1e-4, "rtol": 0}


def assert_as_published(
    model: ScaleModel,
    inputs: Conditioning,
    sampling: Sampling,
    want: Mapping[str, Tensor],
    seed: int,
    replayed: int = 0,
) -> None:
    """The published ids give the published tensors, and ``seed`` draws the published ids.

    ``replayed``: the seed of what is drawn beside ids.
    """
    plan, count = plan_for(model, (), sampling), len(model.scales())
    recorded = [want[f"s{k}.ids"] for k in range(count)]
    got = engine.replay(model, inputs, recorded, plan, seed=replayed)
    for k in range(count):
        torch.testing.assert_close(got.logits[k], want[f"s{k}.logits"], **TOLERANCE)
    torch.testing.assert_close(got.guided[5], want["guided.mid"], **TOLERANCE)
    torch.testing.assert_close(got.guided[-1], want["guided.last"], **TOLERANCE)
    torch.testing.assert_close(got.canvas, want["s9.canvas"], **TOLERANCE)
    torch.testing.assert_close(got.image, want["image"], **TOLERANCE)
    free = engine.generate(model, inputs, plan, seed=seed)
    for k in range(count):
        assert torch.equal(free.ids[k].flatten(), recorded[k].long().flatten()), f"scale {k}"
