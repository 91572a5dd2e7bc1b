"""Pictures of a training run: curves, codebook usage, labelled samples."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from torch import Tensor

from .settings import SIDES, TOKENIZER
from .state import load_torch, save_json

matplotlib.use("Agg")
from matplotlib import pyplot as plt


def read_log(path: Path) -> list[dict[str, Any]]:
    """Records of a JSONL log by step; a resumed run's later record of a step wins."""
    if not path.is_file():
        return []
    records = [json.loads(line) for line in path.read_text().splitlines()]
    by_step = {record["step"]: record for record in records if len(record) > 3}
    return [by_step[step] for step in sorted(by_step)]


def smooth(values: Sequence[float], width: int) -> np.ndarray:
    """Running mean over ``width`` values, shorter at the start."""
    sums = np.cumsum(np.asarray(values, dtype=float))
    starts = np.maximum(np.arange(len(sums)) - width + 1, 0)
    before = np.where(starts > 0, sums[starts - 1], 0.0)
    return (sums - before) / (np.arange(len(sums)) - starts + 1)


def draw_training(runs: Path, output: Path) -> None:
    """Write training.png and training.json from the logs of a run."""
    tokenizer = read_log(runs / "tokenizer.jsonl")
    transformer = read_log(runs / "transformer.jsonl")
    figure, axes = plt.subplots(2, 2, figsize=(11, 7.5), layout="constrained")

    axis = axes[0, 0]
    steps = [r["step"] for r in tokenizer]
    axis.plot(steps, [r["l1"] for r in tokenizer], lw=1)
    axis.set(title="Tokenizer: reconstruction", xlabel="step", ylabel="L1 (range -1 to 1)")
    axis.set_yscale("log")
    axis = axes[0, 1]
    axis.plot(steps, [r["perplexity"] for r in tokenizer], lw=1, label="perplexity")
    used = [r["used"] * TOKENIZER.vocabulary for r in tokenizer]
    axis.plot(steps, used, lw=1, label="codes in use")
    axis.set(title="Tokenizer: codebook", xlabel="step", ylabel=f"of {TOKENIZER.vocabulary}")
    axis.legend()
    axis = axes[1, 0]
    steps = [r["step"] for r in transformer]
    axis.plot(steps, smooth([r["loss"] for r in transformer], 5), "k", lw=2, label="all")
    for k, side in enumerate(SIDES):
        values = smooth([r["scales"][k] for r in transformer], 5)
        axis.plot(steps, values, lw=0.8, label=f"{side}x{side}")
    axis.set(title="Transformer: training loss", xlabel="step", ylabel="nats a token")
    axis.legend(ncols=2, fontsize="small")
    usage = code_usage(runs / "tokens_train.pt")
    axis = axes[1, 1]
    for side, counts in usage.items():
        shares = np.sort(counts[counts > 0] / counts.sum())[::-1]
        axis.plot(shares, lw=1, label=f"{side}x{side}")
    axis.set(title="Codes by share, training images", xlabel="rank", ylabel="share")
    axis.set_yscale("log")
    axis.legend(ncols=2, fontsize="small")
    output.mkdir(parents=True, exist_ok=True)
    figure.savefig(output / "training.png", dpi=90)
    plt.close(figure)
    scorer = runs / "tokenizer_and_scorer.json"
    summary: dict[str, Any] = json.loads(scorer.read_text()) if scorer.is_file() else {}
    summary.pop("code_counts", None)
    save_json(
        output / "training.json",
        {
            "tokenizer_last": tokenizer[-1] if tokenizer else None,
            "transformer_last": transformer[-1] if transformer else None,
            "code_perplexity_by_scale": {
                f"{side}x{side}": perplexity(counts) for side, counts in usage.items()
            },
            **summary,
        },
    )


def code_usage(path: Path) -> dict[int, np.ndarray]:
    """How often every code occurs at each scale, by side."""
    tokens = load_torch(path)
    if tokens is None:
        return {}
    parts = tokens.long().split([side * side for side in SIDES], 1)
    return {
        side: torch.bincount(part.flatten(), minlength=TOKENIZER.vocabulary).numpy()
        for side, part in zip(SIDES, parts, strict=True)
    }


def perplexity(counts: np.ndarray) -> float:
    """Exponential of the entropy of a histogram: how many codes it is worth."""
    share = counts[counts > 0] / counts.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def draw_samples(drawn: Mapping[str, Tensor], classes: Sequence[str], path: Path) -> None:
    """A labelled sheet: a row a class, a block of columns a setting.

    Args:
        drawn: setting's name to images (classes * n, 3, H, W) in [0, 1], class by class.
        classes: their names.
        path: PNG to write.
    """
    figure, axes = plt.subplots(
        1, len(drawn), figsize=(4.4 * len(drawn), 7.6), layout="constrained"
    )
    for number, (name, images) in enumerate(drawn.items()):
        each, side = len(images) // len(classes), images.shape[-1]
        grid = images[:, 0].reshape(len(classes), each, side, side).permute(0, 2, 1, 3)
        axis = np.atleast_1d(axes)[number]
        axis.imshow(grid.reshape(len(classes) * side, each * side).cpu(), cmap="gray")
        axis.set(title=name, xticks=[], yticks=[])
        if number == 0:
            axis.set_yticks([side * (i + 0.5) for i in range(len(classes))], classes)
            axis.tick_params(length=0)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    plt.close(figure)
