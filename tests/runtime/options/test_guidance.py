"""The strength of guidance at every scale.

pytest tests/runtime/options/test_guidance.py
"""

from __future__ import annotations

import pytest
import torch

from stagevar_runtime.errors import StagevarError
from stagevar_runtime.model.protocol import ModelInfo
from stagevar_runtime.options.guidance import combine, plain_weights, published_weights


def info(kind: str, held: bool = False) -> ModelInfo:
    return ModelInfo("toy", 2, 8, 2, (range(0, 2),), guidance=kind, guidance_held=held)


def test_ramp_rises_to_the_guidance_scale() -> None:
    weights = published_weights(info("ramp"), 4.0, 5)
    assert weights == [(1, 0), (2, -1), (3, -2), (4, -3), (5, -4)]
    assert published_weights(info("ramp"), 4.0, 1) == [(1, 0)]
    held = published_weights(info("ramp", held=True), 4.0, 5)
    assert held == [*weights[:-1], weights[-2]]


def test_linear_is_the_same_everywhere() -> None:
    assert published_weights(info("linear"), 3.0, 3) == [(3, -2)] * 3
    assert published_weights(info("linear"), (1.0, 2.0), 2) == [(1, 0), (2, -1)]
    with pytest.raises(StagevarError, match="got 2 guidance scales for 3"):
        published_weights(info("linear"), (1.0, 2.0), 3)


@pytest.mark.parametrize("kind", [("ramp", False), ("ramp", True), ("linear", False)])
def test_weights_sum_to_one(kind: tuple[str, bool]) -> None:
    assert all(abs(a + b - 1) < 1e-12 for a, b in published_weights(info(*kind), 2.7, 9))
    assert plain_weights(1.0) == (1.0, 0.0) and plain_weights(3.0) == (3.0, -2.0)


def test_combine() -> None:
    logits = torch.tensor([[[1.0, 2.0]], [[5.0, 0.0]], [[0.0, 1.0]], [[1.0, 1.0]]])
    assert combine(logits, None) is logits
    got = combine(logits, (3.0, -2.0))
    assert got.tolist() == [[[3.0, 4.0]], [[13.0, -2.0]]]
