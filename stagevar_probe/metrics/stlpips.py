"""ST-LPIPS: a perceptual distance that a shift by a pixel does not fool.

The network of Ghildyal & Liu, "Shift-tolerant perceptual similarity metric", ECCV 2022, written
anew here. Its weights come from the wheel ``stlpips_pytorch`` (BSD-2), which is never imported: it
would need torchvision and IPython, and some of its files are under a non-commercial licence.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from stagevar_runtime.errors import CalibrationError

from .wheels import wheel_file, wheel_weights

PACKAGE = "stlpips_pytorch"
SMALLEST = 64  # the side it was trained at; smaller pictures are enlarged to it
LARGEST = 256  # the shorter side of larger pictures is reduced to it
PIXELS = 1 << 19  # looked at in one go, so that memory stays small

# The layers of five slices: c convolution, r ReLU, p maximum over a window, d blur and halve.
# Every slice ends in the activations that are compared.
LAYERS = {
    "alex": ("cdr", "pdcr", "pdcr", "cr", "cr"),
    "vgg": ("crcr", "pdcrcr", "pdcrcrcr", "pdcrcrcr", "pdcrcrcr"),
}
WINDOW = {"alex": 3, "vgg": 2}


class StLpips:
    """The network, on the CPU until pictures on another device come.

    Raises:
        CalibrationError: the extra ``metrics`` is not installed.
    """

    def __init__(self, net: Literal["alex", "vgg"] = "alex") -> None:
        self.net = net
        self.tensors = wheel_weights("ST-LPIPS", PACKAGE, f"{net}_shift_tolerant.pth")

    @torch.inference_mode()
    def __call__(self, images: Tensor, reference: Tensor) -> Tensor:
        """Distance ``(B,)`` float32 of images ``(B, 3, H, W)`` in [0, 1]; 0 is the same picture."""
        if images.shape != reference.shape or images.ndim != 4 or images.shape[1] != 3:
            raise CalibrationError(
                f"images are {tuple(images.shape)} and {tuple(reference.shape)}, "
                "expected (B, 3, H, W) twice"
            )
        ours, theirs = _fitting(images.float()), _fitting(reference.float())
        size = max(1, PIXELS // ours[0, 0].numel())
        pairs = zip(ours.split(size), theirs.split(size), strict=True)
        return torch.cat([self._distance(a, b) for a, b in pairs])

    def _distance(self, images: Tensor, reference: Tensor) -> Tensor:
        both = torch.cat([images, reference])
        self.tensors = {name: tensor.to(both.device) for name, tensor in self.tensors.items()}
        shift, scale = (self.tensors[f"scaling_layer.{name}"] for name in ("shift", "scale"))
        x = (2 * both - 1 - shift) / scale
        total = both.new_zeros(len(images))
        layer = 0
        for index, kinds in enumerate(LAYERS[self.net]):
            for kind in kinds:
                x = self._layer(kind, f"net.slice{index + 1}.{layer}", x)
                layer += 1
            unit = x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10)
            ours, theirs = unit.chunk(2)
            weight = self.tensors[f"lin{index}.model.1.weight"]
            total += F.conv2d((ours - theirs).square(), weight).mean((1, 2, 3))
        return total

    def _layer(self, kind: str, name: str, x: Tensor) -> Tensor:
        if kind == "c":
            weight = self.tensors[f"{name}.weight"]
            padding = min(2, weight.shape[-1] // 2)
            return F.conv2d(x, weight, self.tensors[f"{name}.bias"], padding=padding)
        if kind == "r":
            return x.relu()
        if kind == "p":
            return F.max_pool2d(x, WINDOW[self.net], 1)
        blur = self.tensors[f"{name}.filt"]
        return F.conv2d(F.pad(x, (2, 2, 2, 2), "reflect"), blur, stride=2, groups=x.shape[1])


def installed() -> bool:
    """Whether the weights are at hand."""
    return wheel_file(PACKAGE, "alex_shift_tolerant.pth") is not None


def _fitting(images: Tensor) -> Tensor:
    height, width = images.shape[-2:]
    short = min(height, width)
    factor = min(max(short, SMALLEST), LARGEST) / short
    if factor == 1:
        return images
    size = (round(factor * height), round(factor * width))
    return F.interpolate(images, size=size, mode="bilinear", antialias=True)
