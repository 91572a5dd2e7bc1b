"""Does a picture show what was asked? By what it is most like among real pictures of its style.

Every prompt of an archive asks for a concept in a style. A picture made for it is compared with the
real pictures of all concepts in that style, held-out ones included, by the cosine of features
centred on that style's mean. The rank of the asked concept is 1 if nothing is as like (R@1), at
most 5 if four are (R@5).

Shapes: B pictures, F features, N real pictures of a style, C concepts among them.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from stagevar_runtime.errors import CalibrationError

from ..datasets.archive import HELD_OUT, Archive, open_archive
from ..progress import meter
from .features import Features
from .protocol import Items, Looking

NAME = "retrieval"
TIE = 1e-5  # cosines nearer than that are equal, and a tie counts against the asked concept
TEMPERATURE = 0.1  # of the softmax over cosines that is the smooth score
BATCH = 64

logger = logging.getLogger("stagevar_probe")


@dataclass(frozen=True)
class Gallery:
    """Real pictures of one style.

    Attributes:
        centre: their mean features ``(F,)``.
        rows: their features, centred, of length 1, ``(N, F)``.
        numbers: which concept each shows ``(N,)``.
        concepts: all of them, C.
    """

    centre: Tensor
    rows: Tensor
    numbers: Tensor
    concepts: tuple[str, ...]

    def likeness(self, features: Tensor) -> Tensor:
        """Cosine ``(B, C)`` of features ``(B, F)`` with every concept, its most alike picture."""
        cosines = F.normalize(features.float() - self.centre) @ self.rows.T
        best = cosines.new_full((len(cosines), len(self.concepts)), -torch.inf)
        return best.scatter_reduce(1, self.numbers.expand_as(cosines), cosines, "amax")


def make_gallery(features: Tensor, concepts: Sequence[str]) -> Gallery:
    """The gallery of real pictures with features ``(N, F)``, each of a concept."""
    names = tuple(dict.fromkeys(concepts))
    number = {name: i for i, name in enumerate(names)}
    centre = features.float().mean(0)
    rows = F.normalize(features.float() - centre)
    return Gallery(centre, rows, torch.tensor([number[name] for name in concepts]), names)


class Retrieval(Looking):
    """1 where the asked concept comes first; ``smooth`` is its softmax over all concepts."""

    default_loss = 0.01

    def __init__(self, archive: Archive | Path | str) -> None:
        self.archive = archive if isinstance(archive, Archive) else open_archive(archive)
        self.name = f"{NAME}={self.archive.path.name}"
        if len(self.archive.of(*HELD_OUT)) < 2:
            raise CalibrationError(
                f"{self.archive.path}: fewer than two held-out pictures, expected some to compare "
                "with"
            )

    def __copy__(self) -> Retrieval:
        """Without what it remembers, which other features would not give."""
        return Retrieval(self.archive)

    @cached_property
    def real_features(self) -> Tensor:
        """Features (N, F) of every picture of the archive, in its order."""
        pictures, seen = self.archive.pictures, []
        quiet = not logger.isEnabledFor(logging.INFO)
        with meter("looking at real pictures", len(pictures), quiet) as tick:
            for begin in range(0, len(pictures), BATCH):
                part = pictures[begin : begin + BATCH]
                seen.append(self.features(self.archive.read(part)).float())
                tick(len(part))
        return torch.cat(seen)

    def features_of(self, *splits: str) -> Tensor:
        """Features (N, F) of the real pictures of splits."""
        wanted = [picture.split in splits for picture in self.archive.pictures]
        return self.real_features[torch.tensor(wanted)]

    def real(self) -> Features:
        """The features, with those of the real pictures of held-out prompts as reference."""
        source = f"held-out pictures of {self.archive.path.name}"
        return replace(self.features, reference=self.features_of(*HELD_OUT), source=source)

    @cached_property
    def galleries(self) -> dict[str, Gallery]:
        """One a style."""
        rows: dict[str, list[int]] = {}
        for i, picture in enumerate(self.archive.pictures):
            rows.setdefault(picture.style, []).append(i)
        return {
            style: make_gallery(
                self.real_features[own], [self.archive.pictures[i].concept for i in own]
            )
            for style, own in rows.items()
        }

    @cached_property
    def asked(self) -> dict[str, tuple[str, frozenset[str]]]:
        """Style and concept of every prompt; concepts, where one prompt names several."""
        found: dict[str, tuple[str, frozenset[str]]] = {}
        for picture in self.archive.pictures:
            style, concepts = found.get(picture.prompt, (picture.style, frozenset()))
            if style != picture.style:
                raise CalibrationError(
                    f"{self.archive.path}: prompt {picture.prompt!r} is of styles {style} and "
                    f"{picture.style}, expected one"
                )
            found[picture.prompt] = style, concepts | {picture.concept}
        return found

    def judged(self, features: Tensor, items: Items) -> tuple[Tensor, Tensor]:
        """Rank of the asked concept from 1, and its softmax, ``(B,)`` each, by ``(B, F)``.

        Raises:
            CalibrationError: a prompt is not one of the archive's.
        """
        ranks, near = torch.empty(len(items)), torch.empty(len(items))
        rows: dict[str, list[int]] = {}
        for i, item in enumerate(items):
            if str(item) not in self.asked:
                raise CalibrationError(
                    f"metric {self.name}: {item!r} is no prompt of the archive; expected such as "
                    f"{self.archive.pictures[0].prompt!r}"
                )
            rows.setdefault(self.asked[str(item)][0], []).append(i)
        for style, own in rows.items():
            gallery = self.galleries[style]
            wanted = [self.asked[str(items[i])][1] for i in own]
            right = torch.tensor([[c in asked for c in gallery.concepts] for asked in wanted])
            cosines = gallery.likeness(features[own])
            best = cosines.masked_fill(~right, -torch.inf).amax(1, keepdim=True)
            wrong = cosines.masked_fill(right, -torch.inf)
            ranks[own] = 1.0 + (wrong >= best - TIE).sum(1)
            near[own] = (cosines / TEMPERATURE).softmax(1).masked_fill(~right, 0).sum(1)
        return ranks, near

    def within(self, features: Tensor, items: Items, first: int) -> Tensor:
        """1 where the asked concept is among the ``first``, ``(B,)``, by features ``(B, F)``."""
        return (self.judged(features, items)[0] <= first).float()

    def score(self, images: Tensor, items: Items, exact: Tensor) -> Tensor:
        """1 where the asked concept comes first: R@1."""
        return self.within(self.features(images), items, 1)

    def smooth(self, images: Tensor, items: Items, exact: Tensor) -> Tensor:
        """Softmax of the asked concept, in [0, 1]."""
        return self.judged(self.features(images), items)[1]
