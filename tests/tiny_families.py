"""Tiny random HART, STAR and Switti with inputs for them."""

import torch
from tiny_text import hart_states, star_states, switti_states, take, text_features

from stagevar_runtime.families.hart import HART
from stagevar_runtime.families.star import STAR
from stagevar_runtime.families.switti import Switti
from stagevar_runtime.model.protocol import Conditioning, ScaleModel

CPU = torch.device("cpu")
SIDES = (1, 2, 3, 4)


def tiny_hart(**shape) -> HART:
    said = {"sep_aln_pooling_mode": shape.get("pooling", "max")}
    return HART.from_tensors(*hart_states(**shape), CPU, torch.float32, said)


def hart_inputs(model: HART, images: list[int] | None = None):
    features = text_features(3, 24, 24)
    images = [0, 1, 2] if images is None else images
    return model.condition(context=features["context"][images], mask=features["mask"][images])


def tiny_star(**shape) -> STAR:
    options = {"patch_nums": shape.get("sides", SIDES)}
    return STAR.from_tensors(*star_states(**shape), CPU, torch.float32, options)


def star_inputs(model: STAR, images: list[int] | None = None):
    features = text_features(3, 24, 24)
    return model.condition(**(features if images is None else take(features, images)))


def tiny_switti(**shape) -> Switti:
    return Switti.from_tensors(*switti_states(**shape), CPU, torch.float32)


def switti_inputs(model: Switti, images: list[int] | None = None):
    features = text_features(3, 40, 24)
    return model.condition(**(features if images is None else take(features, images)))


def features(model: ScaleModel, turn: int) -> Conditioning:
    generator = torch.Generator().manual_seed(turn)
    config = model.config  # type: ignore[attr-defined]
    width = config.context_width
    pooled = getattr(config, "pooled_width", width)
    if model.info.family == "hart":
        mask = torch.arange(config.context_tokens)[None] < torch.tensor([[4], [3]])
        context = torch.randn(2, config.context_tokens, width, generator=generator)
        return model.condition(context=context, mask=mask)
    null = torch.ones(1, 5, width), torch.ones(1, pooled), torch.ones(1, 5, dtype=torch.bool)
    return model.condition(
        context=torch.randn(2, 5, width, generator=generator),
        pooled=torch.randn(2, pooled, generator=generator),
        mask=torch.arange(5)[None] < torch.tensor([[5], [3]]),
        **dict(zip(("null_context", "null_pooled", "null_mask"), null, strict=True)),
    )
