"""How large: the model that is worth looking at, and two smaller ones that prove its recipe."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

from stagevar_runtime.families.infinity.blocks import InfinityConfig
from stagevar_runtime.families.tokenizers.config import VQVAEConfig

BITS = 16
TEXT_LENGTH = 16  # words of a caption at most


@dataclass(frozen=True)
class Prefix:
    """Training on the first ``scales`` scales: with so many images a step, for so much of the time.

    ``keep``: share of a large scale's tokens that are run, until ``whole_from`` of the time.
    """

    scales: int
    batch: int
    share: float
    keep: float = 1.0


@dataclass(frozen=True)
class Size:
    """A model and what its training asks of a machine.

    Attributes:
        name: of the size.
        pixels: side of a picture.
        sides: of every scale, in tokens; the last is that of the tokenizer's features.
        width: of the transformer.
        heads: of its attention.
        depth: its blocks.
        text_width: of a word's features.
        channels: of the tokenizer's levels, finest first.
        decoder_blocks: of a level of its decoder.
        prefixes: what the transformer trains on.
        tokenizer_batch: pictures a step; four times as many crops.
    """

    name: str
    pixels: int
    sides: tuple[int, ...]
    width: int
    heads: int
    depth: int
    text_width: int
    channels: tuple[int, ...]
    decoder_blocks: int
    prefixes: tuple[Prefix, ...]
    tokenizer_batch: int

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """(h, w) of every scale."""
        return tuple((side, side) for side in self.sides)

    def tokens(self, scales: int | None = None) -> int:
        """Tokens of the first ``scales`` scales, all by default."""
        return [0, *accumulate(side * side for side in self.sides)][
            len(self.sides) if scales is None else scales
        ]

    def tokenizer(self) -> VQVAEConfig:
        """The tokenizer: no attention, as Infinity's; half the side at every level but the last."""
        return VQVAEConfig(
            vocabulary=0,
            z_channels=BITS,
            stem=self.channels[0],
            channels=self.channels,
            encoder_blocks=1,
            decoder_blocks=self.decoder_blocks,
            attention_levels=(),
            middle_attention=False,
            phis=0,
            sharing="none",
        )

    def transformer(self) -> InfinityConfig:
        """The transformer: one shared AdaLN."""
        return InfinityConfig(
            depth=self.depth,
            chunks=(),
            width=self.width,
            heads=self.heads,
            hidden=4 * self.width,
            bits=BITS,
            text_width=self.text_width,
            text_length=TEXT_LENGTH,
            pool_heads=self.heads,
            levels=len(self.sides),
            shared_adaln=True,
            cross_gamma=False,
        )


SIZES = {
    size.name: size
    for size in (
        Size(
            name="full",
            pixels=256,
            sides=(1, 2, 3, 4, 5, 7, 9, 12, 16, 20, 25, 32),
            width=320,
            heads=5,
            depth=7,
            text_width=128,
            channels=(32, 32, 64, 96),
            decoder_blocks=1,
            prefixes=(
                Prefix(6, 512, 0.15),
                Prefix(9, 192, 0.30),
                Prefix(12, 64, 0.55, keep=0.4),
            ),
            tokenizer_batch=32,
        ),
        Size(
            name="tiny",
            pixels=64,
            sides=(1, 2, 4, 8, 16),
            width=128,
            heads=4,
            depth=4,
            text_width=64,
            channels=(32, 32, 64),
            decoder_blocks=1,
            prefixes=(Prefix(4, 32, 0.5), Prefix(5, 16, 0.5, keep=0.4)),
            tokenizer_batch=4,
        ),
        Size(
            name="least",
            pixels=64,
            sides=(1, 2, 4, 8),
            width=32,
            heads=1,
            depth=1,
            text_width=32,
            channels=(32, 32, 32, 32),
            decoder_blocks=1,
            prefixes=(Prefix(3, 8, 0.5), Prefix(4, 4, 0.5)),
            tokenizer_batch=4,
        ),
    )
}
