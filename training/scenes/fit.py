"""Trains the text-to-image transformer on stored features, within a budget of time.

Several processes (torchrun) share every batch and average their gradients.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from stagevar_runtime.families.tokenizers.bsq_vae import BSQVAE

from ..fit import Average
from ..state import Interrupted, load_torch, never, save_torch
from .transformer import (
    LARGE,
    TextToImage,
    importance,
    kept_lengths,
    parameters_by_use,
    some_tokens,
    teacher,
)


def _agreed(values: list[float], device: str) -> list[float]:
    """The first process's values."""
    if not dist.is_initialized():
        return values
    shared = torch.tensor(values, dtype=torch.float64, device=device)
    dist.broadcast(shared, 0)
    return shared.tolist()


def _average_gradients(parameters: Sequence[torch.nn.Parameter], world: int) -> None:
    if world == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    flat /= world
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient))


def _optimizers(model: TextToImage, decay: float) -> list[torch.optim.Optimizer]:
    """Muon for matrices between hidden features, AdamW for the rest, at one learning rate."""
    hidden, others = parameters_by_use(model)
    return [
        torch.optim.Muon(hidden, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, betas=(0.9, 0.97), weight_decay=0.0),
    ]


@dataclass(frozen=True)
class FitPlan:
    """Hyper-parameters.

    ``prefixes``: (scales used, images in a batch, share of the time). ``flips``: a picture's bits
    are flipped with a probability up to this. ``keep``: share of the tokens of a large scale that
    are trained on, until ``whole_from`` of the time. ``wrong_captions``: share of the pictures that
    are shown with another's caption, as in data from the web: what makes guidance matter where the
    content is decided, and the model follow what is drawn already later on.
    """

    minutes: float = 60.0
    prefixes: tuple[tuple[int, int, float], ...] = (
        (5, 64, 0.1),
        (7, 32, 0.2),
        (10, 16, 0.7),
    )
    learning_rate: float = 3e-3
    warmup: int = 100
    weight_decay: float = 0.05
    text_dropout: float = 0.1
    wrong_captions: float = 0.15
    flips: float = 0.2
    keep: float = 0.45
    whole_from: float = 0.75
    ema: float = 0.998
    final_rate: float = 0.01
    seed: int = 2
    log_every: int = 50  # steps


def losses_by_scale(
    model: TextToImage,
    tokenizer: BSQVAE,
    features: Tensor,
    ids: Tensor,
    mask: Tensor,
    plan: FitPlan,
    count: int,
    whole: bool,
) -> Tensor:
    """Cross-entropy of a bit at each of the first ``count`` scales, by what tokens count.

    Args:
        features: (B, d, H, W) of the encoder.
        ids, mask: (B, T) of the captions.
        whole: run every token of the large scales, too.
    """
    batch, sizes, device = len(features), model.sizes[:count], features.device
    lengths = [h * w for h, w in sizes]
    flips = torch.rand(batch, device=device) * plan.flips
    inputs, target = teacher(tokenizer, features, sizes, count, flips)
    weights, kept = importance(features, sizes), None
    if not whole and max(lengths) >= LARGE:
        kept = some_tokens(weights, lengths, plan.keep)
        target = target.gather(1, kept[..., None].expand(-1, -1, target.shape[-1]))
        weights = weights.gather(1, kept)
        weights[:, sum(n for n in lengths if n < LARGE) :] = 1.0  # drawn by it already
        lengths = kept_lengths(lengths, plan.keep)
    dropped = torch.rand(batch, device=device) < plan.text_dropout
    logits = model(ids, mask, dropped, inputs, kept, lengths).float()
    losses = F.cross_entropy(logits.flatten(0, 2), target.flatten(), reduction="none")
    losses = losses.view(target.shape).mean(2).mul(weights).mean(0)
    return torch.stack([part.mean() for part in losses.split(lengths)])


class Learner:
    """A model in training: what a resumable state holds, and one step.

    ``by_prefix``: seconds spent on every prefix of the plan.
    """

    def __init__(self, model: TextToImage, plan: FitPlan, path: Path, device: str) -> None:
        self.model, self.plan, self.path = model.to(device).train(), plan, path
        self.average = Average(model, plan.ema)
        self.optimizers = _optimizers(model, plan.weight_decay)
        self.step, self.spent, self.seen = 0, 0.0, 0
        self.by_prefix = {count: 1e-6 for count, _, _ in plan.prefixes}
        if (saved := load_torch(path)) is None:
            return
        model.load_state_dict(saved["model"])
        self.average.values = {n: t.to(device) for n, t in saved["average"].items()}
        for optimizer, state in zip(self.optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.step, self.spent, self.seen = saved["step"], saved["spent"], saved["seen"]
        self.by_prefix = saved["by_prefix"]

    def save(self) -> None:
        """Write the state to ``path``."""
        state = {
            "model": self.model.state_dict(),
            "average": self.average.values,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "spent": self.spent,
            "seen": self.seen,
            "by_prefix": self.by_prefix,
        }
        save_torch(self.path, state)

    def averaged(self) -> dict[str, Tensor]:
        """The state dict with averaged parameters."""
        return self.average.state_dict(self.model)

    def due(self) -> int:
        """The prefix that has had least of its share of the time."""
        return min(self.plan.prefixes, key=lambda p: self.by_prefix[p[0]] / p[2])[0]

    def update(self, loss: Tensor, progress: float, world: int) -> float:
        """One step down ``loss`` at ``progress`` of the budget; the norm of the gradient."""
        rate = max(0.5 * (1 + math.cos(math.pi * progress)), self.plan.final_rate)
        rate *= self.plan.learning_rate * min(1.0, (self.step + 1) / self.plan.warmup)
        self.model.zero_grad(set_to_none=True)
        loss.backward()
        _average_gradients(list(self.model.parameters()), world)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
        self.average.update(self.model, self.step)
        return norm.item()

    def count(self, prefix: int, images: int, seconds: float) -> None:
        """Book a step of ``images`` on the first ``prefix`` scales."""
        self.by_prefix[prefix] += seconds
        self.spent += seconds
        self.seen += images
        self.step += 1


def fit(
    model: TextToImage,
    tokenizer: BSQVAE,
    features: Tensor,
    captions: Sequence[str],
    plan: FitPlan,
    path: Path,
    device: str,
    log: Callable[[dict[str, object]], None],
    on_save: Callable[[dict[str, Tensor], int], None] | None = None,
    save_every_s: float = 300.0,
    stop: Callable[[], bool] = never,
) -> dict[str, Tensor]:
    """Train, or resume from ``path``; the state dict with averaged parameters.

    Args:
        features: (N, d, H, W) in half precision, with ``captions``.
        on_save: receives the averaged state and the step at every checkpoint.
    """
    learner = Learner(model, plan, path, device)
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    ids, mask = (t.to(device) for t in model.words.numbered(captions))
    roots = torch.tensor([math.sqrt(h * w) for h, w in model.sizes], device=device)
    since_save, mark = 0.0, time.monotonic()
    while True:
        wish, learner.spent, asked = _agreed([learner.due(), learner.spent, stop()], device)
        if (progress := learner.spent / (plan.minutes * 60)) >= 1:
            break
        if asked:
            if rank == 0:
                learner.save()
            raise Interrupted
        count, batch = next((c, b // world) for c, b, _ in plan.prefixes if c == wish)
        torch.manual_seed((plan.seed * 1_000_003 + learner.step) * world + rank)
        index, others = torch.randint(len(features), (2, batch))
        texts = torch.where(torch.rand(batch) < plan.wrong_captions, others, index)
        longest = int(mask[texts].sum(1).max())
        by_scale = losses_by_scale(
            *(model, tokenizer, features[index].to(device).float()),
            *(ids[texts, :longest], mask[texts, :longest], plan, count),
            whole=progress >= plan.whole_from,
        )
        loss = (by_scale * roots[:count]).sum() / roots[:count].sum()
        norm = learner.update(loss, progress, world)
        now = time.monotonic()
        step, seconds, mark = learner.step, now - mark, now
        learner.count(count, batch * world, seconds)
        since_save += seconds
        if step % plan.log_every == 0 and rank == 0:
            log(
                {
                    "step": step,
                    "images": learner.seen,
                    "minutes": round(learner.spent / 60, 2),
                    "loss": round(loss.item(), 4),
                    "norm": round(norm, 3),
                    "scales": [round(value, 4) for value in by_scale.tolist()],
                }
            )
        if since_save > save_every_s and rank == 0:
            learner.save()
            since_save = 0.0
            if on_save is not None:
                on_save(learner.averaged(), learner.step)
            mark = time.monotonic()
    if rank == 0:
        learner.save()
    return learner.averaged()
