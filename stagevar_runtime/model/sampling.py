"""How token ids are drawn: temperature, top-k, top-p, and where the random numbers come from."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import StagevarError
from ..kernels.pairs import Pairs, draw_pairs
from ..kernels.slots import NONE, Kernels
from .inputs import integer, number, per_scale
from .inputs import seeds as checked_seeds

Call = tuple[tuple[int, ...], Callable[..., Tensor], tuple[int, ...]]  # key, how, shape

_MT_START, _MT_WORDS = 24, 624  # where a CPU generator's state holds its Mersenne twister's
COLDEST = 1e-6  # a temperature: colder ones overflow before they sharpen
MOST_KEPT = 2**31 - 1  # of the logits, by top-k


@dataclass(frozen=True)
class Sampling:
    """Settings of one generation.

    ``guidance`` is the guidance scale in the family's own published sense (VAR: the end of a ramp
    from 0; Infinity: the same at every scale), or one a scale. ``top_k`` 0 and ``top_p`` 0 or 1
    switch them off; ``top_k`` may differ from scale to scale. ``smooth_from``: the first scale
    whose codes are mixed by a Gumbel softmax instead of drawn (None: never; not where guidance was
    dropped). ``guidance_off_from``: the first scale that runs the cond branch alone as published
    (None: never), with ``temperature_off`` (None: as elsewhere).
    """

    guidance: float | tuple[float, ...] = 1.0
    temperature: float = 1.0
    top_k: int | tuple[int, ...] = 0
    top_p: float = 0.0
    smooth_from: int | None = None
    guidance_off_from: int | None = None
    temperature_off: float | None = None

    def __post_init__(self) -> None:
        checked = {
            "guidance": per_scale("guidance", self.guidance, number),
            "temperature": _temperature("temperature", self.temperature),
            "top_k": per_scale("top_k", self.top_k, _count),
            "top_p": number("top_p", self.top_p, 0, 1),
        }
        for name in ("smooth_from", "guidance_off_from"):
            if getattr(self, name) is not None:
                checked[name] = _count(name, getattr(self, name))
        if self.temperature_off is not None:
            checked["temperature_off"] = _temperature("temperature_off", self.temperature_off)
        for name, value in checked.items():
            object.__setattr__(self, name, value)

    def at(self, scale: int, guided: bool = True) -> ScaleSampling:
        """The settings of one scale; ``guided``: guidance was not dropped there.

        Raises:
            StagevarError: ``top_k`` has no value for it.
        """
        top_k = self.top_k
        if isinstance(top_k, tuple):
            if scale >= len(top_k):
                raise StagevarError(f"got {len(top_k)} values of top_k, none for scale {scale}")
            top_k = top_k[scale]
        smooth = guided and self.smooth_from is not None and scale >= self.smooth_from
        return ScaleSampling(top_k, self.top_p, smooth)


@dataclass(frozen=True)
class ScaleSampling:
    """How one scale draws: ``top_k`` and ``top_p`` as in :class:`Sampling`; ``smooth``: codes are
    mixed by a Gumbel softmax instead of drawn."""

    top_k: int = 0
    top_p: float = 0.0
    smooth: bool = False


class Drawn(NamedTuple):
    """What a scale drew: ``ids`` ``(B, n)`` (bits: ``(B, n, bits)``), and ``weights``
    ``(B, n, V)`` over the codes where these are mixed instead."""

    ids: Tensor
    weights: Tensor | None = None


def _temperature(name: str, value: Any) -> float:
    return number(name, value, COLDEST)


def _count(name: str, value: Any) -> int:
    return integer(name, value, 0, MOST_KEPT)


class Noise:
    """Random numbers of one generation, never from the global state.

    ``seed=7``: one generator for the whole batch, drawn from scale after scale as the publishers
    do. ``seed=[7, 8, 9]``: every image has its own, started afresh at each scale, so image i of a
    batch equals image i alone, and two generations that differ in an option draw the same numbers
    for the same token (coupled noise).
    """

    def __init__(self, seed: int | Sequence[int], batch: int, device: torch.device) -> None:
        self.batch, self.device = batch, device
        given = checked_seeds(seed, batch)
        self.own = isinstance(given, list)
        self.seeds = given if isinstance(given, list) else [given + i for i in range(batch)]
        self.shared = seeded(self.seeds[0] if batch else 0, device)
        self.log: list[tuple[Call, Tensor]] | None = None  # what selectors draw, where it is kept
        self.given: Iterator[Tensor] | None = None  # numbers that selectors get instead

    def fork(self) -> Noise:
        """The same numbers from here on, drawn independently."""
        twin = copy.copy(self)
        twin.shared = torch.Generator(self.device)
        twin.shared.set_state(self.shared.get_state())
        return twin

    def derived(self, *key: int) -> list[torch.Generator]:
        """A fresh generator an image for this key (scale, purpose, ...)."""
        return [torch.Generator(self.device).manual_seed(_mix(seed, key)) for seed in self.seeds]

    def source(self, *key: int) -> Source:
        """Where one selector draws from: :meth:`derived` generators for this key."""
        return Source(self, key)

    def again(self, calls: Iterable[Call]) -> Iterator[Tensor]:
        """What selectors would draw, given the calls they made in another generation."""
        sources: dict[tuple[int, ...], Source] = {}
        for key, how, shape in calls:
            if key not in sources:
                sources[key] = self.source(*key)
            yield sources[key].draw(how, shape)

    def multinomial(self, probabilities: Tensor, scale: int) -> Tensor:
        """Draw one index a row of ``(B, n, V)``; returns ``(B, n)``."""
        batch, n, size = probabilities.shape
        if not self.own:
            flat = probabilities.reshape(-1, size)
            return multinomial(flat, self.shared).view(batch, n)
        drawn = [multinomial(p, g) for p, g in zip(probabilities, self.derived(scale), strict=True)]
        return torch.stack(drawn).view(batch, n)

    def clocks(self, batch: int, count: int, scale: int) -> Tensor:
        """What :meth:`multinomial` draws for ``(batch, count, 2)`` probabilities: standard
        exponential numbers."""
        if not self.own:
            clocks = torch.empty(batch * count, 2, device=self.device)
            return clocks.exponential_(generator=self.shared).view(batch, count, 2)
        drawn = [
            torch.empty(count, 2, device=self.device).exponential_(generator=g)
            for g in self.derived(scale)
        ]
        return torch.stack(drawn)

    def exponential(self, like: Tensor, scale: int) -> Tensor:
        """Standard exponential numbers in the shape of ``like`` ``(B, n, V)``."""
        if not self.own:
            return torch.empty_like(like).exponential_(generator=self.shared)
        drawn = [
            torch.empty_like(image).exponential_(generator=g)
            for image, g in zip(like, self.derived(scale, 0), strict=True)
        ]
        return torch.stack(drawn)

    def normal(
        self, scale: int, tokens: int, branches: int = 1, shared_start: bool = False
    ) -> Callable[[int], Tensor]:
        """A source of normal numbers: each call with a width gives ``(B · tokens, width)``.

        It has generators of its own. With one seed it draws as HART's publisher does from a
        generator of this seed: for both branches, though one is used; with ``shared_start`` the
        first call for one.
        """
        if self.own:
            own = self.derived(scale, 0, 1)
            return lambda width: torch.cat(
                [torch.randn(tokens, width, generator=g, device=self.device) for g in own]
            )
        generator = seeded(self.seeds[0], self.device)
        rows, calls = self.batch * tokens, count()

        def drawn(width: int) -> Tensor:
            both = 1 if shared_start and next(calls) == 0 else branches
            return torch.randn(both * rows, width, generator=generator, device=self.device)[:rows]

        return drawn


class Source(list[torch.Generator]):
    """The generators of one selector, one an image, and what it draws from them.

    Numbers can be drawn ahead: a recorded scale reads them from memory of its own.
    """

    def __init__(self, noise: Noise, key: tuple[int, ...]) -> None:
        super().__init__([] if noise.given is not None else noise.derived(*key))
        self.noise, self.key = noise, key

    def draw(self, how: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor:
        """``(B, *shape)`` numbers, by ``torch.rand`` or ``torch.randn``."""
        noise = self.noise
        if noise.given is not None:
            return next(noise.given)
        drawn = torch.stack([how(shape, generator=g, device=noise.device) for g in self])
        if noise.log is not None:
            noise.log.append(((self.key, how, shape), drawn))
        return drawn


def seeded(seed: int, device: torch.device) -> torch.Generator:
    """A generator of its own for every seed below 2**64, as PyTorch seeds it below 2**32.

    PyTorch's generator on a CPU reads 32 bits of a seed. The upper half of a larger one then
    scrambles all of its state, so that no two seeds share their numbers.
    """
    generator = torch.Generator(device)
    if seed < 2**32 or device.type != "cpu":
        return generator.manual_seed(seed & 0xFFFFFFFFFFFFFFFF)
    mixed = _mix(seed, (0,))
    generator.manual_seed(mixed & 0xFFFFFFFF)
    other = np.random.SeedSequence(seed).generate_state(_MT_WORDS).astype(np.int64)
    state = generator.get_state()
    words = state[_MT_START : _MT_START + 8 * _MT_WORDS].view(torch.int64)
    words ^= torch.from_numpy(other)
    return generator.set_state(state)


def multinomial(probabilities: Tensor, generator: torch.Generator) -> Tensor:
    """One index a row of ``(rows, V)``, as ``torch.multinomial`` draws it; returns ``(rows, 1)``.

    On a GPU it checks its input, and the host waits for the answer: there we run the same race of
    exponential clocks without the check. The numbers drawn and the winners are the same.
    """
    if probabilities.device.type == "cpu":
        return torch.multinomial(probabilities, 1, True, generator=generator)
    return multinomial_no_sync(probabilities, generator)


def multinomial_no_sync(probabilities: Tensor, generator: torch.Generator) -> Tensor:
    """The index whose clock ``Exp(1) / p`` rings first, in every row; returns ``(rows, 1)``."""
    clocks = torch.empty_like(probabilities).exponential_(generator=generator)
    return (probabilities / clocks).argmax(-1, keepdim=True)


def _mix(seed: int, key: tuple[int, ...]) -> int:
    """One 63-bit seed from several numbers: near inputs must not give near streams."""
    mixed = seed & 0xFFFFFFFFFFFFFFFF
    for part in (*key, len(key)):  # the splitmix64 finaliser
        mixed = (mixed + 0x9E3779B97F4A7C15 * (part + 1)) & 0xFFFFFFFFFFFFFFFF
        mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        mixed ^= mixed >> 31
    return mixed >> 1


def mask_logits(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Set what top-k and top-p exclude to -inf, as the published samplers do.

    ``logits`` ``(B, n, V)``. Ties with the k-th value stay; top-p removes the least likely tokens
    while their cumulated probability is at most 1 - p. Source: VAR ``models/helpers.py``.
    """
    if 0 < top_k < logits.shape[-1]:
        ascending = logits.topk(top_k, dim=-1, sorted=False).values.sort(dim=-1).values
        least = ascending[..., :1]
        if 0 < top_p < 1:  # only the k best can stay: no sort of the whole vocabulary
            drop = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - top_p
            first = drop.sum(-1, keepdim=True).clamp_max(top_k - 1)
            least = ascending.gather(-1, first)
        return logits.masked_fill(logits < least, -torch.inf)
    if 0 < top_p < 1:
        ascending, order = logits.sort(dim=-1)
        drop = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - top_p
        drop[..., -1] = False
        logits = logits.masked_fill(torch.empty_like(drop).scatter_(-1, order, drop), -torch.inf)
    return logits


def draw(
    logits: Tensor,
    sampling: ScaleSampling,
    noise: Noise,
    scale: int,
    bits: int = 0,
    kernels: Kernels = NONE,
) -> Drawn:
    """Token ids ``(B, n)`` from guided, tempered logits ``(B, n, V)``.

    With ``bits``, logits are ``(B, n, 2 · bits)``, a pair a bit, and ids ``(B, n, bits)`` of 0, 1.
    """
    batch, n = logits.shape[:2]
    if bits and kernels.draw is not None and sampling.top_k != 1:
        clocks = noise.clocks(batch, n * bits, scale)
        return Drawn(draw_pairs(logits, Pairs(top_p=sampling.top_p), clocks, kernels))
    if bits:
        logits = logits.reshape(batch, n * bits, 2)
    masked = mask_logits(logits, sampling.top_k, sampling.top_p)
    ids = noise.multinomial(masked.softmax(-1), scale)
    return Drawn(ids.view(batch, n, bits) if bits else ids)


def mix(logits: Tensor, noise: Noise, scale: int, ratio: float) -> Tensor:
    """Weights ``(B, n, V)`` over the codes: a Gumbel softmax that hardens scale by scale.

    ``ratio`` is how far the generation is, k/(K-1). Source: VAR ``models/var.py``, ``more_smooth``
    (after MaskGIT).
    """
    temperature = max(0.27 * (1 - 0.95 * ratio), 0.005)
    logits = logits * (1 + ratio)
    gumbel = noise.exponential(logits, scale).log().neg()
    return ((logits + gumbel) / temperature).softmax(-1)
