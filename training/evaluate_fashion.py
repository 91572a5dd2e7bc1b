"""Measure the exported checkpoint: python -m training.evaluate_fashion

Draws 2,000 images a setting through stagevar_runtime and writes docs/fashion/: evaluation.json,
training.json, training.png and samples.png. Settings that are already in the JSON with the same
weights are kept, so that the command can be stopped and run again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from scipy.stats import beta
from torch import Tensor

from stagevar_probe.metrics.classifier import Scorer, load_scorer
from stagevar_probe.metrics.images import kid
from stagevar_runtime.loading import load
from stagevar_runtime.pipeline import Pipeline
from stagevar_runtime.profile import PlanStep

from .data.fashion import DEFAULT_ROOT, load_fashion
from .export import SCORER_FILE, TOKENIZER_FILE, TRANSFORMER_FILE
from .figures import draw_samples, draw_training
from .settings import SIZES
from .state import save_json

BATCH = 250
SUBSETS, SUBSET_SIZE = 100, 500


@dataclass(frozen=True)
class Setting:
    """One way to sample.

    Either ``ramp`` (the published guidance g of t = g k/(K-1)) or ``constant`` (the same linear
    weight w of w cond + (1 - w) null at every scale). Both None: the cond branch alone.
    """

    name: str
    ramp: float | None = None
    constant: float | None = None
    top_k: int = 0
    top_p: float = 0.0


SETTINGS = (
    Setting("cond"),
    *(Setting(f"ramp-{g:g}", ramp=g) for g in (1.5, 2.0, 3.0, 4.0)),
    *(Setting(f"constant-{w:g}", constant=w) for w in (1.5, 2.0, 3.0, 4.0)),
    *(
        Setting(f"{name}-top_p-{p:g}", ramp=ramp, constant=constant, top_k=900, top_p=p)
        for p in (0.95, 0.96)
        for name, ramp, constant in (
            ("cond", None, None),
            ("ramp-4", 4.0, None),
            ("constant-3", None, 3.0),
        )
    ),
)


def draw(
    pipeline: Pipeline, setting: Setting, labels: Tensor, first_seed: int
) -> tuple[Tensor, float]:
    """Images (N, 3, H, W) in [0, 1] of ``labels`` and the seconds spent drawing them."""
    pipeline.disable()
    if setting.constant is not None:
        count = len(pipeline.model.scales())
        pipeline.enable([PlanStep(scale=k, guidance_scale=setting.constant) for k in range(count)])
    images, seconds = [], 0.0
    for start in range(0, len(labels), BATCH):
        chunk = labels[start : start + BATCH]
        mark = time.perf_counter()
        made = pipeline.generate(
            labels=chunk,
            seed=list(range(first_seed + start, first_seed + start + len(chunk))),
            guidance=setting.ramp or (1.0 if setting.constant is not None else 0.0),
            temperature=1.0,
            top_k=setting.top_k,
            top_p=setting.top_p,
        )
        seconds += time.perf_counter() - mark
        images.append(made.images)
    return torch.cat(images), seconds


def binomial_interval(successes: int, count: int, level: float = 0.95) -> tuple[float, float]:
    """Exact (Clopper-Pearson) interval of a share."""
    tail = (1 - level) / 2
    low = beta.ppf(tail, successes, count - successes + 1) if successes else 0.0
    high = beta.ppf(1 - tail, successes + 1, count - successes) if successes < count else 1.0
    return float(low), float(high)


def measure(scorer: Scorer, images: Tensor, labels: Tensor) -> dict[str, Any]:
    """Agreement with the asked classes and kernel distance to real images.

    The kernel distance's interval holds the middle 95 % of subsets under a normal approximation:
    it tells how far single subsets scatter, which is more than the mean's own uncertainty.
    """
    features, predicted = scorer.score(images)
    right = predicted == labels
    low, high = binomial_interval(int(right.sum()), len(labels))
    mean, spread, _ = kid(features, scorer.reference_features, SUBSETS, SUBSET_SIZE)
    names = scorer.class_names
    return {
        "images": len(labels),
        "agreement": right.float().mean().item(),
        "agreement_ci95": [low, high],
        "agreement_by_class": {
            name: right[labels == i].float().mean().item() for i, name in enumerate(names)
        },
        "kid": mean,
        "kid_subset_std": spread,
        "kid_subset_interval95": [mean - 1.96 * spread, mean + 1.96 * spread],
        "kid_standard_error": spread / math.sqrt(SUBSETS),
    }


def baselines(pipeline: Pipeline, scorer: Scorer, data: Path, count: int) -> dict[str, Any]:
    """The same figures for other real test images, and for what the tokenizer makes of them."""
    test = load_fashion("test", data)
    rows = slice(len(scorer.reference_features), len(scorer.reference_features) + count)
    images, labels = test.batch(rows), test.labels[rows]
    tokenizer = pipeline.model.tokenizer  # type: ignore[attr-defined]
    with torch.inference_mode():
        rebuilt = torch.cat(
            [
                tokenizer.decode(tokenizer.codes_to_canvas(tokenizer.encode(x, SIZES), SIZES))
                for x in images.split(BATCH)
            ]
        )
    return {
        "real": measure(scorer, images, labels),
        "reconstructed": measure(scorer, rebuilt, labels)
        | {"l1": ((rebuilt - images).abs().mean() * 2).item()},
    }


def file_hash(path: Path) -> str:
    """Content hash of a file, shortened."""
    return "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def evaluate(args: argparse.Namespace) -> dict[str, Any]:
    """Measure every setting that is not in the JSON yet; write it after each."""
    pipeline = load(
        args.checkpoint / TRANSFORMER_FILE,
        args.checkpoint / TOKENIZER_FILE,
        device="cpu",
        profile=None,
    )
    scorer = load_scorer(args.checkpoint / SCORER_FILE)
    path: Path = args.output / "evaluation.json"
    files = {
        name: {"bytes": (args.checkpoint / name).stat().st_size}
        | {"hash": file_hash(args.checkpoint / name)}
        for name in (TRANSFORMER_FILE, TOKENIZER_FILE, SCORER_FILE)
    }
    result: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    if result.get("files") != files or result.get("images") != args.images:
        result = {"files": files, "images": args.images, "settings": {}}
    result["method"] = {
        "through": "stagevar_runtime, exact path, float32 on a CPU",
        "labels": "classes in turn",
        "seeds": f"one an image, {args.seed} to {args.seed + args.images - 1}",
        "agreement": "share of images whose class the scorer names; exact binomial interval",
        "kid": f"unbiased, kernel (x.y/d + 1)^3, scorer features, {SUBSETS} subsets of "
        f"{SUBSET_SIZE}, against {len(scorer.reference_features)} real test images",
        "scorer_test_accuracy": scorer.test_accuracy,
    }
    labels = torch.arange(args.images) % len(scorer.class_names)
    if "baselines" not in result:
        result["baselines"] = baselines(pipeline, scorer, args.data, args.images)
    for setting in SETTINGS:
        if setting.name in result["settings"]:
            continue
        images, seconds = draw(pipeline, setting, labels, args.seed)
        record = measure(scorer, images, labels) | {
            "ramp": setting.ramp,
            "constant": setting.constant,
            "top_k": setting.top_k,
            "top_p": setting.top_p,
            "seconds_shared_machine": round(seconds, 1),
        }
        result["settings"][setting.name] = record
        save_json(path, result)
        print(f"{setting.name:22} agreement {record['agreement']:.4f} KID {record['kid']:.4f}")
    save_json(path, result)
    sheet = [Setting("cond"), Setting("ramp 4", ramp=4.0), Setting("constant 3", constant=3.0)]
    shown = torch.arange(10).repeat_interleave(6)
    drawn = {s.name: draw(pipeline, s, shown, 10_000_000)[0] for s in sheet}
    draw_samples(drawn, scorer.class_names, args.output / "samples.png")
    return result


def main(argv: list[str] | None = None) -> int:
    """Measure and draw; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m training.evaluate_fashion")
    parser.add_argument("--checkpoint", type=Path, default=Path("checkpoints/fashion"))
    parser.add_argument("--runs", type=Path, default=Path("runs/fashion"))
    parser.add_argument("--data", type=Path, default=DEFAULT_ROOT)
    parser.add_argument("--output", type=Path, default=Path("docs/fashion"))
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="CPU threads")
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    evaluate(args)
    if args.runs.is_dir():
        draw_training(args.runs, args.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
