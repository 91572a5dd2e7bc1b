"""What is trained on, on the device: emoji as they were drawn, scenes as they are painted.

Pictures are decoded once, by all the processors there are, before the device is touched.

Shapes: B pictures of side S, M emoji.
"""

from __future__ import annotations

import io
import mmap
import multiprocessing
import os
import random
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from stagevar_probe.datasets.archive import TRAIN, Picture

from ..data.shard import Shard
from .paint import Painter, moved

CHUNK = 64  # pictures that a process decodes at once
POLL = 0.02  # seconds


class _Decoding:
    """Pixels of pictures, in memory that forked processes fill; no pipe that could fill up."""

    def __init__(self, path: Path, names: Sequence[str], side: int) -> None:
        self.path, self.names, self.side = path, names, side
        self.chunks = -(-len(names) // CHUNK)
        self.memory = mmap.mmap(-1, len(names) * side * side * 3)
        self.done = mmap.mmap(-1, self.chunks)
        self.pixels = torch.frombuffer(self.memory, dtype=torch.uint8).view(-1, side, side, 3)

    def decode(self, chunk: int) -> None:
        """Fill one chunk."""
        with zipfile.ZipFile(self.path) as file:
            for i in range(chunk * CHUNK, min((chunk + 1) * CHUNK, len(self.names))):
                with Image.open(io.BytesIO(file.read(self.names[i]))) as picture:
                    image = picture.convert("RGB")
                if image.width != self.side:
                    image = image.resize((self.side, self.side), Image.Resampling.BOX)
                self.pixels[i].numpy()[:] = np.asarray(image)
        self.done[chunk] = 1

    def part(self, first: int, step: int) -> None:
        """Fill every ``step``-th chunk: what one process does."""
        for chunk in range(first, self.chunks, step):
            self.decode(chunk)

    def run(self, enough: Callable[[], bool]) -> None:
        """Fill what can be filled until it is enough, by all processors, at least one chunk."""
        count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
        context, children = multiprocessing.get_context("fork"), []
        try:
            for i in range(min(count, self.chunks)):
                child = context.Process(target=self.part, args=(i, count), daemon=True)
                child.start()
                children.append(child)
            while any(child.is_alive() for child in children) and not enough():
                time.sleep(POLL)
        except OSError:  # no processes to be had here
            self.part(0, 1)
        for child in children:
            child.kill()
            child.join()
        if not any(self.done[:]):
            self.decode(0)


def read_emoji(
    shard: Shard, side: int, enough: Callable[[], bool] = lambda: False
) -> tuple[Tensor, list[Picture]]:
    """Training's emoji (M, 3, S, S) uint8 in a random order, with what the index says of them.

    ``enough``: asked now and then; what is not decoded by then is left out.
    """
    pictures = shard.emoji.of(TRAIN)
    random.Random("emoji").shuffle(pictures)
    decoding = _Decoding(shard.emoji.path, [p.file for p in pictures], side)
    decoding.run(enough)
    chunks = [i for i in range(decoding.chunks) if decoding.done[i]]
    kept = [i for c in chunks for i in range(c * CHUNK, min((c + 1) * CHUNK, len(pictures)))]
    pixels = decoding.pixels
    if len(kept) < len(pictures):
        pixels = pixels[torch.tensor(kept)]
    return pixels.permute(0, 3, 1, 2), [pictures[i] for i in kept]


@dataclass
class Pictures:
    """Emoji and scenes on a device.

    Attributes:
        emoji: (M, 3, S, S) uint8.
        painter: of scenes.
        emoji_captions: numbers (M,) of the emoji's captions.
        scene_captions: numbers (N,) of the scenes' captions.
        captions: every caption once.
    """

    emoji: Tensor
    painter: Painter
    emoji_captions: Tensor
    scene_captions: Tensor
    captions: list[str]

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self.emoji.device

    def draw_emoji(self, numbers: Tensor, as_drawn: bool) -> Tensor:
        """Emoji (B, 3, S, S) in [-1, 1], moved a little unless ``as_drawn``."""
        pictures = self.emoji[numbers].float()
        return (pictures if as_drawn else moved(pictures)).div_(127.5).sub_(1)

    def draw_scenes(self, numbers: Tensor) -> Tensor:
        """Scenes (B, 3, S, S) in [-1, 1]."""
        return self.painter(numbers).div_(127.5).sub_(1)

    def batch(self, count: int) -> Tensor:
        """``count`` pictures (B, 3, S, S) in [-1, 1], drawn at random: half of them emoji."""
        emoji = torch.randint(len(self.emoji), (count - count // 2,), device=self.device)
        scenes = torch.randint(len(self.scene_captions), (count // 2,), device=self.device)
        if not len(scenes):
            return self.draw_emoji(emoji, as_drawn=False)
        return torch.cat([self.draw_emoji(emoji, as_drawn=False), self.draw_scenes(scenes)])


def put_pictures(
    shard: Shard, emoji: Tensor, index: Sequence[Picture], pixels: int, device: str
) -> Pictures:
    """Everything that is trained on, moved to a device."""
    captions = list(dict.fromkeys([*shard.scenes.captions, *(p.prompt for p in index)]))
    numbers = {text: i for i, text in enumerate(captions)}
    own = torch.tensor([numbers[text] for text in shard.scenes.captions])
    return Pictures(
        emoji=emoji.to(device),
        painter=Painter(shard.scenes, pixels, device),
        emoji_captions=torch.tensor([numbers[p.prompt] for p in index]).to(device),
        scene_captions=own[torch.from_numpy(shard.scenes.caption).long()].to(device),
        captions=captions,
    )
