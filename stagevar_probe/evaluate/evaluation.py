"""Score a model by a suite that anyone can recompute: exact path, presets and profile plans.

Is what was asked there, by kind and overall; the distribution, the distance to the exact path's
pictures, the distance to training pictures, and time: one table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stagevar_runtime.loop.plan import EXACT
from stagevar_runtime.model.protocol import ScaleModel
from stagevar_runtime.model.sampling import Drawn, Noise, Sampling
from stagevar_runtime.profile import Profile

from ..datasets.inputs import HELD_OUT_SEED, Encode, Inputs
from ..intervals import Interval, binomial_interval, mean_interval, paired_loss
from ..measure.figures import Figures
from ..metrics.images import nearest_distance
from ..metrics.protocol import Quality
from ..solve.candidates import CONTROL, cooler
from ..tables import NONE, columns, ranged
from ..validate.rows import (
    LOOKED,
    Row,
    Rows,
    compiled,
    presets_and_plans,
    ranks_of,
    run_rows,
)
from ..validate.run import Batch, per_image
from .suite import Rates, Suite

STRIP = 14  # pictures kept of every row: two of each kind
CEILING = 300  # real pictures that the tokenizer encodes and decodes
UNGUIDED = "no guidance"


@dataclass(frozen=True, kw_only=True)
class SuiteFigures(Figures):
    """Figures of a row, with what the suite says of it: ``passed`` and ``passed_loss`` (overall),
    by ``kinds``, ``beside`` where the suite scores more and, where features were given, the
    distance to the ``nearest`` training picture."""

    passed: Interval
    passed_loss: Interval
    kinds: Mapping[str, Interval]
    beside: Mapping[str, Interval] = field(default_factory=dict)
    nearest: Interval | None = None


@dataclass
class Evaluation:
    """What was found. ``ceiling``: pass rates of real pictures and reconstructions."""

    suite: Suite
    rows: Rows
    figures: dict[str, SuiteFigures]
    ceiling: Rates
    quality: Quality
    pictures: dict[str, Tensor] = field(default_factory=dict)
    prompts: tuple[str, ...] = ()


def suite_inputs(
    suite: Suite, count: int, seed: int, encode: Encode
) -> tuple[Inputs, tuple[str, ...]]:
    """Prompts of the suite with seeds of their own, and the kind of each."""
    asked = suite.ask(count, seed + 2)  # calibration holds out seed 1
    start = 3 * HELD_OUT_SEED + 7919 * seed
    seeds = tuple(start + i for i in range(count))
    prompts = tuple(text for _, text in asked)
    name = f"{suite.name}-suite-{count}"
    return Inputs(name, prompts, seeds, encode), tuple(k for k, _ in asked)


def suite_rows(model: ScaleModel, sampling: Sampling, profile: Profile | None) -> Rows:
    """The exact path, the same without guidance and sampled cooler (what a calibrated plan may gain
    by temperature alone), every preset, every plan of the profile."""
    info, scales = model.info, model.scales()
    rows, left_out = presets_and_plans(info, scales, profile, ranks_of(profile))
    none = 0.0 if info.guidance.startswith("ramp") else 1.0  # the strength that means none
    cool = cooler((), [scale.tokens for scale in scales], sampling.temperature)
    first = [Row(EXACT, EXACT), Row(UNGUIDED, "guidance", guidance=none)]
    first.append(Row(CONTROL, "temperature", cool))
    return compiled([*first, *rows], left_out, info, scales, sampling)


def run_suite(
    model: ScaleModel,
    suite: Suite,
    inputs: Inputs,
    kinds: Sequence[str],
    rows: Rows,
    sampling: Sampling,
    quality: Quality,
    batch: int,
    quiet: bool = False,
) -> Evaluation:
    """Run every row on every prompt.

    ``quality``: the suite's metric, with features and real pictures found for it.
    """
    ran = run_rows(
        model,
        inputs,
        rows,
        sampling,
        quality,
        batch,
        "evaluating",
        kept=STRIP,
        looked=LOOKED,
        quiet=quiet,
    )
    ceiling = tokenizer_ceiling(model, suite, quality, inputs.chunk(0, 1))
    training = None if quality.reference is None else suite.training(quality).float()
    if training is not None and quality.reference is not None:
        nearest = nearest_distance(quality.reference.float(), training)
        ceiling["nearest_real"] = list(mean_interval(nearest))
    figures = {
        name: SuiteFigures(
            **vars(ran.figures[name]),
            **_rates(ran.seen, name, suite, kinds, inputs, quality),
            nearest=None if training is None else _nearest(ran.seen, name, suite, kinds, training),
        )
        for name in rows.plans
    }
    figures |= {name: figures[first] for name, first in rows.same.items()}
    asked = tuple(str(item) for item in inputs.items[:STRIP])
    return Evaluation(suite, rows, figures, ceiling, quality, ran.pictures, asked)


def _rates(
    seen: Sequence[Batch],
    name: str,
    suite: Suite,
    kinds: Sequence[str],
    inputs: Inputs,
    quality: Quality,
) -> dict[str, Any]:
    """Pass rates by kind, and over the kinds that count, with what was lost to the exact path."""
    mine, exact = (per_image(seen, n, "score") for n in (name, EXACT))
    own = {kind.name: np.array([k == kind.name for k in kinds]) for kind in suite.kinds}
    counted = np.any([own[kind.name] for kind in suite.kinds if kind.counted], 0)
    out: dict[str, Any] = {
        "passed": _rate(mine[counted]),
        "passed_loss": paired_loss(exact[counted], mine[counted]),
        "kinds": {kind: _rate(mine[mask]) for kind, mask in own.items() if mask.any()},
    }
    prompts = [str(item) for item in inputs.items]
    for head, score in suite.beside.items():
        features = torch.from_numpy(per_image(seen, name, "features")).float()
        right = score(quality, features, prompts).numpy()
        out.setdefault("beside", {})[head] = _rate(right[counted])
    return out


def _rate(passes: NDArray[Any]) -> Interval:
    return binomial_interval(round(float(passes.sum())), len(passes))


def _nearest(
    seen: Sequence[Batch], name: str, suite: Suite, kinds: Sequence[str], training: Tensor
) -> Interval:
    """Distance to the nearest training picture, of pictures for prompts it was not trained on."""
    held_out = {kind.name for kind in suite.kinds if kind.held_out}
    mask = np.array([kind in held_out for kind in kinds])
    features = torch.from_numpy(per_image(seen, name, "features")[mask]).float()
    return mean_interval(nearest_distance(features, training))


@torch.inference_mode()
def tokenizer_ceiling(
    model: ScaleModel, suite: Suite, quality: Quality, one: Inputs, batch: int = 20
) -> Rates:
    """Pass rates of real pictures as they are, and encoded and decoded by the tokenizer; and what
    else bounds the suite."""
    encodes = model.tokenizer is not None
    real, prompts = suite.real(CEILING, picture_side(model) if encodes else None)
    shown = {"real": real}
    if encodes:
        shown["rebuilt"] = torch.cat([rebuild(model, part, one) for part in real.split(batch)])
    out: Rates = {}
    for name, images in shown.items():
        out[name] = _rate(quality.score(images, prompts, real).numpy())
        for head, score in suite.beside.items():
            out[f"{name} {head}"] = _rate(score(quality, quality.features(images), prompts).numpy())
    return out | suite.bounds(quality)


def picture_side(model: ScaleModel) -> int:
    """Pixels along the side of a picture that a model's own tokenizer encodes."""
    assert model.tokenizer is not None
    return int(model.scales()[-1].height * model.tokenizer.config.downsample)


def rebuild(model: ScaleModel, images: Tensor, one: Inputs) -> Tensor:
    """Images (B, 3, H, W) in [0, 1] encoded and decoded by the model's own tokenizer."""
    scales = model.scales()
    many = replace(one, items=one.items * len(images), seeds=one.seeds * len(images))
    noise = Noise(many.seeds, len(many), model.device)
    state = model.begin(many.condition(model), scales, noise, guided=False)
    assert model.tokenizer is not None
    sizes = [(s.height, s.width) for s in scales]
    for scale, ids in zip(
        scales, model.tokenizer.encode(images.to(model.device), sizes), strict=True
    ):
        model.advance(state, scale, Drawn(ids))
    return model.decode(state).float().cpu()


def as_table(found: Evaluation) -> str:
    """The figures as text: rates with 95 % intervals, times per image."""
    return columns(table(found))


def table(found: Evaluation) -> list[list[str]]:
    """Header and rows as text."""
    exact, suite = found.figures[EXACT], found.suite
    looked = exact.perceptual_name or "1 - SSIM"
    head = ["", "ms", "x", "loop x", suite.passes, "lost", *suite.beside]
    head += [*(kind.short for kind in suite.kinds), found.quality.features.kid, looked, "PSNR"]
    return [head, *(_cells(row, found.figures[row.name], suite) for row in found.rows)]


def _cells(row: Row, f: SuiteFigures, suite: Suite) -> list[str]:
    same, kinds = row.name == EXACT, [kind.name for kind in suite.kinds]
    return [
        row.name,
        *f.speed_cells(),
        ranged(f.passed),
        NONE if same else ranged(f.passed_loss, "+.3f"),
        *(ranged(f.beside[head]) for head in suite.beside),
        *(f"{f.kinds[kind][0]:.2f}" if kind in f.kinds else NONE for kind in kinds),
        ranged((f.kid or 0.0, *f.kid_ci95), ".2f") if f.kid_ci95 else NONE,
        *([NONE, NONE] if same else f.fidelity_cells()),
    ]
