"""What decides the results of a calibration and is not in its own description.

Pieces of an unfinished job are used again by the same job alone: with the same text encoder, and a
metric that says the same of the same pictures, whatever it is called.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch

from stagevar_runtime.errors import StagevarError
from stagevar_runtime.loop.engine import generate
from stagevar_runtime.pipeline import Pipeline

from ..datasets.inputs import Inputs
from ..metrics.protocol import Quality

DIGITS = 3  # of a score, beyond which devices differ


def identity(pipeline: Pipeline, quality: Quality, inputs: Inputs) -> dict[str, Any]:
    """JSON-ready; two jobs whose results could differ differ in it.

    The metric is asked about pictures that are the same in every run, with the first inputs.
    """
    one = inputs.chunk(0, 1)
    conditioning = one.condition(pipeline.model)
    shape = generate(pipeline.model, conditioning, seed=0).images.shape[1:]
    return {
        "text_encoder": _digest(
            {name: _rounded(t) for name, t in sorted(conditioning.cond.items())}
        ),
        "metric_says": _said(quality, inputs.chunk(0, 2), tuple(shape)),
        "reference_features": None
        if quality.reference is None
        else _digest(_rounded(quality.reference)),
    }


def _said(quality: Quality, inputs: Inputs, shape: tuple[int, ...]) -> str:
    """What a metric and its features make of pictures that never change."""
    count = len(inputs)
    noise = torch.Generator().manual_seed(0)
    pictures = torch.rand(count, *shape, generator=noise)
    other = torch.rand(count, *shape, generator=noise)
    try:
        found = [quality.score(pictures, inputs.items, other), quality.features(pictures)]
    except StagevarError as error:  # a metric that refuses noise refuses it every time
        return str(error)
    return _digest([_rounded(values) for values in found])


def _rounded(values: torch.Tensor) -> list[Any]:
    flat = values.detach().float().cpu().flatten()
    summary = torch.stack([flat.mean(), flat.std(unbiased=False), *flat[:64]])
    return [float(f"{value:.{DIGITS}g}") for value in summary.tolist()]


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
