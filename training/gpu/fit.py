"""Trains the transformer on the encoded pictures for the time there is, on any device.

The first seconds find out how large a batch the time allows: every prefix begins with one picture a
step and doubles while :data:`STEPS` steps of twice as many would still fit. What follows from the
speed (warm-up, average) is decided then; the learning rate follows the clock, so that it ends when
time does.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from stagevar_runtime.families.tokenizers.bsq_vae import BSQVAE
from stagevar_runtime.text.words import WordEncoder

from ..scenes.fit import FitPlan, losses_by_scale
from ..scenes.transformer import TextToImage, parameters_by_use, run_block
from .cache import Features
from .clock import Clock
from .muon import Muon
from .precision import Precision
from .settings import BITS, TEXT_LENGTH, Prefix, Size
from .tokenizer import Log

STEPS = 600  # that a run should have at least, for which batches are made smaller
EMOJI_SHARE = 0.5  # of the pictures of a batch, on average
FALL = 0.4  # of the time: the learning rate falls to nothing at the end
PLAN = FitPlan(learning_rate=3e-3, weight_decay=0.05, text_dropout=0.1, wrong_captions=0.15)


def build_model(
    size: Size, vocabulary: Sequence[str], device: str, depth: int | None = None
) -> tuple[TextToImage, BSQVAE]:
    """An untrained transformer with its words, and a tokenizer; ``depth``: if not the size's."""
    torch.manual_seed(1)
    config = size.transformer()
    config = config if depth is None else replace(config, depth=depth)
    words = WordEncoder(vocabulary, TEXT_LENGTH, size.text_width)
    model = TextToImage(config, words, size.sizes)
    return model.to(device).train(), BSQVAE(size.tokenizer()).to(device).eval()


@dataclass(frozen=True)
class Batch:
    """``features`` (B, d, h, w) with the words of captions: ``ids``, ``mask`` (B, T)."""

    features: Tensor
    ids: Tensor
    mask: Tensor

    @classmethod
    def random(cls, size: Size, count: int, device: str) -> Batch:
        """Noise, to compile with."""
        side = size.sides[-1]
        return cls(
            torch.randn(count, BITS, side, side, device=device),
            torch.zeros(count, TEXT_LENGTH, dtype=torch.long, device=device),
            torch.ones(count, TEXT_LENGTH, dtype=torch.bool, device=device),
        )


class Store:
    """Everything to train on, on the device: encoded emoji and scenes, and captions as words."""

    def __init__(self, emoji: Features, scenes: Features, ids: Tensor, mask: Tensor) -> None:
        self.emoji, self.scenes = emoji, scenes
        device = emoji.features.device
        pad = TEXT_LENGTH - ids.shape[1]  # one length, so that shapes do not change
        self.ids = torch.nn.functional.pad(ids, (0, pad)).to(device)
        self.mask = torch.nn.functional.pad(mask, (0, pad)).to(device)

    def batch(self, count: int, wrong: float) -> Batch:
        """``count`` pictures; a share ``wrong`` of them with the caption of another."""
        device = self.ids.device
        kinds, numbers = (self.emoji, self.scenes), []
        is_emoji = torch.rand(count, device=device) < EMOJI_SHARE
        for kind in kinds:
            numbers.append(torch.randint(len(kind.captions), (count,), device=device))
        pairs = zip(kinds, numbers, strict=True)
        features = torch.where(
            is_emoji[:, None, None, None], *(kind.features[i] for kind, i in pairs)
        )
        pairs = zip(kinds, numbers, strict=True)
        captions = torch.where(is_emoji, *(kind.captions[i] for kind, i in pairs))
        swapped = torch.rand(count, device=device) < wrong
        captions = torch.where(swapped, captions.roll(1), captions)
        return Batch(features.float(), self.ids[captions], self.mask[captions])


def batch_losses(
    model: TextToImage, vae: BSQVAE, batch: Batch, prefix: Prefix, whole: bool
) -> Tensor:
    """Cross-entropy of a bit at each scale of a prefix."""
    return losses_by_scale(
        *(model, vae, batch.features, batch.ids, batch.mask),
        plan=replace(PLAN, keep=prefix.keep),
        count=prefix.scales,
        whole=whole or prefix.keep >= 1,
    )


class Training:
    """A model in training. ``spent``: seconds so far, of earlier runs too.

    Attributes:
        model: what is trained.
        average: the same with averaged parameters, which is what ships.
        batches: pictures a step of every prefix.
        curve: a record every few seconds.
    """

    def __init__(
        self,
        size: Size,
        model: TextToImage,
        vae: BSQVAE,
        store: Store,
        device: str,
        precision: Precision,
        log: Log,
    ) -> None:
        self.size, self.model, self.vae, self.store = size, model, vae, store
        self.device, self.precision, self.log = device, precision, log
        self.average = copy.deepcopy(model).eval().requires_grad_(False)
        self.good = copy.deepcopy(model.state_dict())
        hidden, others = parameters_by_use(model)
        self.muon = Muon(hidden, PLAN.weight_decay)
        self.adam = torch.optim.AdamW(others, lr=0.0, betas=(0.9, 0.97), weight_decay=0.0)
        self.step, self.seen, self.spent, self.slower = 0, 0, 0.0, 1.0
        self.since, self.warmup, self.decay = 0, 20, 0.9  # steps of this process
        self.batches = {p.scales: 1 for p in size.prefixes}
        self.fitting = {p.scales: p.batch for p in size.prefixes}  # what memory holds
        self.by_prefix = {p.scales: 1e-6 for p in size.prefixes}
        self.taken = {p.scales: 0 for p in size.prefixes}  # steps
        self.roots = torch.tensor([math.sqrt(h * w) for h, w in size.sizes], device=device)
        self.progress = 0.0

    def whole(self) -> bool:
        """Whether every token of the large scales is run by now."""
        return self.progress >= PLAN.whole_from

    def rate(self) -> float:
        """The learning rate: up, level, and down to nothing at the end."""
        up = min(1.0, (self.since + 1) / self.warmup)
        down = min(1.0, (1 - self.progress) / FALL)
        return PLAN.learning_rate * self.slower * up * max(down, PLAN.final_rate)

    def update(self, prefix: Prefix) -> tuple[Tensor, Tensor]:
        """One step; losses by scale and the norm of the gradient."""
        batch = self.store.batch(self.batches[prefix.scales], PLAN.wrong_captions)
        with self.precision.autocast():
            losses = batch_losses(self.model, self.vae, batch, prefix, self.whole())
        roots = self.roots[: len(losses)]
        self.model.zero_grad(set_to_none=True)
        ((losses * roots).sum() / roots.sum()).backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        rate = self.rate()
        self.muon.step(rate)
        for group in self.adam.param_groups:
            group["lr"] = rate
        self.adam.step()
        weight = 1 - min(self.decay, (1 + self.since) / (10 + self.since))
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.average.parameters()), list(self.model.parameters()), weight
            )
        self.step += 1
        self.since += 1
        self.seen += len(batch.ids)
        return losses.detach(), norm.detach()

    def timed(self, prefix: Prefix, clock: Clock) -> tuple[float, Tensor, Tensor]:
        """Seconds of a step, and what :meth:`update` gives. A batch that does not fit is halved."""
        begin = clock.now
        while True:
            try:
                losses, norm = self.update(prefix)
                self.precision.wait()
                return clock.now - begin, losses, norm
            except torch.OutOfMemoryError:
                if self.batches[prefix.scales] == 1:
                    raise
                self.batches[prefix.scales] //= 2
                self.fitting[prefix.scales] = self.batches[prefix.scales]
                self.log({"batch": self.batches, "why": "the device's memory is full"})
            except Exception as error:
                if self.model.run_block is run_block:
                    raise
                self.log({"compiled": False, "why": repr(error)[:300]})
            self.model.run_block = run_block  # what was compiled is for other shapes, or faulty
            if self.device.startswith("cuda"):
                torch.cuda.empty_cache()

    def measure(self, clock: Clock, end: float) -> None:
        """Find batches that the time allows, and say what speed they give."""
        left, seconds, speeds = end - clock.now, {}, {}
        for prefix in self.size.prefixes:
            until, size = clock.now + 0.05 * left, 0
            spent = self.timed(prefix, clock)[0]
            while self.batches[prefix.scales] > size:
                size = self.batches[prefix.scales]
                spent = self.timed(prefix, clock)[0]
                if clock.now < until:
                    self.grow(prefix, spent, left)
            seconds[prefix.scales] = spent
            speeds[prefix.scales] = {"batch": size, "images_s": round(size / spent, 1)}
        rest = max(0.0, end - clock.now)
        steps = sum(p.share * rest / seconds[p.scales] for p in self.size.prefixes)
        self.warmup = round(min(200, max(10, 0.03 * steps)))
        self.decay = 1 - 1 / max(10.0, 0.03 * steps)
        self.log(
            {
                "measured": speeds,
                "steps_expected": round(steps),
                "warmup": self.warmup,
                "decay": round(self.decay, 4),
            }
        )

    def grow(self, prefix: Prefix, seconds: float, left: float) -> None:
        """Double the batch of a prefix if :data:`STEPS` steps of twice the seconds fit."""
        batch = self.batches[prefix.scales]
        if 2 * seconds * STEPS < left and batch < self.fitting[prefix.scales]:
            self.batches[prefix.scales] = min(2 * batch, self.fitting[prefix.scales])

    def due(self) -> Prefix:
        """The prefix that has had least of its share of the time."""
        return min(self.size.prefixes, key=lambda p: self.by_prefix[p.scales] / p.share)

    def steps(self, clock: Clock, end: float) -> Iterator[None]:
        """Train until the clock shows ``end`` seconds; yields between steps."""
        begun, before = clock.now, self.spent
        self.measure(clock, end)
        told = -1.0
        while (now := clock.now) < end:
            self.spent = before + now - begun
            self.progress = self.spent / (before + end - begun)
            prefix = self.due()
            seconds, losses, norm = self.timed(prefix, clock)
            self.by_prefix[prefix.scales] += seconds
            self.taken[prefix.scales] += 1
            self.grow(prefix, seconds, end - begun)
            if clock.now - told > 2:
                told = clock.now
                self.tell(prefix, losses, norm, seconds)
            yield
        self.spent = before + clock.now - begun

    def tell(self, prefix: Prefix, losses: Tensor, norm: Tensor, seconds: float) -> None:
        """Log a step; go back to what was last right if it is no number any more."""
        values, size = losses.tolist(), norm.item()
        if not all(map(math.isfinite, (*values, size))):
            self.slower *= 0.5
            self.restore(self.good)
            self.log({"step": self.step, "why": "no number: back, at half the learning rate"})
            return
        self.log(
            {
                "step": self.step,
                "images": self.seen,
                "progress": round(self.progress, 4),
                "scales": prefix.scales,
                "loss": round(sum(values) / len(values), 4),
                "by_scale": [round(value, 4) for value in values],
                "norm": round(size, 3),
                "images_s": round(self.batches[prefix.scales] / seconds, 1),
            }
        )

    def keep(self) -> None:
        """Remember the parameters as right, if they are."""
        state = self.model.state_dict()
        if all(bool(t.isfinite().all()) for t in state.values() if t.is_floating_point()):
            self.good = copy.deepcopy(state)

    def restore(self, state: dict[str, Tensor]) -> None:
        """Put parameters into the model and its average, and forget the momentum."""
        self.model.load_state_dict(state)
        self.average.load_state_dict(state)
        self.muon.forget()
        self.adam.state.clear()
        self.since = 0
