"""Emoji, judged by retrieval: pairs of concept and style that training had apart, concepts that it
had in no style, and, apart, what it was trained on."""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from stagevar_runtime.errors import CalibrationError

from ..datasets.archive import HELD_OUT, HELD_OUT_CONCEPT, HELD_OUT_PAIR, TRAIN, Archive
from ..intervals import binomial_interval
from ..metrics.retrieval import Retrieval
from .suite import Kind, Rates, Suite

FIRST = 5
KINDS = (
    Kind(HELD_OUT_PAIR, "pairs"),
    Kind(HELD_OUT_CONCEPT, "concepts"),
    Kind(TRAIN, "trained", counted=False, held_out=False),
)
CAPTION = (
    "R@1: the asked concept is what a picture is most like among the real pictures of all "
    "concepts in the asked style; R@5: it is among five. Both are over held-out prompts. By kind: "
    "pairs of concept and style that training had apart, concepts that it had in no style, and "
    "prompts that it was trained on, which count apart."
)
SENTENCES = {
    "other_style": "a real picture of the asked concept in another style passes {}",
    "chance": "any picture of the style, drawn at random, passes {}",
}


def emoji_suite(archive: Archive) -> Suite:
    """Prompts and real pictures of an archive.

    Raises:
        CalibrationError: it has no held-out pictures, or none to train with.
    """
    metric = Retrieval(archive)
    if not archive.of(TRAIN):
        raise CalibrationError(f"{archive.path}: no training pictures, expected some")
    kinds = tuple(kind for kind in KINDS if archive.of(kind.name))

    def real(count: int, side: int | None) -> tuple[Tensor, list[str]]:
        chosen = archive.of(*HELD_OUT)
        random.Random("emoji ceiling").shuffle(chosen)
        pictures = archive.read(chosen[:count])
        if side is not None and side != archive.side:
            pictures = F.interpolate(pictures, size=(side, side), mode="area")
        return pictures, [picture.prompt for picture in chosen[:count]]

    def within(metric: Retrieval, features: Tensor, prompts: Sequence[str]) -> Tensor:
        return metric.within(features, prompts, FIRST)

    return Suite(
        name="emoji",
        kinds=kinds,
        metric=metric,
        ask=lambda count, seed: ask(archive, kinds, count, seed),
        real=real,
        training=lambda metric: metric.features_of(TRAIN),
        caption=CAPTION,
        passes="R@1",
        source=f"{archive.path.name}, {len(archive.pictures)} pictures, index sha256:"
        f"{archive.sha256}",
        beside={f"R@{FIRST}": within},
        bounds=bounds,
        description=SENTENCES,
    )


def ask(archive: Archive, kinds: Sequence[Kind], count: int, seed: int) -> list[tuple[str, str]]:
    """``count`` pairs of kind and prompt, the kinds in turn, none twice before all were asked."""
    rng = random.Random(f"emoji {seed}")
    decks = []
    for kind in kinds:
        deck = list(dict.fromkeys(picture.prompt for picture in archive.of(kind.name)))
        rng.shuffle(deck)
        decks.append(deck)
    out = []
    for i in range(count):
        turn, which = divmod(i, len(kinds))
        out.append((kinds[which].name, decks[which][turn % len(decks[which])]))
    return out


def bounds(metric: Retrieval) -> Rates:
    """How held-out prompts are answered by real pictures of another style, and by chance."""
    pictures, rng = metric.archive.pictures, random.Random("emoji other style")
    drawn: dict[str, list[int]] = {}
    for i, picture in enumerate(pictures):
        drawn.setdefault(picture.concept, []).append(i)
    queries, prompts = [], []
    for picture in metric.archive.of(*HELD_OUT):
        others = [i for i in drawn[picture.concept] if pictures[i].style != picture.style]
        if others:
            queries.append(rng.choice(others))
            prompts.append(picture.prompt)
    sizes = [
        len(metric.galleries[picture.style].concepts) for picture in metric.archive.of(*HELD_OUT)
    ]
    found: Rates = {}
    for first, ending in ((1, ""), (FIRST, f" R@{FIRST}")):
        if queries:
            right = metric.within(metric.real_features[queries], prompts, first)
            rate = binomial_interval(round(float(right.sum())), len(right))
            found[f"other_style{ending}"] = list(rate)
        chance = sum(min(first, size) / size for size in sizes) / len(sizes)
        found[f"chance{ending}"] = [chance] * 3
    return found
