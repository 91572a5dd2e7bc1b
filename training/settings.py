"""What the Fashion-MNIST reference checkpoint is made of."""

from __future__ import annotations

from stagevar_runtime.families.tokenizers.config import VQVAEConfig

SIDES = (1, 2, 3, 4, 5, 6, 8)
SIZES = tuple((side, side) for side in SIDES)
TOKENS = sum(side * side for side in SIDES)

TOKENIZER = VQVAEConfig(
    vocabulary=512,
    z_channels=16,
    stem=32,
    channels=(32, 32, 64),
    encoder_blocks=1,
    decoder_blocks=2,
    attention_levels=(),
    middle_attention=True,
)
