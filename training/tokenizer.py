"""Trains the tokenizer: a small VQVAE in the published format.

The loss is the published quantiser's (VAR ``models/quant.py``, ``forward``) plus an L1 and L2
reconstruction loss. Codes that fall out of use start again from features of the current batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from stagevar_runtime.families.tokenizers.config import VQVAEConfig
from stagevar_runtime.families.tokenizers.vqvae import VQVAE

from .data.fashion import Images
from .state import Interrupted, load_torch, never, save_torch

Sizes = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class TokenizerPlan:
    """Hyper-parameters of the tokenizer's training."""

    steps: int = 1700
    batch: int = 64
    learning_rate: float = 1e-3
    warmup: int = 50
    commitment: float = 0.25
    restart_every: int = 25
    restart_until: float = 0.7  # share of the steps
    seed: int = 0


def quantize(
    model: VQVAE, features: Tensor, sizes: Sizes, commitment: float = 0.25
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Quantise with gradients.

    Args:
        model: the tokenizer.
        features: encoder output (B, C, H, W).
        sizes: (h, w) of every scale.
        commitment: weight of the loss that pulls features to codes.

    Returns:
        canvas (B, C, H, W) with a straight-through gradient, the quantiser's loss, the hits of
        every scale (scales, V), and the residuals that were looked up (N, C).
    """
    target = features.detach()
    rest, canvas = target, torch.zeros_like(target)
    loss = features.new_zeros(())
    hits, looked_up = [], []
    for index, (h, w) in enumerate(sizes):
        z = rest if index == len(sizes) - 1 else model.shrink(rest, (h, w))
        z = z.permute(0, 2, 3, 1).flatten(0, 2)
        ids = model.quantize.nearest(z)
        hits.append(torch.bincount(ids, minlength=model.config.vocabulary))
        looked_up.append(z)
        embedded = model.embed(ids.view(len(features), -1)).mT.unflatten(2, (h, w))
        grown = model.accumulate(canvas, embedded, index, len(sizes))
        rest = rest - (grown - canvas).detach()
        canvas = grown
        loss = (
            loss + F.mse_loss(canvas.detach(), features) * commitment + F.mse_loss(canvas, target)
        )
    straight = features + (canvas - features).detach()
    return straight, loss / len(sizes), torch.stack(hits), torch.cat(looked_up)


@torch.no_grad()
def restart_dead_codes(
    model: VQVAE, usage: Tensor, looked_up: Tensor, generator: torch.Generator
) -> int:
    """Move codes that are hardly used onto residuals of the batch.

    Args:
        model: the tokenizer, changed in place.
        usage: running share of look-ups of every code (V,), changed in place.
        looked_up: residuals (N, C) to draw from.
        generator: source of the draw.

    Returns:
        How many codes were moved.
    """
    dead = (usage < 0.02 / len(usage)).nonzero().flatten()
    if len(dead):
        pick = torch.randint(len(looked_up), (len(dead),), generator=generator)
        model.quantize.embedding.weight[dead] = looked_up[pick.to(looked_up.device)]
        usage[dead] = 1 / len(usage)
    return len(dead)


def train_tokenizer(
    config: VQVAEConfig,
    data: Images,
    sizes: Sizes,
    plan: TokenizerPlan,
    path: Path,
    device: str,
    log: Callable[[dict[str, float]], None],
    save_every_s: float = 60.0,
    stop: Callable[[], bool] = never,
) -> tuple[VQVAE, Tensor]:
    """Train, or resume from ``path``.

    Returns:
        the tokenizer and the running hits of every scale (scales, V).
    """
    torch.manual_seed(plan.seed)
    model = VQVAE(config).to(device, memory_format=torch.channels_last)
    with torch.no_grad():
        model.quantize.embedding.weight.mul_(0.3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, betas=(0.9, 0.95), weight_decay=0.01)
    usage = torch.full((config.vocabulary,), 1 / config.vocabulary, device=device)
    hits = torch.zeros(len(sizes), config.vocabulary, device=device)
    step = 0
    if (saved := load_torch(path)) is not None:
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        usage, hits = saved["usage"].to(device), saved["hits"].to(device)
        step = saved["step"]

    def save() -> None:
        save_torch(
            path,
            {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "usage": usage,
                "hits": hits,
                "step": step,
            },
        )

    saved_at = time.monotonic()
    while step < plan.steps:
        if stop():
            save()
            raise Interrupted
        generator = torch.Generator().manual_seed(plan.seed * 1_000_003 + step)
        index = torch.randint(len(data), (plan.batch,), generator=generator)
        image = data.batch(index, device) * 2 - 1
        image = image.contiguous(memory_format=torch.channels_last)
        warm = min(1.0, (step + 1) / plan.warmup)
        decay = 0.5 * (1 + torch.cos(torch.tensor(torch.pi * step / plan.steps)).item())
        for group in optimizer.param_groups:
            group["lr"] = plan.learning_rate * warm * max(decay, 0.02)
        features = model.quant_conv(model.encoder(image))
        canvas, vq_loss, step_hits, looked_up = quantize(model, features, sizes, plan.commitment)
        rebuilt = model.decoder(model.post_quant_conv(canvas))
        l1 = (rebuilt - image).abs().mean()
        loss = l1 + F.mse_loss(rebuilt, image) + vq_loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        total = step_hits.sum(0).float()
        usage.lerp_(total / total.sum(), 0.05)
        hits.lerp_(step_hits.float(), 0.01 if step else 1.0)
        moved = 0
        if step % plan.restart_every == 0 and step < plan.restart_until * plan.steps:
            moved = restart_dead_codes(model, usage, looked_up.detach(), generator)
        if step % 20 == 0:
            perplexity = torch.exp(-(usage * (usage + 1e-12).log()).sum())
            log(
                {
                    "step": step,
                    "l1": l1.item(),
                    "vq": vq_loss.item(),
                    "restarted": moved,
                    "used": (usage > 0.02 / len(usage)).float().mean().item(),
                    "perplexity": perplexity.item(),
                }
            )
        step += 1
        if time.monotonic() - saved_at > save_every_s:
            save()
            saved_at = time.monotonic()
    save()
    return model.eval(), hits
