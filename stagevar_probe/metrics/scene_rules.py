"""Does a picture show what its caption asks? Decided by rule; see ``datasets/scenes``."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from stagevar_runtime.errors import CalibrationError

from ..datasets.scenes import Scene, closeness, judge, parse
from ..datasets.scenes.prompts import real_pictures, suite_prompts
from .features import Features
from .protocol import Items, Looking

REFERENCES = 1000  # rendered pictures that the distribution is compared with
REFERENCE_SEED = 77


class SceneRules(Looking):
    """1 where the rule passes a picture; ``smooth`` is how near it comes."""

    name = "scenes"
    default_loss = 0.01

    def score(self, images: Tensor, items: Items, exact: Tensor) -> Tensor:
        """1 where the picture passes."""
        found = zip(images.float().cpu(), _scenes(items), strict=True)
        return torch.tensor([float(judge(image, scene)) for image, scene in found])

    def smooth(self, images: Tensor, items: Items, exact: Tensor) -> Tensor:
        """The rule with its thresholds softened, the mean with what it says, in [0, 1]."""
        found = zip(images.float().cpu(), _scenes(items), strict=True)
        near = torch.tensor([closeness(image, scene) for image, scene in found])
        return (near + self.score(images, items, exact)) / 2

    def real(self) -> Features:
        """The features, with those of rendered pictures as reference."""
        prompts = [text for _, text in suite_prompts(REFERENCES, REFERENCE_SEED)]
        seen = self.features(real_pictures(prompts, 0))
        return replace(self.features, reference=seen, source="rendered scenes")


def _scenes(items: Items) -> list[Scene]:
    try:
        return [parse(str(item)) for item in items]
    except ValueError as error:
        raise CalibrationError(f"metric scenes: {error}") from error
