"""Score a model by a suite that anyone can recompute: exact path, presets and profile plans.

GenEval's question (is what was asked there?) by kind and overall, the distribution, the distance
to the exact path's pictures, the distance to training pictures, and time: one table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from stagevar_runtime.families.base import ScaleModel
from stagevar_runtime.profile import Profile
from stagevar_runtime.sampling import Noise, Sampling

from .contest import EXACT, Entry, Lineup, lineup, presets_and_plans
from .inputs import HELD_OUT_SEED, Encode, Inputs
from .metrics.images import nearest_distance
from .metrics.quality import Quality
from .progress import meter
from .scenes import KINDS, passed, suite
from .statistics import Interval, binomial_interval, mean_interval, paired_loss
from .validate import Batch, observe_batch, per_image, summarise, warm_up

LOOKED = 128  # images whose perceptual distance to exact is measured: it is slow
STRIP = 14  # pictures kept of every row: two of each kind
TRAINING = 2000  # training pictures among which the nearest is looked for
CEILING = 300  # rendered pictures that the tokenizer encodes and decodes
UNGUIDED = "no guidance"
SUITES = ("scenes",)


@dataclass
class Evaluation:
    """What was found. ``figures`` as of :func:`~stagevar_probe.validate.summarise`, with
    ``passed`` and ``passed_loss`` (overall), ``kinds`` and, where features were given,
    ``nearest`` training picture. ``ceiling``: pass rates of real pictures and reconstructions."""

    lineup: Lineup
    figures: dict[str, dict[str, Any]]
    ceiling: dict[str, list[float]]
    quality: Quality
    strips: dict[str, Tensor] = field(default_factory=dict)
    prompts: tuple[str, ...] = ()


def suite_inputs(count: int, seed: int, encode: Encode) -> tuple[Inputs, tuple[str, ...]]:
    """Prompts of the suite with seeds of their own, and the kind of each."""
    asked = suite.suite_prompts(count, seed + 2)  # calibration holds out seed 1
    start = 3 * HELD_OUT_SEED + 7919 * seed
    seeds = tuple(start + i for i in range(count))
    prompts = tuple(text for _, text in asked)
    return Inputs(f"scenes-suite-{count}", prompts, seeds, encode), tuple(k for k, _ in asked)


def evaluation_lineup(
    model: ScaleModel, sampling: Sampling, profile: Profile | None, tile: int = 1
) -> Lineup:
    """The exact path, the same without guidance, every preset, every plan of the profile."""
    info, scales = model.info, model.scales()
    measured = profile.measurements if profile else ()
    ranks = {m.scale: m.rank_pca for m in measured if m.rank_pca} or None
    entries, left_out = presets_and_plans(info, scales, profile, ranks)
    none = 0.0 if info.guidance.startswith("ramp") else 1.0  # the strength that means none
    first = [Entry(EXACT, EXACT), Entry(UNGUIDED, "guidance", guidance=none)]
    return lineup([*first, *entries], left_out, info, scales, sampling, tile)


def evaluate(
    model: ScaleModel,
    inputs: Inputs,
    kinds: Sequence[str],
    made: Lineup,
    sampling: Sampling,
    quality: Quality,
    batch: int,
    quiet: bool = False,
) -> Evaluation:
    """Run every row on every prompt: same seeds, coupled noise, interleaved batches."""
    plans = made.plans
    warm_up(model, inputs.chunk(0, batch), plans, sampling)
    strips: dict[str, list[Tensor]] = {name: [] for name in plans}

    def visit(name: str, images: Tensor) -> None:
        if sum(map(len, strips[name])) < STRIP:
            strips[name].append(images)

    seen: list[Batch] = []
    with meter("evaluating", len(inputs), quiet) as tick:
        for begin in range(0, len(inputs), batch):
            part = inputs.chunk(begin, batch)
            near = begin < LOOKED
            seen.append(observe_batch(model, part, plans, sampling, quality, visit, near))
            tick(len(part))
    figures = summarise(model, plans, seen, quality)
    training = None
    if quality.reference is not None:
        parts = suite.training_pictures(TRAINING).split(100)
        training = torch.cat([quality.features(part) for part in parts])
    for name in plans:
        figures[name] |= _by_kind(seen, name, kinds)
        if training is not None:
            features = torch.from_numpy(per_image(seen, name, "features")).float()
            figures[name]["nearest"] = list(mean_interval(nearest_distance(features, training)))
    pictures = {name: torch.cat(kept)[:STRIP] for name, kept in strips.items()}
    for name, first in made.same.items():
        figures[name], pictures[name] = figures[first], pictures[first]
    ceiling = tokenizer_ceiling(model, inputs.chunk(0, 1))
    if training is not None and quality.reference is not None:
        nearest = nearest_distance(quality.reference.float(), training.float())
        ceiling["nearest_real"] = list(mean_interval(nearest))
    asked = tuple(str(item) for item in inputs.items[:STRIP])
    return Evaluation(made, figures, ceiling, quality, pictures, asked)


def _by_kind(seen: Sequence[Batch], name: str, kinds: Sequence[str]) -> dict[str, Any]:
    """Pass rates by kind, and over GenEval's six, with what was lost to the exact path."""
    mine, exact = (per_image(seen, n, "score") for n in (name, EXACT))
    six = torch.tensor([kind in KINDS for kind in kinds]).numpy()
    rates: dict[str, list[float]] = {}
    for kind in suite.suite_kinds():
        own = torch.tensor([k == kind for k in kinds]).numpy()
        if own.any():
            rates[kind] = list(binomial_interval(round(mine[own].sum()), int(own.sum())))
    lost: Interval = paired_loss(exact[six], mine[six])
    return {
        "passed": list(binomial_interval(round(mine[six].sum()), int(six.sum()))),
        "passed_loss": list(lost),
        "kinds": rates,
    }


@torch.inference_mode()
def tokenizer_ceiling(model: ScaleModel, one: Inputs, batch: int = 20) -> dict[str, list[float]]:
    """Pass rates of rendered pictures as they are, and encoded and decoded by the tokenizer."""
    prompts = [text for _, text in suite.suite_prompts(CEILING, seed=0)]
    real = suite.real_pictures(prompts, seed=1)
    out = {"real": list(_rate(passed(real, prompts)))}
    tokenizer: Any = getattr(model, "tokenizer", None)
    if hasattr(tokenizer, "encode"):
        rebuilt = [rebuild(model, part, one) for part in real.split(batch)]
        out["rebuilt"] = list(_rate(passed(torch.cat(rebuilt), prompts)))
    return out


def _rate(passes: Sequence[bool]) -> Interval:
    return binomial_interval(sum(passes), len(passes))


def rebuild(model: ScaleModel, images: Tensor, one: Inputs) -> Tensor:
    """Images (B, 3, H, W) in [0, 1] encoded and decoded by the model's own tokenizer."""
    scales = model.scales()
    many = replace(one, items=one.items * len(images), seeds=one.seeds * len(images))
    noise = Noise(many.seeds, len(many), model.device)
    state = model.begin(many.condition(model), scales, noise, guided=False)
    tokenizer: Any = model.tokenizer  # type: ignore[attr-defined]
    sizes = [(s.height, s.width) for s in scales]
    for scale, ids in zip(scales, tokenizer.encode(images.to(model.device), sizes), strict=True):
        model.advance(state, scale, ids)
    return model.decode(state).float().cpu()


SHORT = {
    "single_object": "one",
    "two_object": "two",
    "counting": "count",
    "colors": "colour",
    "position": "place",
    "color_attr": "bind",
    suite.UNSEEN: "unseen",
}


def as_table(found: Evaluation) -> str:
    """The figures as text: rates with 95 % intervals, times per image."""
    lines = table(found)
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def table(found: Evaluation) -> list[list[str]]:
    """Header and rows as text."""
    exact = found.figures[EXACT]
    kid = found.quality.features.kid
    looked = exact.get("perceptual_name", "1 - SSIM")
    head = ["", "ms", "x", "loop x", "passed", "lost", *SHORT.values(), kid, looked, "PSNR"]
    return [head, *(_cells(entry, found.figures[entry.name]) for entry in found.lineup.entries)]


def _cells(entry: Entry, f: Mapping[str, Any]) -> list[str]:
    same = entry.name == EXACT
    near = f["perceptual"][0] if "perceptual" in f else 1 - f["ssim"][0]
    return [
        entry.name,
        f"{f['total_ms'] / f['batch']:.1f}",
        f"{f['speedup_total'][0]:.2f}",
        f"{f['speedup_loop'][0]:.2f}",
        "{:.3f} [{:.3f}, {:.3f}]".format(*f["passed"]),
        "-" if same else "{:+.3f} [{:+.3f}, {:+.3f}]".format(*f["passed_loss"]),
        *(f"{f['kinds'][kind][0]:.2f}" if kind in f["kinds"] else "-" for kind in SHORT),
        f"{f['kid']:.2f} [{f['kid_ci95'][0]:.2f}, {f['kid_ci95'][1]:.2f}]" if "kid" in f else "-",
        "-" if same else f"{near:.4f}",
        "-" if same else f"{f['psnr'][0]:.1f}",
    ]
