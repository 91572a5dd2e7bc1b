"""Trains the transformer on stored tokens, within a budget of time or of steps."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from stagevar_runtime.families.tokenizers.vqvae import VQVAE

from .state import Interrupted, load_torch, never, save_torch
from .tokens import Sizes, teacher_inputs
from .transformer import Transformer, TransformerConfig, scale_slices


@dataclass(frozen=True)
class FitPlan:
    """Hyper-parameters of the transformer's training.

    With ``steps`` the schedule follows steps and is reproducible; without, it follows the time
    spent training out of ``minutes``.
    """

    minutes: float = 60.0
    steps: int | None = None
    batch: int = 16
    learning_rate: float = 1.2e-3
    warmup: int = 150
    weight_decay: float = 0.05
    ema: float = 0.998
    final_rate: float = 0.01
    seed: int = 2


class Average:
    """Exponential moving average of a module's parameters; young averages forget faster."""

    def __init__(self, model: torch.nn.Module, decay: float) -> None:
        self.decay = decay
        self.values = {name: p.detach().clone() for name, p in model.named_parameters()}

    def update(self, model: torch.nn.Module, step: int) -> None:
        """Move towards the current parameters."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        new = [p.detach() for _, p in model.named_parameters()]
        torch._foreach_lerp_(list(self.values.values()), new, weight)

    def state_dict(self, model: torch.nn.Module) -> dict[str, Tensor]:
        """The model's state with averaged parameters."""
        return {**model.state_dict(), **self.values}


def _groups(model: Transformer, decay: float) -> list[dict[str, object]]:
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "emb" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "emb" in n]
    return [
        {"params": matrices, "weight_decay": decay},
        {"params": others, "weight_decay": 0.0},
    ]


def train_transformer(
    config: TransformerConfig,
    tokenizer: VQVAE,
    tokens: Tensor,
    labels: Tensor,
    sizes: Sizes,
    plan: FitPlan,
    path: Path,
    device: str,
    log: Callable[[dict[str, object]], None],
    on_save: Callable[[dict[str, Tensor], int], None] | None = None,
    save_every_s: float = 300.0,
    stop: Callable[[], bool] = never,
) -> dict[str, Tensor]:
    """Train, or resume from ``path``.

    Args:
        config: architecture.
        tokenizer: turns tokens into inputs.
        tokens: (N, L) int16.
        labels: (N,) int64.
        sizes: (h, w) of every scale.
        plan: hyper-parameters.
        path: file of the resumable state.
        device: torch device.
        log: receives a record now and then.
        on_save: receives the averaged state and the step at every checkpoint.
        save_every_s: seconds between checkpoints.

    Returns:
        the state dict with averaged parameters.
    """
    torch.manual_seed(plan.seed)
    model = Transformer(config).to(device).train()
    average = Average(model, plan.ema)
    optimizer = torch.optim.AdamW(_groups(model, plan.weight_decay), lr=0.0, betas=(0.9, 0.97))
    slices = scale_slices(config.sides)
    step, spent = 0, 0.0
    if (saved := load_torch(path)) is not None:
        model.load_state_dict(saved["model"])
        average.values = {n: t.to(device) for n, t in saved["average"].items()}
        optimizer.load_state_dict(saved["optimizer"])
        step, spent = saved["step"], saved["spent"]

    def save() -> None:
        state = {
            "model": model.state_dict(),
            "average": average.values,
            "optimizer": optimizer.state_dict(),
            "step": step,
            "spent": spent,
        }
        save_torch(path, state)

    def progress() -> float:
        return step / plan.steps if plan.steps else spent / (plan.minutes * 60)

    since_save, mark = 0.0, time.monotonic()
    per_epoch = max(1, len(tokens) // plan.batch)
    order, order_epoch = torch.empty(0, dtype=torch.long), -1
    while progress() < 1:
        if stop():
            save()
            raise Interrupted
        epoch, position = divmod(step, per_epoch)
        if epoch != order_epoch:
            shuffle = torch.Generator().manual_seed(plan.seed + epoch)
            order, order_epoch = torch.randperm(len(tokens), generator=shuffle), epoch
        index = order[position * plan.batch : (position + 1) * plan.batch]
        ids = tokens[index].long().to(device)
        torch.manual_seed(plan.seed * 1_000_003 + step)  # label dropout, the same on resuming
        logits = model(labels[index].to(device), teacher_inputs(tokenizer, ids, sizes))
        loss = F.cross_entropy(logits.flatten(0, 1), ids.flatten())
        decay = 0.5 * (1 + math.cos(math.pi * progress()))
        rate = plan.learning_rate * max(decay, plan.final_rate)
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / plan.warmup)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 2.0)
        optimizer.step()
        average.update(model, step)
        now = time.monotonic()
        spent, since_save, mark = spent + now - mark, since_save + now - mark, now
        if step % 50 == 0:
            with torch.no_grad():
                losses = F.cross_entropy(logits.transpose(1, 2), ids, reduction="none").mean(0)
            log(
                {
                    "step": step,
                    "images": (step + 1) * plan.batch,
                    "minutes": round(spent / 60, 2),
                    "loss": loss.item(),
                    "norm": norm.item(),
                    "scales": [round(losses[s].mean().item(), 4) for s in slices],
                }
            )
        step += 1
        if since_save > save_every_s:
            save()
            since_save = 0.0
            if on_save is not None:
                on_save(average.state_dict(model), step)
            mark = time.monotonic()
    save()
    return average.state_dict(model)
