"""The small classifier that scores a class-conditional reference checkpoint.

It answers two questions about generated images: is the asked class what a classifier sees
(agreement), and do its features follow those of real images (kernel distance). The weights travel
in a safetensors file beside the checkpoint, together with features of real images.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from stagevar_runtime.checkpoint.finite import check_finite
from stagevar_runtime.errors import FAULTS, CalibrationError, CheckpointError, one_line

KIND = "stagevar-scorer"
_WEIGHTS = "classifier."
_REFERENCE = "reference_features"


@dataclass(frozen=True)
class ClassifierConfig:
    """Architecture: images are averaged to grey; ``widths`` are the channels of the stages."""

    classes: int = 10
    side: int = 32
    widths: tuple[int, ...] = (32, 64, 128)
    features: int = 128


class SmallClassifier(nn.Module):
    """Convolutions with batch norm, halving the side at every stage, and two linear layers."""

    def __init__(self, config: ClassifierConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or ClassifierConfig()
        stages: list[nn.Module] = []
        inputs = 1
        for width in config.widths:
            stages += [
                nn.Conv2d(inputs, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
                nn.MaxPool2d(2),
            ]
            inputs = width
        stages += [
            nn.Conv2d(inputs, inputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(inputs),
            nn.ReLU(inplace=True),
        ]
        self.stages = nn.Sequential(*stages)
        cells = (config.side >> len(config.widths)) ** 2
        self.bottleneck = nn.Linear(inputs * cells, config.features)
        self.head = nn.Linear(config.features, config.classes)

    def features(self, images: Tensor) -> Tensor:
        """Features (B, F) of images (B, 3, side, side) in [0, 1]."""
        grey = images.mean(1, keepdim=True).mul(2).sub(1)
        return F.relu(self.bottleneck(self.stages(grey).flatten(1)))

    def logits(self, images: Tensor) -> Tensor:
        """Class logits (B, classes) of images (B, 3, side, side) in [0, 1]."""
        return self.head(self.features(images))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features and logits in one pass."""
        features = self.features(images)
        return features, self.head(features)


@dataclass(frozen=True)
class Scorer:
    """A trained classifier and what belongs to it.

    Attributes:
        model: the classifier, ready for inference.
        reference_features: features (N, F) float32 of real test images.
        class_names: one name per class.
        test_accuracy: share of real test images that it classifies rightly.
    """

    model: SmallClassifier
    reference_features: Tensor
    class_names: tuple[str, ...]
    test_accuracy: float

    def fitting(self, images: Tensor) -> Tensor:
        """Images (N, 3, side, side), checked, as the classifier takes them."""
        side = self.model.config.side
        if tuple(images.shape[-2:]) != (side, side):
            raise CalibrationError(
                f"the scorer looks at {side}x{side} pixels, the model draws "
                f"{images.shape[-2]}x{images.shape[-1]}. Choose others: "
                "--metric ssim-to-exact --features pixels"
            )
        return images.float().cpu()

    @torch.inference_mode()
    def score(self, images: Tensor, batch: int = 250) -> tuple[Tensor, Tensor]:
        """Features (N, F) and predicted classes (N,) of images (N, 3, H, W) in [0, 1]."""
        parts = [self.model(chunk.float()) for chunk in images.split(batch)]
        return torch.cat([f for f, _ in parts]), torch.cat([x.argmax(1) for _, x in parts])


def save_scorer(
    path: Path,
    model: SmallClassifier,
    reference_features: Tensor,
    class_names: Sequence[str],
    test_accuracy: float,
) -> None:
    """Write a scorer file: weights and reference features in half precision, and what they are."""
    tensors = {
        f"{_WEIGHTS}{name}": tensor.detach().cpu().half().contiguous()
        for name, tensor in model.state_dict().items()
        if tensor.is_floating_point()
    }
    tensors[_REFERENCE] = reference_features.detach().cpu().half().contiguous()
    metadata = {
        "kind": KIND,
        "architecture": json.dumps(asdict(model.config)),
        "class_names": json.dumps(list(class_names)),
        "test_accuracy": f"{test_accuracy:.4f}",
    }
    partial = path.with_name(path.name + ".partial")
    save_file(tensors, partial, metadata)
    partial.replace(path)


def load_scorer(path: Path | str, device: str | torch.device = "cpu") -> Scorer:
    """Read a scorer file.

    Raises:
        CheckpointError: the file is missing, damaged or of another kind.
    """
    try:
        with safe_open(str(path), "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name).float() for name in file.keys()}
    except (OSError, SafetensorError, *FAULTS) as error:
        raise CheckpointError(f"cannot read the scorer {path}: {one_line(error)}") from error
    if metadata.get("kind") != KIND:
        raise CheckpointError(
            f"{path} is no scorer: its metadata says kind {metadata.get('kind')!r}, "
            f"expected {KIND!r}"
        )
    try:
        scorer = _scorer(path, metadata, tensors)
    except FAULTS as error:
        raise CheckpointError(
            f"{path}: a damaged scorer ({one_line(error)}). Download it again, or choose another "
            "--metric"
        ) from error
    check_finite(tensors, path)
    scorer.model.to(device).eval().requires_grad_(False)
    return replace(scorer, reference_features=scorer.reference_features.to(device))


def _scorer(path: Path | str, metadata: dict[str, str], tensors: dict[str, Tensor]) -> Scorer:
    """What a scorer file holds. Raises CheckpointError, or one of :data:`FAULTS`."""
    config = ClassifierConfig(**json.loads(metadata["architecture"]))
    config = replace(config, widths=tuple(config.widths))
    sizes = (config.classes, config.side, config.features, *config.widths)
    if len(sizes) > 16 or not all(type(size) is int and 0 < size < 2**16 for size in sizes):
        raise ValueError(f"architecture {metadata['architecture'][:80]}")
    with torch.device("meta"):  # what the file says takes no memory before it is believed
        model = SmallClassifier(config)
    expected = {n for n, t in model.state_dict().items() if t.is_floating_point()}
    found = {n[len(_WEIGHTS) :] for n in tensors if n.startswith(_WEIGHTS)}
    if expected != found or _REFERENCE not in tensors:
        names = sorted(expected ^ found) or [_REFERENCE]
        raise CheckpointError(f"{path}: scorer tensors missing or unexpected: {names[:8]}")
    counters = {
        name: torch.zeros_like(tensor, device="cpu")
        for name, tensor in model.state_dict().items()
        if not tensor.is_floating_point()
    }
    model.load_state_dict(counters | {n: tensors[_WEIGHTS + n] for n in expected}, assign=True)
    if tensors[_REFERENCE].ndim != 2 or tensors[_REFERENCE].shape[1] != config.features:
        raise ValueError(f"reference features of shape {tuple(tensors[_REFERENCE].shape)}")
    return Scorer(
        model=model,
        reference_features=tensors[_REFERENCE],
        class_names=tuple(map(str, json.loads(metadata["class_names"]))),
        test_accuracy=float(metadata["test_accuracy"]),
    )
