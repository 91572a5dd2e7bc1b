"""Measure one chunk of images: the exact path observed, every intervention scored."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stagevar_runtime.loop.plan import EXACT
from stagevar_runtime.model.protocol import ScaleModel
from stagevar_runtime.model.sampling import Sampling

from ..datasets.inputs import Inputs
from ..metrics.images import cosine_similarity, kid_shares, psnr
from ..metrics.protocol import Quality
from ..observe.frequency import frequency_change
from ..observe.observer import ExactObserver
from .interventions import Intervention, SearchSpace, run_chunk
from .per_image import PerImage


@torch.inference_mode()
def measure_chunk(
    model: ScaleModel,
    inputs: Inputs,
    space: SearchSpace,
    interventions: Sequence[Intervention],
    sampling: Sampling,
    quality: Quality,
    rank_images: int,
) -> PerImage:
    """Everything :class:`~.measurements.Measurements` keeps of these images."""
    observer = ExactObserver(model, sampling, rank_images)
    exact: list[Tensor] = []
    found = PerImage()
    seen: list[Tensor] = []

    def visit(name: str, images: Tensor) -> None:
        images = images.float().cpu()
        if name == EXACT:
            exact.append(images)
        found.smooth[name] = quality.smooth(images, inputs.items, exact[0]).tolist()
        found.score[name] = quality.score(images, inputs.items, exact[0]).tolist()
        if name != EXACT:
            found.psnr[name] = psnr(images, exact[0]).clamp_max(99.0).tolist()
        if quality.reference is not None and len(inputs) > 1:
            features = quality.features(images)
            if name == EXACT:
                seen.append(features)
            else:
                shares = kid_shares(quality.reference, seen[0], features)
                found.distribution[name] = (1000 * shares).tolist()

    run_chunk(model, inputs, space, interventions, sampling, visit, observer)
    final = quality.features(exact[0])
    semantic = [cosine_similarity(quality.features(p), final) for p in observer.pictures]
    structural = [1 - quality.perceptual(p, exact[0]) for p in observer.pictures]
    low, high = frequency_change(observer.pictures)
    found.sensitivity = {
        k: {name: v.tolist() for name, v in names.items()}
        for k, names in observer.sensitivity.items()
    }
    found.ranks = {
        key: {name: v.tolist() for name, v in observer.ranks.values(key).items()}
        for key in observer.ranks.keys()
    }
    found.semantic = torch.stack(semantic, 1).tolist()
    found.structural = torch.stack(structural, 1).tolist()
    found.low, found.high = low.tolist(), high.tolist()
    return found
