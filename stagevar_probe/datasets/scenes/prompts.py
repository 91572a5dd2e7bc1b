"""The scenes suite: what is asked, what real pictures look like, what passes.

Captions of two objects are ones that training never showed; pictures to compare with are rendered
for the same captions, with other places, sizes and lights.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .captions import KINDS, Scene, caption, parse
from .render import SIDE, decide, draw_scene, held_out, render, training_set, unseen_pairs

UNSEEN = "unseen_pair"  # a colour and a shape that training never showed together
TRAINING_SEED = 1000  # of the first training pictures; train_scenes counts on from it


def suite_kinds() -> tuple[str, ...]:
    """GenEval's six, then the pairs nobody showed, which count apart."""
    return (*KINDS, UNSEEN)


def suite_prompts(count: int, seed: int) -> list[tuple[str, str]]:
    """``count`` pairs of kind and caption, the kinds in turn, the same for a seed."""
    rng, kinds = random.Random(f"suite {seed}"), suite_kinds()
    return [(kinds[i % len(kinds)], _caption(kinds[i % len(kinds)], rng)) for i in range(count)]


def _caption(kind: str, rng: random.Random) -> str:
    while True:
        scene = draw_scene(rng, "colors" if kind == UNSEEN else kind)
        text = caption(scene)
        if has_unseen(scene) == (kind == UNSEEN) and (len(scene.objects) == 1 or held_out(text)):
            return text


def has_unseen(scene: Scene) -> bool:
    """Whether a caption names a pair of colour and shape that training never showed."""
    return any((asked.color, asked.shape) in unseen_pairs() for asked in scene.objects)


def prompt_lines(count: int, seed: int) -> list[str]:
    """``count`` captions of training's kind, to calibrate with; GenEval's six kinds in turn."""
    rng = random.Random(f"calibration {seed}")
    out: list[str] = []
    while len(out) < count:
        scene = draw_scene(rng, KINDS[len(out) % len(KINDS)])
        text = caption(scene)
        if not has_unseen(scene) and not (len(scene.objects) == 2 and held_out(text)):
            out.append(text)
    return out


def real_pictures(prompts: Sequence[str], seed: int, side: int = SIDE) -> Tensor:
    """Pictures (B, 3, side, side) in [0, 1] of captions, rendered."""
    rng = random.Random(f"real {seed}")
    whole = -(-side // SIDE) * SIDE
    pictures = [torch.from_numpy(render(_seen(parse(text), rng), rng, whole)) for text in prompts]
    shown = torch.stack(pictures).permute(0, 3, 1, 2).float().div(255)
    return shown if whole == side else F.interpolate(shown, size=(side, side), mode="area")


def _seen(scene: Scene, rng: random.Random) -> Scene:
    """A scene with its colours decided, as training decides them where the caption does not."""
    while True:
        decided = decide(scene, rng)
        if has_unseen(scene) or not has_unseen(decided):
            return decided


def training_pictures(count: int) -> Tensor:
    """The first pictures (N, 3, 128, 128) in [0, 1] of training."""
    return training_set(count, TRAINING_SEED)[0].float().div(255)
