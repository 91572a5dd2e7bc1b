"""Scenes of coloured shapes, judged by rule."""

from __future__ import annotations

import torch
from torch import Tensor

from ..datasets.scenes.prompts import UNSEEN, real_pictures, suite_prompts, training_pictures
from ..datasets.scenes.render import SIDE
from ..metrics.scene_rules import SceneRules
from .suite import Kind, Suite

TRAINING = 2000  # training pictures among which the nearest is looked for
KINDS = (
    Kind("single_object", "one"),
    Kind("two_object", "two"),
    Kind("counting", "count"),
    Kind("colors", "colour"),
    Kind("position", "place"),
    Kind("color_attr", "bind"),
    Kind(UNSEEN, "unseen", counted=False),
)
CAPTION = (
    "Passed: the mean over GenEval's six kinds, then by kind; unseen pairs of colour and shape "
    "count apart."
)


def scenes_suite() -> Suite:
    """Captions that training never showed; real pictures are rendered."""

    def real(count: int, side: int | None) -> tuple[Tensor, list[str]]:
        prompts = [text for _, text in suite_prompts(count, seed=0)]
        return real_pictures(prompts, seed=1, side=side or SIDE), prompts

    def training(metric: SceneRules) -> Tensor:
        parts = training_pictures(TRAINING).split(100)
        return torch.cat([metric.features(part) for part in parts])

    return Suite(
        name="scenes",
        kinds=KINDS,
        metric=SceneRules(),
        ask=suite_prompts,
        real=real,
        training=training,
        caption=CAPTION,
        made="rendered",
    )
