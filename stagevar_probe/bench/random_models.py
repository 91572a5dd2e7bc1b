"""Published sizes with random weights, made on the device: what `bench --random` runs.

Speed does not depend on what the weights say, so a benchmark needs no download. A family adds its
sizes by one entry in :data:`SIZES`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from stagevar_runtime.errors import StagevarError
from stagevar_runtime.families.infinity.blocks import InfinityConfig
from stagevar_runtime.families.infinity.blocks import Transformer as InfinityTransformer
from stagevar_runtime.families.infinity.model import Infinity
from stagevar_runtime.families.tokenizers.bsq_vae import BSQVAE
from stagevar_runtime.families.tokenizers.config import VQVAEConfig
from stagevar_runtime.families.tokenizers.vqvae import VQVAE
from stagevar_runtime.families.var import VAR, Transformer, VARConfig
from stagevar_runtime.model.protocol import Conditioning, ScaleModel

Build = Callable[[torch.device, torch.dtype], Any]  # the model

TEXT_TOKENS = 24  # of a prompt of about 16 words
SIDES_256 = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)
SIDES_512 = (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)


def random_tensors(module: nn.Module, device: torch.device, seed: int = 0) -> dict[str, Tensor]:
    """A state dict for ``module`` (which may be on the meta device) with gains near 1."""
    generator = torch.Generator(device).manual_seed(seed)
    tensors = {}
    for name, blank in module.state_dict().items():
        tensor = torch.randn(blank.shape, generator=generator, device=device)
        if blank.ndim > 1:
            tensor /= max(1, blank[0].numel()) ** 0.5
        else:
            tensor = 0.1 * tensor + float("norm" in name and name.endswith("weight"))
        tensors[name] = tensor
    return tensors


def random_var(
    config: VARConfig,
    device: torch.device,
    dtype: torch.dtype,
    tokenizer: VQVAEConfig | None = None,
) -> VAR:
    """A VAR of this configuration with its tokenizer (default: the published shape)."""
    with torch.device("meta"):
        transformer = Transformer(config)
        vqvae = VQVAE(tokenizer or VQVAEConfig(encoder=False))
    tensors = random_tensors(transformer, device)
    sides = config.sides
    level = torch.cat([torch.full((side**2,), k) for k, side in enumerate(sides)])
    return VAR.from_tensors(
        tensors | {"lvl_1L": level[None]}, random_tensors(vqvae, device, 1), device, dtype
    )


def random_infinity(
    config: InfinityConfig,
    tokenizer: VQVAEConfig,
    device: torch.device,
    dtype: torch.dtype,
    size: str = "1M",
) -> Infinity:
    """An Infinity of this configuration with its tokenizer; text features come from outside."""
    with torch.device("meta"):
        transformer, vae = InfinityTransformer(config), BSQVAE(tokenizer)
    tensors, codes = random_tensors(transformer, device), random_tensors(vae, device, 1)
    return Infinity.from_tensors(tensors, codes, device, dtype, default_size=size)


def _infinity(
    depth: int, width: int, bits: int, channels: tuple[int, ...], z_channels: int
) -> Build:
    config = InfinityConfig(
        depth=depth,
        chunks=(depth // 8,) * 8,
        width=width,
        heads=width // 128,
        hidden=round(4 * width / 256) * 256,
        bits=bits,
        text_width=2048,
        text_length=512,
        pool_heads=2048 // (64 if width > 4096 else 128),
        levels=15,
        shared_adaln=True,
        cross_gamma=False,
    )
    return partial(random_infinity, config, bsq_shape(z_channels, channels))


def bsq_shape(z_channels: int, channels: tuple[int, ...], decoder_blocks: int = 3) -> VQVAEConfig:
    """The shape of a bitwise tokenizer without its encoder: no attention, no codebook."""
    return VQVAEConfig(
        vocabulary=0,
        z_channels=z_channels,
        stem=channels[0],
        channels=channels,
        decoder_blocks=decoder_blocks,
        attention_levels=(),
        middle_attention=False,
        phis=0,
        sharing="none",
        encoder=False,
    )


def _var(depth: int, sides: tuple[int, ...] = SIDES_256, shared: bool = False) -> Build:
    width = 64 * depth
    config = VARConfig(depth, width, depth, 1000, 4096, 32, sides, 4 * width, shared, True)
    return partial(random_var, config)


def _trial_var() -> Build:
    config = VARConfig(2, 64, 2, 10, 64, 32, SIDES_256, 256, False, True)
    tokenizer = VQVAEConfig(vocabulary=64, stem=32, channels=(32, 32), attention_levels=())
    return partial(random_var, config, tokenizer=replace(tokenizer, encoder=False))


def _trial_infinity() -> Build:
    config = InfinityConfig(8, (1,) * 8, 64, 2, 256, 4, 64, 64, 2, 15, True, False)
    return partial(random_infinity, config, bsq_shape(4, (32, 32), 1), size="0.06M")


SIZES: dict[str, Build] = {
    "var-d16": _var(16),
    "var-d20": _var(20),
    "var-d24": _var(24),
    "var-d30": _var(30),
    "var-d36": _var(36, SIDES_512, shared=True),
    "infinity-2b": _infinity(32, 2048, 32, (128, 256, 512, 512, 512), 32),
    "infinity-8b": _infinity(40, 3584, 56, (128, 256, 512, 512), 14),
    "var-trial": _trial_var(),  # of no publisher: to try a command out
    "infinity-trial": _trial_infinity(),
}


def random_model(
    name: str, device: str | torch.device | None = None, dtype: torch.dtype | None = None
) -> ScaleModel:
    """The published size ``name`` with random weights; device and dtype default as in ``load``.

    Raises:
        StagevarError: no such size.
    """
    if name not in SIZES:
        raise StagevarError(f"unknown size {name!r}, expected one of {', '.join(SIZES)}")
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return SIZES[name](device, dtype or default_dtype(device))


def default_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 on CUDA, float32 elsewhere."""
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def random_conditioning(model: ScaleModel, batch: int, seed: int) -> Conditioning:
    """Labels, or text features of ``TEXT_TOKENS`` tokens, for a model without a text encoder."""
    generator = torch.Generator().manual_seed(seed)
    if model.info.classes:
        labels = torch.randint(model.info.classes, (batch,), generator=generator)
        return model.condition(labels=labels)
    width = model.info.config["text_width"]
    text = torch.randn(batch, TEXT_TOKENS, width, generator=generator)
    return model.condition(text=text, mask=torch.ones(batch, TEXT_TOKENS, dtype=torch.bool))
