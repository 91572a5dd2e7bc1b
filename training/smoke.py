"""Whether the recipe learns, in ten minutes of a CPU:

    python -m training.smoke --shard runs/pictures.zip --out runs/smoke

Trains the size ``tiny`` with training.gpu, draws captions that training never showed, and judges
every picture by its own caption and by those of the others: that is chance. Ends with 1 unless the
loss fell at every scale and pictures pass more often than by chance, beyond a 95 % interval.

Real pictures through the same tokenizer say what could pass at most.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stagevar_probe.datasets.scenes import closeness, judge, parse
from stagevar_probe.datasets.scenes.prompts import UNSEEN, real_pictures, suite_prompts
from stagevar_probe.intervals import Interval, binomial_interval, mean_interval
from stagevar_runtime.families.tokenizers.bsq_vae import BSQVAE

from .gpu.__main__ import main as train
from .gpu.fit import build_model
from .gpu.outputs import PROGRESS, read_payload
from .gpu.sample import sample
from .gpu.settings import SIZES
from .scenes.tokenizer import quantize

COUNT = 420  # captions asked for, a seventh of them of pairs that training never showed: left out
OTHERS = 10  # captions of other pictures that each is judged by, too
BATCH = 60


@dataclass(frozen=True)
class Score:
    """A measure of pictures by their own captions, by others', and the difference, paired."""

    own: Interval
    chance: Interval
    above: Interval

    def line(self, name: str) -> str:
        """In words."""
        own, chance, above = ("{:.3f} [{:.3f}, {:.3f}]".format(*part) for part in self.parts)
        return f"{name}: {own}, by other captions {chance}, difference {above}"

    @property
    def parts(self) -> tuple[Interval, ...]:
        """The three intervals."""
        return self.own, self.chance, self.above


def score(images: Tensor, prompts: Sequence[str], measure: Callable[..., float]) -> Score:
    """Judge images by their own captions and by :data:`OTHERS`; with 95 % intervals."""
    scenes = [parse(prompt) for prompt in prompts]
    shifts = [1 + (7 * i) % (len(scenes) - 1) for i in range(OTHERS)]  # not one kind alone
    own, other = [], []
    for i, image in enumerate(images):
        own.append(float(measure(image, scenes[i])))
        wrong = (scenes[(i + shift) % len(scenes)] for shift in shifts)
        other.append(float(np.mean([measure(image, scene) for scene in wrong])))
    exact = {0.0, 1.0} >= set(own)
    whole = binomial_interval(int(sum(own)), len(own)) if exact else mean_interval(own)
    return Score(whole, mean_interval(other), mean_interval(np.subtract(own, other)))


def drawn(folder: Path, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Pictures (N, 3, S, S) that what a run left draws, and real ones through its tokenizer."""
    result = read_payload(folder, "result")
    size = SIZES[result["size"]]
    model, vae = build_model(size, result["vocabulary"], "cpu")
    model.eval().load_state_dict(result["model"])
    vae.load_state_dict(result["tokenizer"])
    torch.manual_seed(0)
    made, real = [], []
    for start in range(0, len(prompts), BATCH):
        own = prompts[start : start + BATCH]
        made.append(sample(model, vae, own))
        real.append(rebuilt(vae, real_pictures(own, start, size.pixels), size.sizes))
    return torch.cat(made), torch.cat(real)


@torch.inference_mode()
def rebuilt(vae: BSQVAE, images: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
    """Images (B, 3, S, S) in [0, 1] through a tokenizer."""
    return vae.decode(quantize(vae, vae.encoder(images * 2 - 1), sizes))


def losses(record: dict[str, Any]) -> tuple[list[float], list[float]]:
    """The loss of every scale: as it was told first, and the mean of the last ten."""
    told = [r["by_scale"] for r in record["logs"]["transformer"] if "by_scale" in r]
    scales = range(max(map(len, told)))
    columns = [[values[k] for values in told if len(values) > k] for k in scales]
    return [column[0] for column in columns], [float(np.mean(column[-10:])) for column in columns]


def report(folder: Path, count: int = COUNT) -> bool:
    """Judge what a run left; print it; whether it learnt."""
    record = json.loads((folder / PROGRESS).read_text())
    first, last = losses(record)
    prompts = [text for kind, text in suite_prompts(count, seed=9) if kind != UNSEEN]
    images, real = drawn(folder, prompts)
    passes, near = (score(images, prompts, measure) for measure in (judge, closeness))
    told = [[f"{value:.3f}" for value in values] for values in (first, last)]
    print(f"{record['seconds']:.0f} s, {len(prompts)} captions")
    print("loss of a bit by scale:", *told[0], "->", *told[1])
    print(passes.line("passed"))
    print(near.line("closeness"))
    print(score(real, prompts, judge).line("real pictures through the tokenizer, passed"))
    fell = all(b < a for a, b in zip(first, last, strict=True))
    learnt = fell and passes.above.low > 0
    why = "what passes does by chance" if fell else "the loss did not fall"
    print("it learns" if learnt else f"it does not learn: {why}")
    return learnt


def main(argv: list[str] | None = None) -> int:
    """Train and judge; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m training.smoke", description=__doc__)
    parser.add_argument("--shard", type=Path, default=Path("runs/pictures.zip"))
    parser.add_argument("--out", type=Path, default=Path("runs/smoke"))
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--count", type=int, default=COUNT, help="captions")
    parser.add_argument("--judge-only", action="store_true", help="what is in --out already")
    args = parser.parse_args(argv)
    asked = ["--minutes", f"{args.minutes}", "--shard", f"{args.shard}", "--out", f"{args.out}"]
    if not args.judge_only:
        code = train([*asked, "--size", "tiny", "--device", "cpu"])
        if code != 0:
            return code
    return 0 if report(args.out, args.count) else 1


if __name__ == "__main__":
    sys.exit(main())
