"""Encodes the pictures once, so that the transformer's training runs no convolution.

What is kept on the device is the encoder's features (d, h, w) in half precision: with them targets
can be made again for bits that were flipped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from stagevar_runtime.families.tokenizers.bsq_vae import BSQVAE

from .clock import Clock
from .pictures import Pictures
from .precision import Precision

COPIES = 8  # of an emoji: as drawn, then moved
BATCH = {"cuda": 256, "cpu": 4}


@dataclass(frozen=True)
class Features:
    """Encoded pictures of one kind: ``features`` (N, d, h, w), ``captions`` (N,) numbers."""

    features: Tensor
    captions: Tensor


@torch.no_grad()
def encode_pictures(
    model: BSQVAE, pictures: Pictures, clock: Clock, end: float, precision: Precision
) -> tuple[Features, Features]:
    """Emoji and scenes in turn, as many as there is time for until ``end``.

    At least one batch of each is encoded.
    """
    emoji, scenes = len(pictures.emoji), len(pictures.scene_captions)
    device, size = pictures.device, BATCH.get(pictures.device.type, 4)

    def encoded(draw: Callable[[Tensor], Tensor], numbers: Tensor) -> Tensor:
        image = draw(numbers).contiguous(memory_format=torch.channels_last)
        with precision.autocast():
            return model.encoder(image).half().contiguous()

    order = torch.randperm(scenes, device=device)
    found: tuple[list[tuple[Tensor, Tensor]], list[tuple[Tensor, Tensor]]] = ([], [])
    places = [0, 0]
    totals = (COPIES * emoji, scenes)
    while any(place < total for place, total in zip(places, totals, strict=True)):
        behind = int(places[1] < places[0])  # the kind that has fewer, unless it has all
        which = behind if places[behind] < totals[behind] else 1 - behind
        end_of_batch = min(places[which] + size, totals[which])
        numbers = torch.arange(places[which], end_of_batch, device=device)
        if which == 0:
            first = places[0] < emoji
            part = encoded(lambda n, first=first: pictures.draw_emoji(n, first), numbers % emoji)
            found[0].append((part, pictures.emoji_captions[numbers % emoji]))
        else:
            part = encoded(pictures.draw_scenes, order[numbers])
            found[1].append((part, pictures.scene_captions[order[numbers]]))
        places[which] = end_of_batch
        precision.wait()
        if clock.now > end and all(found):
            break
    kinds = [Features(*(torch.cat(part) for part in zip(*parts, strict=True))) for parts in found]
    return kinds[0], kinds[1]
