"""What the scenes reference checkpoint is made of."""

from __future__ import annotations

from stagevar_runtime.families.infinity.blocks import InfinityConfig
from stagevar_runtime.families.tokenizers.config import VQVAEConfig

SIDES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
SIZES = tuple((side, side) for side in SIDES)
BITS = 16
TEXT_WIDTH = 128
TEXT_LENGTH = 16

TOKENIZER = VQVAEConfig(
    vocabulary=0,
    z_channels=BITS,
    stem=32,
    channels=(32, 32, 64, 64),
    encoder_blocks=1,
    decoder_blocks=1,
    attention_levels=(),
    middle_attention=False,
    phis=0,
    sharing="none",
)


def transformer_config(width: int = 192, depth: int = 6) -> InfinityConfig:
    """The transformer: heads of 32, one shared AdaLN."""
    return InfinityConfig(
        depth=depth,
        chunks=(),
        width=width,
        heads=width // 32,
        hidden=4 * width,
        bits=BITS,
        text_width=TEXT_WIDTH,
        text_length=TEXT_LENGTH,
        pool_heads=4,
        levels=len(SIDES),
        shared_adaln=True,
        cross_gamma=False,
    )
