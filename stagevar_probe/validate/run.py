"""Run plans on held-out inputs beside the exact path: loss, distribution, fidelity, time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from stagevar_runtime.loop.engine import Generation, generate
from stagevar_runtime.loop.plan import EXACT, Plan
from stagevar_runtime.model.protocol import ScaleModel
from stagevar_runtime.model.sampling import Sampling

from ..datasets.inputs import Inputs
from ..intervals import Interval, bootstrap_statistic, mean_interval, paired_loss
from ..measure.figures import Figures
from ..measure.flops import plan_flops
from ..metrics.images import kid_interval, kid_loss, psnr, ssim
from ..metrics.protocol import Quality

PER_IMAGE = ("score", "smooth", "psnr", "ssim")


@dataclass(frozen=True)
class Observed:
    """What was seen of one batch drawn by one plan: a value (or a row of features) for each image,
    and milliseconds of the whole batch. ``beside``: scores of the metrics beside the first."""

    score: list[float]
    smooth: list[float]
    features: list[list[float]]
    psnr: list[float]
    ssim: list[float]
    transformer: float
    loop: float
    decode: float
    scales: list[float]
    perceptual: list[float] | None = None
    beside: dict[str, list[float]] = field(default_factory=dict)


Batch = dict[str, Observed]
"""What was seen of one batch, by plan."""
Tick = Callable[[int], None]


def validate(
    model: ScaleModel,
    inputs: Inputs,
    plans: Mapping[str, Plan],
    sampling: Sampling,
    quality: Quality,
    batch: int,
    tick: Tick = lambda images: None,
) -> dict[str, Figures]:
    """Figures of every plan, the plan named ``exact`` being what the others are compared with.

    Batches are interleaved (exact, plan, plan, exact, ...) so that times compare; the first batch
    is run once more, uncounted, to warm up. Intervals are 95 %; see :func:`summarise`.
    """
    warm_up(model, inputs.chunk(0, batch), plans, sampling)
    seen = []
    for begin in range(0, len(inputs), batch):
        part = inputs.chunk(begin, batch)
        seen.append(observe_batch(model, part, plans, sampling, quality))
        tick(len(part))
    return summarise(model, plans, seen, quality)


def warm_up(
    model: ScaleModel, first: Inputs, plans: Mapping[str, Plan], sampling: Sampling
) -> None:
    """Run a batch by every plan, uncounted."""
    for plan in plans.values():
        generate(model, first.condition(model), plan, seed=list(first.seeds))


def forecast(
    model: ScaleModel, inputs: Inputs, plans: Mapping[str, Plan], sampling: Sampling, batch: int
) -> tuple[float, float, Generation]:
    """Work of all plans in generations (loop FLOPs) per image, seconds, and the exact batch that
    was timed, the second of two."""
    first, exact = inputs.chunk(0, batch), plans[EXACT]
    made = [
        generate(model, first.condition(model), exact, seed=list(first.seeds)) for _ in range(2)
    ][1]
    relative = sum(plan_flops(model.info, plan) for plan in plans.values())
    relative /= plan_flops(model.info, exact)
    batches = 1 + len(inputs) / batch  # one to warm up
    seconds = (made.loop_ms * relative + made.decode_ms * len(plans)) * batches / 1000
    return relative, seconds, made


def observe_batch(
    model: ScaleModel,
    part: Inputs,
    plans: Mapping[str, Plan],
    sampling: Sampling,
    quality: Quality,
    visit: Callable[[str, Tensor], None] | None = None,
    perceptual: bool = False,
) -> Batch:
    """Generate one batch by every plan, exact first: scores, features and times of each.

    ``visit(name, images)`` sees the pictures, which are not kept. ``perceptual``: measure that
    distance to exact too.
    """
    conditioning = part.condition(model)
    exact: Tensor | None = None
    seen: Batch = {}
    for name in sorted(plans, key=lambda n: n != EXACT):
        made = generate(model, conditioning, plans[name], seed=list(part.seeds))
        images = made.images.float().cpu()
        exact = images if exact is None else exact
        if visit:
            visit(name, images)
        seen[name] = Observed(
            score=quality.score(images, part.items, exact).tolist(),
            smooth=quality.smooth(images, part.items, exact).tolist(),
            features=[] if quality.reference is None else quality.features(images).tolist(),
            psnr=psnr(images, exact).clamp_max(99.0).tolist(),
            ssim=ssim(images, exact).tolist(),
            transformer=made.transformer_ms,
            loop=made.loop_ms,
            decode=made.decode_ms,
            scales=list(made.scale_ms),
            perceptual=quality.perceptual(images, exact).tolist() if perceptual else None,
            beside={
                other.name: other.score(images, part.items, exact).tolist()
                for other in quality.others
            },
        )
    return seen


def dump_batch(batch: Batch) -> dict[str, Any]:
    """JSON-ready."""
    return {name: asdict(seen) for name, seen in batch.items()}


def parse_batch(data: Mapping[str, Any]) -> Batch:
    """The inverse of :func:`dump_batch`."""
    return {name: Observed(**seen) for name, seen in data.items()}


def per_image(seen: Sequence[Batch], name: str, key: str) -> NDArray[np.float64]:
    """One value (or row of features) per image of a plan, batches that have it in order."""
    own = [getattr(batch[name], key) for batch in seen]
    parts = [np.asarray(values, dtype=np.float64) for values in own if values is not None]
    return np.concatenate(parts)


def summarise(
    model: ScaleModel, plans: Mapping[str, Plan], seen: Sequence[Batch], quality: Quality
) -> dict[str, Figures]:
    """Figures of every plan from what was seen of all batches; times from the full ones."""
    return {name: _figures(model, name, plans[name], seen, quality) for name in plans}


def _figures(
    model: ScaleModel, name: str, plan: Plan, seen: Sequence[Batch], quality: Quality
) -> Figures:
    own = {key: per_image(seen, name, key) for key in PER_IMAGE}
    exact = {key: per_image(seen, EXACT, key) for key in PER_IMAGE}
    size = len(seen[0][EXACT].score)
    full = [batch for batch in seen if len(batch[EXACT].score) == size]
    mine, theirs = _times(full, name), _times(full, EXACT)
    both = np.concatenate([mine, theirs], 1)  # loop, decode of the plan, then of exact

    def interval(function: Callable[[NDArray[np.float64]], float]) -> Interval:
        return bootstrap_statistic(both, function, resamples=500)

    loop, decode = (float(x) for x in np.median(mine, 0))
    exact_loop, exact_decode = (float(x) for x in np.median(theirs, 0))
    out: dict[str, Any] = {}
    if quality.reference is not None:
        features, others = (per_image(seen, n, "features") for n in (name, EXACT))
        mean, *ends = (1000 * x for x in kid_interval(features, quality.reference))
        out |= {"kid": mean, "kid_ci95": tuple(ends), "kid_name": quality.features.kid}
        lost = kid_loss(quality.reference, others, features)
        out["kid_loss"] = Interval(*(1000 * x for x in lost))
    if seen[0][name].perceptual is not None:
        out["perceptual"] = mean_interval(per_image(seen, name, "perceptual"))
        out["perceptual_name"] = quality.perceptual.name
    return Figures(
        metric=quality.name,
        images=len(own["score"]),
        batch=size,
        score=mean_interval(own["score"]),
        loss=paired_loss(exact["score"], own["score"]),
        smooth_loss=paired_loss(exact["smooth"], own["smooth"]),
        psnr=mean_interval(own["psnr"]),
        ssim=mean_interval(own["ssim"]),
        transformer_ms=median(b[name].transformer for b in full),
        exact_transformer_ms=median(b[EXACT].transformer for b in full),
        loop_ms=loop,
        decode_ms=decode,
        total_ms=loop + decode,
        exact_loop_ms=exact_loop,
        exact_total_ms=exact_loop + exact_decode,
        loop_ci95=interval(lambda x: _middle(x, 0))[1:],
        total_ci95=interval(lambda x: _middle(x, 0) + _middle(x, 1))[1:],
        speedup_loop=interval(lambda x: _middle(x, 2) / max(_middle(x, 0), 1e-9)),
        speedup_total=interval(
            lambda x: (_middle(x, 2) + _middle(x, 3)) / (_middle(x, 0) + _middle(x, 1))
        ),
        scale_ms=tuple(
            median(values) for values in zip(*(b[name].scales for b in full), strict=True)
        ),
        flops=plan_flops(model.info, plan),
        **out,
    )


def _times(batches: Sequence[Batch], name: str) -> NDArray[np.float64]:
    return np.array([[b[name].loop, b[name].decode] for b in batches])


def _middle(values: NDArray[np.float64], column: int) -> float:
    return float(np.median(values[:, column]))
