"""Trains the classifier that scores samples."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from stagevar_probe.metrics.classifier import SmallClassifier

from .data.fashion import Images
from .state import Interrupted, load_torch, never, save_torch


@dataclass(frozen=True)
class ClassifierPlan:
    """Hyper-parameters of the classifier's training."""

    epochs: int = 3
    batch: int = 128
    learning_rate: float = 2e-3
    warmup: int = 100
    weight_decay: float = 0.05
    smoothing: float = 0.05
    seed: int = 1


def train_classifier(
    data: Images,
    plan: ClassifierPlan,
    path: Path,
    device: str,
    log: Callable[[dict[str, float]], None],
    rebuilt: Images | None = None,
    save_every_s: float = 60.0,
    stop: Callable[[], bool] = never,
) -> SmallClassifier:
    """Train, or resume from ``path``. Images are shifted by up to two pixels.

    ``rebuilt`` holds what the tokenizer makes of every image of ``data``. Half of the images are
    then taken from there, or the tokenizer's blur would pass for a change of class.
    """
    torch.manual_seed(plan.seed)
    model = SmallClassifier().to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=plan.weight_decay)
    per_epoch = len(data) // plan.batch
    steps, step = plan.epochs * per_epoch, 0
    if (saved := load_torch(path)) is not None:
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        step = saved["step"]

    def save() -> None:
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
        save_torch(path, state)

    saved_at = time.monotonic()
    model.train()
    while step < steps:
        if stop():
            save()
            raise Interrupted
        epoch, position = divmod(step, per_epoch)
        shuffle = torch.Generator().manual_seed(plan.seed + epoch)
        order = torch.randperm(len(data), generator=shuffle)
        index = order[position * plan.batch : (position + 1) * plan.batch]
        draw = torch.Generator().manual_seed(plan.seed * 1_000_003 + step)
        dy, dx = torch.randint(-2, 3, (2,), generator=draw).tolist()
        image = data.batch(index, device)
        if rebuilt is not None:
            swap = torch.rand(len(index), generator=draw) < 0.5
            image = torch.where(
                swap.to(device)[:, None, None, None], rebuilt.batch(index, device), image
            )
        image = image.roll((dy, dx), (2, 3))
        warm = min(1.0, (step + 1) / plan.warmup)
        decay = 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = plan.learning_rate * warm * decay
        target = data.labels[index].to(device)
        loss = F.cross_entropy(model.logits(image), target, label_smoothing=plan.smoothing)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            log({"step": step, "loss": loss.item()})
        step += 1
        if time.monotonic() - saved_at > save_every_s:
            save()
            saved_at = time.monotonic()
    save()
    return model.eval()


@torch.inference_mode()
def classify(
    model: SmallClassifier, images: Callable[[slice], Tensor], count: int
) -> tuple[Tensor, Tensor]:
    """Features (N, F) and predictions (N,) over ``images(slice)``, a few hundred at a time."""
    features, predictions = [], []
    for start in range(0, count, 250):
        f, logits = model(images(slice(start, min(start + 250, count))))
        features.append(f)
        predictions.append(logits.argmax(1))
    return torch.cat(features), torch.cat(predictions)
