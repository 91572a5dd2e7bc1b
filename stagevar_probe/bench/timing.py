"""Honest speed: contenders side by side in one run, interleaved, with their share of the ceiling.

Every round runs each contender once, in turn (A B A B); the first round is a warm-up that is not
counted, the first three where graphs are recorded. Ratios are medians over rounds of ratios within
a round, so that a machine that slows down for a while slows both sides. The ceiling is a large
matrix product and a large copy, timed between the rounds.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from statistics import median
from typing import Any, Protocol

import torch

from stagevar_runtime.accelerate.modes import Acceleration
from stagevar_runtime.errors import StagevarError, one_line
from stagevar_runtime.loop.engine import Generation, generate
from stagevar_runtime.loop.plan import EXACT, Plan, plan_for
from stagevar_runtime.model.protocol import Conditioning, ScaleModel, ScaleSpec
from stagevar_runtime.model.sampling import Sampling
from stagevar_runtime.profile import PlanStep, Profile, TokenOption
from stagevar_runtime.profile.presets import preset

from ..measure.flops import scale_flops
from ..progress import Meter
from .document import PUBLISHED
from .machine import copy_gb_s, forget_peak, peak_mb, product_tflops, wait
from .published.common import Published
from .published.infinity import PublishedInfinity
from .published.var import PublishedVAR

logger = logging.getLogger("stagevar_probe")

LATE = "balanced-like"
DEFAULT_PLANS = (LATE, "cfg-off", "stagevar", "skip-2")
MAKE_PUBLISHED: dict[str, Callable[[Any], PublishedLoop]] = {
    "var": PublishedVAR,
    "infinity": PublishedInfinity,
}


class PublishedLoop(Protocol):
    """A family's loop as its publishers run it; made before the clock starts."""

    def __call__(self, conditioning: Conditioning, sampling: Sampling, seed: int) -> Published:
        """One batch."""


@dataclass(frozen=True)
class Run:
    """One timed generation. ``text_ms``: from inputs to conditioning.

    ``cpu_ms``: processor time of all threads, which other programs' load hardly changes.
    """

    total_ms: float
    cpu_ms: float
    text_ms: float
    loop_ms: float
    decode_ms: float
    scale_ms: tuple[float, ...]


@dataclass(frozen=True)
class Contender:
    """Something that makes a batch of images, and the plan whose arithmetic it does."""

    make: Callable[[Conditioning], Generation | Published]
    plan: Plan


def late(scales: Sequence[ScaleSpec]) -> list[PlanStep]:
    """Guidance off at the last three scales, 0.3 of the tokens at the last two, all blocks."""
    count = len(scales)
    tokens = TokenOption(keep=0.3, select="deviation", restore="cache", span="all")
    return [
        PlanStep(scale=count - 3, guidance="cond"),
        PlanStep(scale=count - 2, tokens=tokens),
        PlanStep(scale=count - 1, tokens=tokens),
    ]


def plan_named(name: str, model: ScaleModel, sampling: Sampling, profile: Profile | None) -> Plan:
    """A plan of the profile, ``balanced-like``, or a preset.

    Raises:
        ProfileError: none of them has this name.
    """
    info, scales = model.info, model.scales()
    if profile is not None and name in profile.plans:
        steps: Sequence[PlanStep] = profile.plan(name).steps
    else:
        steps = late(scales) if name == LATE else preset(name, info, scales)
    return plan_for(model, steps, sampling)


def contenders(
    model: ScaleModel,
    sampling: Sampling,
    plans: Sequence[str],
    seed: int,
    profile: Profile | None = None,
    fast: Acceleration | None = None,
) -> dict[str, Contender]:
    """``published`` where we wrote that family's loop, ``exact``, then the plans.

    ``fast`` is what was done to ``model``; the published loop has none of it.
    """
    exact = plan_for(model, (), sampling)
    out: dict[str, Contender] = {}
    if model.info.family in MAKE_PUBLISHED:
        loop = MAKE_PUBLISHED[model.info.family](model)
        out[PUBLISHED] = Contender(lambda c: loop(c, sampling, seed), exact)
    named = {EXACT: exact} | {
        name: plan_named(name, model, sampling, profile) for name in plans if name != EXACT
    }
    for name, plan in named.items():
        out[name] = Contender(_engine(model, plan, seed, fast or Acceleration()), plan)
    return out


def _engine(
    model: ScaleModel, plan: Plan, seed: int, fast: Acceleration
) -> Callable[[Conditioning], Generation]:
    def make(conditioning: Conditioning) -> Generation:
        run = partial(generate, model, conditioning, plan, seed=seed, graphs=fast.graphs)
        return fast.attempt(model, run)

    return make


def warm_up_rounds(fast: Acceleration) -> int:
    """Rounds that do not count: graphs are recorded in the first three."""
    return 3 if fast.graphs else 1


def measure(
    model: ScaleModel,
    condition: Callable[[], Conditioning],
    named: Mapping[str, Contender],
    repeats: int,
    tick: Meter,
    decode_flop: float = 0.0,
    fast: Acceleration | None = None,
    seconds: float = math.inf,
) -> dict[str, Any]:
    """Time every contender on one batch; returns what the JSON says about this batch.

    ``decode_flop``: of decoding one image. ``seconds``: no round that is counted begins later,
    but for one. A contender that fails is left out from then on, and the JSON says why.
    """
    fast = fast or Acceleration()
    begun = time.perf_counter()
    warm_up = warm_up_rounds(fast)
    if fast.graphs:  # other batches' memory is free for this one
        fast.graphs.clear()
    seen = {name: _Seen() for name in named}
    products, copies = [], []
    for turn in range(repeats + warm_up):
        if turn > warm_up and time.perf_counter() - begun > seconds:
            break
        rounds = turn + 1 - warm_up
        products.append(product_tflops(model.device, model.dtype))
        copies.append(copy_gb_s(model.device))
        for name, contender in named.items():
            one = seen[name]
            if not one.failed:
                forget_peak(model.device)
                try:
                    run, made = _time(model.device, condition, contender)
                except (RuntimeError, StagevarError) as error:
                    one.failed = one_line(error)
                    logger.warning("%s failed: %s", name, one.failed)
                else:
                    one.add(run, made, peak_mb(model), warm=turn < warm_up)
                    one.description = fast.notes() if name != PUBLISHED else []
            tick()
    ceiling = {"tflops": median(products), "copy_gb_s": median(copies)}
    batch = condition().batch
    out = {"batch": batch, "rounds": rounds, "ceiling": ceiling}
    return out | _summary(model, batch, named, seen, batch * decode_flop, ceiling)


def _summary(
    model: ScaleModel,
    batch: int,
    named: Mapping[str, Contender],
    seen: Mapping[str, _Seen],
    decode: float,
    ceiling: Mapping[str, float],
) -> dict[str, Any]:
    """What was seen of every contender, by name. ``decode``: FLOP of decoding this batch."""
    ran = {name: one.runs for name, one in seen.items() if not one.failed}
    figures = {
        name: _figures(model, batch, named[name].plan, ran, name, decode, ceiling)
        | seen[name].figures()
        for name in ran
    }
    failed = {name: one.failed for name, one in seen.items() if one.failed}
    out: dict[str, Any] = {"runs": figures, "failed": failed}
    if PUBLISHED in ran and EXACT in ran:
        out["same_ids_as_published"] = _agreement(seen[PUBLISHED].ids, seen[EXACT].ids)
    return out


@dataclass
class _Seen:
    """What was seen of one contender."""

    runs: list[Run] = field(default_factory=list)
    warm_up_ms: list[float] = field(default_factory=list)
    peaks: list[float] = field(default_factory=list)
    ids: list[torch.Tensor] = field(default_factory=list)
    cache_mb: float = 0.0
    description: list[str] = field(default_factory=list)
    failed: str = ""

    def add(self, run: Run, made: Generation | Published, peak: float, warm: bool) -> None:
        if warm:
            self.warm_up_ms.append(run.total_ms)
        else:
            self.runs.append(run)
        self.peaks.append(peak)
        self.ids = self.ids or made.ids
        if isinstance(made, Generation):
            self.cache_mb = max(made.cache_bytes, default=0) / 1e6

    def figures(self) -> dict[str, Any]:
        """``peak_memory_mb``: of the first call, before anything is kept for later ones."""
        out: dict[str, Any] = {
            "peak_memory_mb": self.peaks[0],
            "peak_memory_later_mb": max(self.peaks[1:], default=self.peaks[0]),
            "warm_up_ms": self.warm_up_ms,
        }
        if self.cache_mb:
            out["keys_values_mb"] = self.cache_mb
        return out | ({"said": self.description} if self.description else {})


def _agreement(a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]) -> float:
    """Share of equal ids, all scales together."""
    same = sum(int((x == y).sum()) for x, y in zip(a, b, strict=True))
    return same / sum(x.numel() for x in a)


def _time(
    device: torch.device, condition: Callable[[], Conditioning], contender: Contender
) -> tuple[Run, Generation | Published]:
    wait(device)
    begun, cpu = time.perf_counter(), time.process_time()
    conditioning = condition()
    wait(device)
    text = time.perf_counter()
    made = contender.make(conditioning)
    wait(device)
    done = time.perf_counter()
    run = Run(
        total_ms=1000 * (done - begun),
        cpu_ms=1000 * (time.process_time() - cpu),
        text_ms=1000 * (text - begun),
        loop_ms=made.loop_ms,
        decode_ms=made.decode_ms,
        scale_ms=tuple(made.scale_ms),
    )
    return run, made


def _figures(
    model: ScaleModel,
    batch: int,
    plan: Plan,
    runs: Mapping[str, Sequence[Run]],
    name: str,
    decode: float,
    ceiling: Mapping[str, float],
) -> dict[str, Any]:
    own = runs[name]
    flops = [batch * f for f in scale_flops(model.info, plan)]
    scale_ms = [median(values) for values in zip(*(run.scale_ms for run in own), strict=True)]
    out: dict[str, Any] = {
        key: _spread([getattr(run, key) for run in own])
        for key in ("total_ms", "cpu_ms", "text_ms", "loop_ms", "decode_ms")
    }
    out["images_per_s"] = 1000 * batch / out["total_ms"]["median"]
    out["scales"] = [
        {"ms": ms, **_rate(f, ms, ceiling["tflops"])} for f, ms in zip(flops, scale_ms, strict=True)
    ]
    out["loop"] = _rate(sum(flops), out["loop_ms"]["median"], ceiling["tflops"])
    out["decode"] = _rate(decode, out["decode_ms"]["median"], ceiling["tflops"])
    for other in (PUBLISHED, EXACT):
        if other in runs and other != name:
            out[f"vs_{other}"] = {
                part: median(
                    getattr(a, f"{part}_ms") / getattr(b, f"{part}_ms")
                    for a, b in zip(runs[other], own, strict=True)
                )
                for part in ("total", "cpu", "loop", "decode")
            }
    return out


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": median(values), "min": min(values), "max": max(values)}


def _rate(flops: float, ms: float, ceiling_tflops: float) -> dict[str, float]:
    """Work in TFLOP, rate in TFLOP/s, and its share of the measured matrix product."""
    rate = flops / ms / 1e9 if ms else 0.0
    return {"tflop": flops / 1e12, "tflops": rate, "of_ceiling": rate / ceiling_tflops}
