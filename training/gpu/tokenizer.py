"""Trains the tokenizer for a share of the time: crops, then whole pictures, then its decoder alone.

A crop of half the side costs a quarter and teaches the same edges; once the encoder stands still
tokens stay what they are, and the decoder learns to read them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from stagevar_runtime.families.tokenizers.bsq_vae import BSQVAE

from ..scenes.tokenizer import rebuild
from .clock import Clock
from .pictures import Pictures
from .precision import Precision
from .settings import Size

Log = Callable[[dict[str, object]], None]
STEPS = 100  # that there should be at least, for which batches are made smaller


@dataclass(frozen=True)
class TokenizerPlan:
    """Hyper-parameters. ``crops``, ``settled``: shares of the time, on crops, and from which on the
    decoder is trained alone."""

    learning_rate: float = 2e-3
    warmup: int = 50
    commitment: float = 0.25
    crops: float = 0.5
    settled: float = 0.8


def cropped(images: Tensor) -> Tensor:
    """A random square of half the side of a batch (B, 3, S, S), aligned to 8 pixels."""
    side = images.shape[-1] // 2
    y, x = (8 * v for v in torch.randint(side // 8 + 1, (2,)).tolist())
    return images[:, :, y : y + side, x : x + side]


class TokenizerTraining:
    """A tokenizer in training; ``progress`` in [0, 1] is what it has had of its time."""

    def __init__(self, size: Size, device: str, precision: Precision) -> None:
        torch.manual_seed(0)
        self.size, self.device, self.precision = size, device, precision
        self.plan = TokenizerPlan()
        self.model = BSQVAE(size.tokenizer()).to(device, memory_format=torch.channels_last)
        self.model.train()
        self.batch = 1
        self.step, self.progress = 0, 0.0
        parameters = list(self.model.parameters())
        self.optimizer = torch.optim.AdamW(
            parameters, lr=0.0, betas=(0.9, 0.95), weight_decay=0.01, foreach=True
        )

    def update(self, pictures: Pictures) -> dict[str, Tensor]:
        """One step; L1 and how far features are off the codes."""
        plan, model = self.plan, self.model
        crops = self.progress < plan.crops
        image = pictures.batch(self.batch * (4 if crops else 1))
        image = (cropped(image) if crops else image).contiguous(memory_format=torch.channels_last)
        model.encoder.requires_grad_(self.progress < plan.settled)
        rate = plan.learning_rate * max(0.5 * (1 + math.cos(math.pi * self.progress)), 0.02)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * min(1.0, (self.step + 1) / plan.warmup)
        with self.precision.autocast():
            rebuilt = rebuild(model, image, self.size.sizes)
        loss, l1, off = rebuilt.loss(image, plan.commitment)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        return {"l1": l1.detach(), "off": off.detach()}

    def steps(
        self, pictures: Pictures, clock: Clock, end: float, log: Log
    ) -> Iterator[dict[str, Tensor]]:
        """Train until the clock shows ``end`` seconds; yields between steps."""
        begun, before, told = clock.now, self.progress, clock.now - 2
        allowed, full = (end - begun) / STEPS, self.size.tokenizer_batch
        while (now := clock.now) < end or self.step == 0:
            share = min(1.0, (now - begun) / max(end - begun, 1e-6))
            self.progress = before + (1 - before) * share
            try:
                found = self.update(pictures)
            except torch.OutOfMemoryError:
                if self.batch == 1:
                    raise
                self.batch = full = self.batch // 2
                torch.cuda.empty_cache()
                log({"tokenizer_batch": self.batch, "why": "the device's memory is full"})
                continue
            if self.batch < full:  # grows while twice as many still fit
                self.precision.wait()
                if 2 * (clock.now - now) < allowed:
                    self.batch = min(2 * self.batch, full)
            if clock.now - told > 2:
                told = clock.now
                values = {name: round(value.item(), 5) for name, value in found.items()}
                shown = {"step": self.step, "progress": round(self.progress, 3)}
                log({**shown, "batch": self.batch, **values})
            yield found
        self.progress = 1.0

    def ready(self) -> BSQVAE:
        """The tokenizer for inference, its weights rounded to what is shipped."""
        with torch.no_grad():
            for tensor in self.model.state_dict().values():
                tensor.copy_(tensor.half().float())
        return self.model.eval().requires_grad_(False)
