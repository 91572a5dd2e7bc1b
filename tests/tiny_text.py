"""Random state dicts of the text-to-image families, in their publishers' names."""

from __future__ import annotations

import torch
from conftest import random_state

from stagevar_runtime.families.hart import HARTConfig
from stagevar_runtime.families.hart import Transformer as HARTTransformer
from stagevar_runtime.families.star import STARConfig
from stagevar_runtime.families.star import Transformer as STARTransformer
from stagevar_runtime.families.switti import SwittiConfig
from stagevar_runtime.families.switti import Transformer as SwittiTransformer
from stagevar_runtime.families.tokenizers.config import VQVAEConfig
from stagevar_runtime.families.tokenizers.vqvae import VQVAE

State = dict[str, torch.Tensor]


def tokenizer_state(vocabulary: int, seed: int) -> State:
    """A VQVAE that doubles the side of its canvas."""
    config = VQVAEConfig(
        vocabulary=vocabulary,
        stem=32,
        channels=(32, 32),
        attention_levels=(1,),
        encoder_blocks=1,
        decoder_blocks=1,
    )
    return random_state(VQVAE(config), seed)


def levels(sides: tuple[int, ...], first: int = 1) -> torch.Tensor:
    """``lvl_1L``: the scale of every token."""
    counts = [first, *(side**2 for side in sides[1:])]
    return torch.cat([torch.full((n,), k) for k, n in enumerate(counts)])


def training_mask(level: torch.Tensor, causal: bool) -> torch.Tensor:
    """``attn_bias_for_masking``."""
    seen = level[:, None] >= level if causal else level[:, None] == level
    return torch.where(seen, 0.0, -torch.inf)[None, None]


def switti_states(
    depth: int = 2,
    width: int = 64,
    sides: tuple[int, ...] = (1, 2, 3, 4),
    causal: bool = False,
    seed: int = 0,
    **more: object,
) -> tuple[State, State]:
    """A random Switti with 40 wide text features and 24 wide pooled ones, and its tokenizer."""
    config = SwittiConfig(
        *(depth, width, max(1, width // 64), 48, 32, 24, 40, int(width * 8 / 3), sides, causal),
        **more,  # type: ignore[arg-type]
    )
    state = random_state(SwittiTransformer(config), seed)
    level = levels(sides)
    state["lvl_1L"], state["attn_bias_for_masking"] = level[None], training_mask(level, causal)
    return state, tokenizer_state(48, seed + 1)


def star_states(
    depth: int = 2,
    width: int = 64,
    heads: int = 2,
    sides: tuple[int, ...] = (1, 2, 3, 4),
    seed: int = 0,
) -> tuple[State, State]:
    """A random STAR with text features of width 24, and its tokenizer."""
    config = STARConfig(depth, width, heads, 48, 32, 24, 4 * width, sides)
    state = random_state(STARTransformer(config), seed)
    for name in state:
        if name.endswith("scale_mul_1H11"):  # past log(100), so that the clamp is exercised
            state[name] = torch.linspace(0.5, 6.0, heads).view(1, heads, 1, 1)
    state["class_emb.weight"] = torch.zeros(11, width)
    return state, tokenizer_state(48, seed + 1)


def hart_states(
    depth: int = 2,
    width: int = 64,
    heads: int = 2,
    sides: tuple[int, ...] = (1, 2, 3, 4),
    tokens: int = 7,
    seed: int = 0,
    **more: object,
) -> tuple[State, State]:
    """A random HART with ``tokens`` text tokens of width 24, and its tokenizer."""
    config = HARTConfig(
        *(depth, width, heads, 48, 32, tokens, 24, 4 * width, sides, 32, 2),
        **more,  # type: ignore[arg-type]
    )
    state = random_state(HARTTransformer(config), seed)
    for name in state:
        if name.endswith("scale_mul_1H11"):  # past log(100), so that the clamp is exercised
            state[name] = torch.linspace(0.5, 6.0, heads).view(1, heads, 1, 1)
    level = levels(sides, first=tokens)
    state["lvl_1L"], state["attn_bias_for_masking"] = level[None], training_mask(level, True)
    return state, tokenizer_state(48, seed + 1)


def text_features(batch: int, context: int, pooled: int, tokens: int = 7, seed: int = 3) -> State:
    """Features of ``batch`` prompts of different lengths and of the empty one."""
    generator = torch.Generator().manual_seed(seed)
    length = torch.arange(batch)[:, None] % (tokens - 1) + 2
    return {
        "context": torch.randn(batch, tokens, context, generator=generator),
        "pooled": torch.randn(batch, pooled, generator=generator),
        "mask": torch.arange(tokens) < length,
        "null_context": torch.randn(1, tokens, context, generator=generator),
        "null_pooled": torch.randn(1, pooled, generator=generator),
        "null_mask": torch.arange(tokens)[None] < 2,
    }


def take(features: State, images: list[int]) -> State:
    """The features of some prompts."""
    return {n: t if n.startswith("null_") else t[images] for n, t in features.items()}
