"""Trains the binary spherical tokenizer on rendered scenes: crops first, whole pictures last.

A crop of half the side costs a quarter and teaches the same edges; whole pictures then teach the
schedule that is used. The decoder can go on alone afterwards: tokens stay what they were.

The loss is L1 + L2 with a straight-through gradient and a commitment to the codes. Source of the
quantiser: Infinity (arXiv 2412.04431), ``models/bsq_vae/multiscale_bsq.py``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from stagevar_runtime.errors import StagevarError
from stagevar_runtime.families.tokenizers.bsq_vae import BSQVAE
from stagevar_runtime.families.tokenizers.config import VQVAEConfig

from ..data import DataError
from ..state import Interrupted, load_torch, never, save_torch

Sizes = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class TokenizerPlan:
    """Hyper-parameters. ``crops``: share of the time that trains on crops of half the side;
    ``decoder_only``: the encoder stays as it is."""

    minutes: float = 12.0
    batch: int = 32
    learning_rate: float = 2e-3
    warmup: int = 50
    commitment: float = 0.25
    crops: float = 0.65
    decoder_only: bool = False
    seed: int = 0


def given_tokenizer(path: Path, like: VQVAEConfig) -> BSQVAE:
    """A trained tokenizer's file, of as many bits as ``like``, with its encoder.

    Raises:
        DataError: it is none.
    """
    from safetensors import SafetensorError  # not where training.gpu runs
    from safetensors.torch import load_file

    try:
        model = BSQVAE.from_tensors(load_file(path))
    except (OSError, SafetensorError, StagevarError) as error:
        raise DataError(f"--tokenizer {path}: cannot be read as a tokenizer ({error})") from error
    if not model.config.encoder or model.config.z_channels != like.z_channels:
        has = "an encoder" if model.config.encoder else "no encoder"
        raise DataError(
            f"--tokenizer {path}: has {has} and {model.config.z_channels} bits, expected an "
            f"encoder and {like.z_channels} bits"
        )
    return model


DECODER = TokenizerPlan(10.0, batch=8, learning_rate=1e-3, crops=0.0, decoder_only=True, seed=7)


def quantize(model: BSQVAE, features: Tensor, sizes: Sizes) -> Tensor:
    """The canvas (B, d, H, W) that features (B, d, H, W) are rounded to, scale by scale."""
    size = (features.shape[-2], features.shape[-1])
    rest, canvas = features, torch.zeros_like(features)
    for h, w in sizes:
        small = rest if (h, w) == size else F.interpolate(rest, size=(h, w), mode="area")
        codes = model.codes((small > 0).movedim(1, -1)).movedim(-1, 1)
        grown = model.resize(codes, size)
        canvas, rest = canvas + grown, rest - grown
    return canvas


@dataclass(frozen=True)
class Rebuilt:
    """Pictures (B, 3, H, W) through the tokenizer, with gradients; features and canvas
    (B, d, h, w)."""

    picture: Tensor
    features: Tensor
    canvas: Tensor

    def loss(self, image: Tensor, commitment: float) -> tuple[Tensor, Tensor, Tensor]:
        """What is trained on, and two parts: L1, and how far features are off the codes."""
        l1 = (self.picture - image).abs().mean()
        off = F.mse_loss(self.features, self.canvas)
        return l1 + F.mse_loss(self.picture, image) + commitment * off, l1, off


def rebuild(model: BSQVAE, image: Tensor, sizes: Sizes) -> Rebuilt:
    """Encode, round by the scales that fit, and decode pictures (B, 3, H, W) in [-1, 1]."""
    features = model.encoder(image).float()
    used = [size for size in sizes if size[0] <= features.shape[-1]]
    canvas = quantize(model, features.detach(), used)
    straight = features + (canvas - features).detach()
    return Rebuilt(model.decoder(straight).float(), features, canvas)


def crops(images: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """A random square of every image (B, 3, H, W), aligned to 8 pixels."""
    steps = (images.shape[-1] - side) // 8 + 1
    places = torch.randint(steps, (len(images), 2), generator=generator).tolist()
    return torch.stack(
        [
            image[:, 8 * y : 8 * y + side, 8 * x : 8 * x + side]
            for image, (y, x) in zip(images, places, strict=True)
        ]
    )


def train_tokenizer(
    config: VQVAEConfig,
    pixels: Tensor,
    sizes: Sizes,
    plan: TokenizerPlan,
    path: Path,
    device: str,
    log: Callable[[dict[str, float]], None],
    stop: Callable[[], bool] = never,
    start: BSQVAE | None = None,
    save_every_s: float = 60.0,
) -> BSQVAE:
    """Train on pixels (N, 3, H, W) uint8, or resume from ``path``; ready for inference.

    ``start``: a tokenizer to go on from, instead of random weights.
    """
    torch.manual_seed(plan.seed)
    model = BSQVAE(config).to(device, memory_format=torch.channels_last).train()
    if start is not None:
        model.load_state_dict(start.state_dict())
    model.encoder.requires_grad_(not plan.decoder_only)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.0, betas=(0.9, 0.95), weight_decay=0.01)
    step, spent = 0, 0.0
    if (saved := load_torch(path)) is not None:
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        step, spent = saved["step"], saved["spent"]

    def save() -> None:
        save_torch(
            path,
            {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "step": step,
                "spent": spent,
            },
        )

    if spent >= plan.minutes * 60:
        return model.eval().requires_grad_(False)
    mark, saved_at = time.monotonic(), time.monotonic()
    while (progress := spent / (plan.minutes * 60)) < 1:
        if stop():
            save()
            raise Interrupted
        generator = torch.Generator().manual_seed(plan.seed * 1_000_003 + step)
        index = torch.randint(len(pixels), (plan.batch,), generator=generator)
        image = pixels[index]
        if cropped := progress < plan.crops:
            image = crops(image, image.shape[-1] // 2, generator)
        image = image.to(device).float().div_(127.5).sub_(1)
        image = image.contiguous(memory_format=torch.channels_last)
        rate = max(0.5 * (1 + math.cos(math.pi * progress)), 0.02)
        for group in optimizer.param_groups:
            group["lr"] = plan.learning_rate * rate * min(1.0, (step + 1) / plan.warmup)
        found = rebuild(model, image, sizes)
        loss, l1, off = found.loss(image, plan.commitment)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        if step % 20 == 0:
            log(
                {
                    "step": step,
                    "minutes": round(spent / 60, 2),
                    "cropped": float(cropped),
                    "l1": l1.item(),
                    "off": off.item(),
                    "size": found.features.detach().std().item(),
                }
            )
        step += 1
        now = time.monotonic()
        spent, mark = spent + now - mark, now
        if now - saved_at > save_every_s:
            save()
            saved_at = now
    save()
    return model.eval().requires_grad_(False)


@torch.inference_mode()
def encode(model: BSQVAE, pixels: Tensor, device: str) -> Tensor:
    """Features (N, d, H, W) in half precision of pixels (N, 3, 8H, 8W) uint8.

    On a CPU in batches that fit its caches: 160 images/s a core where batches of 50 give 80.
    """
    parts = []
    for chunk in pixels.split(4 if device == "cpu" else 256):
        image = chunk.to(device).float().div_(127.5).sub_(1)
        parts.append(model.encoder(image.contiguous(memory_format=torch.channels_last)).half())
    return torch.cat([part.contiguous().cpu() for part in parts])
