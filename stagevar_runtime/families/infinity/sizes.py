"""The published sizes of Infinity, and models of them without a checkpoint.

Source: Infinity ``tools/run_infinity.py``, ``models/infinity.py``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import StagevarError
from ..tokenizers.bsq_vae import BSQVAE
from ..tokenizers.config import VQVAEConfig
from .blocks import InfinityConfig, Transformer
from .model import Infinity

SIZES = {  # blocks, chunks of them, width, heads
    "2b": (32, 8, 2048, 16),
    "8b": (40, 8, 3584, 28),
    "layer12": (12, 4, 768, 8),
    "layer16": (16, 4, 1152, 12),
    "layer24": (24, 4, 1536, 16),
    "layer32": (32, 4, 2080, 20),
    "layer40": (40, 4, 2688, 24),
    "layer48": (48, 4, 3360, 28),
}


def preset(name: str) -> tuple[InfinityConfig, VQVAEConfig]:
    """A published transformer and its tokenizer: 32 bits at 1/16, the 8B's 14 at 1/8 in patches.

    Raises:
        StagevarError: unknown name.
    """
    if name not in SIZES:
        raise StagevarError(f"infinity has no size {name!r}, expected one of {', '.join(SIZES)}")
    depth, chunks, width, heads = SIZES[name]
    patches = name == "8b"
    config = InfinityConfig(
        depth=depth,
        chunks=(depth // chunks,) * chunks,
        width=width,
        heads=heads,
        hidden=round(4 * width / 256) * 256,
        bits=56 if patches else 32,
        text_width=2048,
        text_length=512,
        pool_heads=16,
        levels=15,
        shared_adaln=True,
        cross_gamma=False,
    )
    tokenizer = VQVAEConfig(
        vocabulary=0,
        z_channels=14 if patches else 32,
        stem=128,
        channels=(128, 256, 512, 512) if patches else (128, 256, 512, 512, 512),
        attention_levels=(),
        middle_attention=False,
        phis=0,
        sharing="none",
    )
    return config, tokenizer


def without_weights(name: str) -> tuple[Infinity, dict[str, Tensor]]:
    """A published model on the meta device, with its transformer's tensors by name."""
    config, layers = preset(name)
    with torch.device("meta"):
        transformer, tokenizer = Transformer(config), BSQVAE(layers)
    return Infinity(config, transformer, tokenizer, torch.bfloat16), transformer.state_dict()
