"""Switti, text-to-image (Voronov et al., arXiv 2412.01819): 256 to 1024 pixels, with or without AR.

Without AR a scale attends to itself alone, so nothing is cached and dropped guidance may return.
Shapes: B images, rows = B or 2B, n tokens of a scale, T text tokens, C width, V codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint.weights import block_count, complete, scale_sizes, square_sides
from ..errors import CheckpointError
from ..kernels.attention import attend
from ..kernels.heads import Heads, Rotation, split_heads
from ..kernels.linear import Linear
from ..kernels.norms import PLAIN, Residual
from ..kernels.slots import NONE, Kernels
from ..model.inputs import integer, number
from ..model.kvcache import KVCache, empty_caches
from ..model.protocol import Branch, Conditioning, Positions, ScaleSpec, State
from ..model.sampling import Noise, Sampling
from .parts.codebook import TextCodebookModel
from .parts.layers import (
    FeedForward,
    Fourier,
    GatedFeedForward,
    Head,
    RMSNorm,
    ada_linear,
    cached_heads,
)
from .parts.rope import at_positions, axial_angles
from .parts.text_inputs import additive

CROP = (512, 512, 0, 0)  # original height and width, crop corner: fixed at inference, as published
UNUSED_BUFFERS = ("lvl_1L", "attn_bias_for_masking")
Modulation = tuple[Tensor, ...]


@dataclass(frozen=True)
class SwittiConfig:
    """What tensors tell, and ``rope_size`` and ``rope_theta`` of ``config.json``."""

    depth: int
    width: int
    heads: int
    vocabulary: int
    code_width: int
    pooled_width: int
    context_width: int
    hidden: int
    sides: tuple[int, ...]
    causal: bool
    gated: bool = True
    rope: bool = True
    crop: bool = True
    rope_size: float = 128
    rope_theta: float = 10000

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], said: Mapping[str, Any]) -> SwittiConfig:
        """Read off the tensors' shapes, ``lvl_1L`` and the training mask; ``said`` is config.json.

        Raises:
            CheckpointError: a tensor that every Switti has is missing.
        """
        with complete("Switti"):
            width, code_width = tensors["word_embed.weight"].shape
            gated = "blocks.0.ffn.up_proj.weight" in tensors
            causal = said.get("use_ar")
            mask = tensors.get("attn_bias_for_masking")
            if mask is not None:  # does the last token see the first?
                causal = bool(mask[0, 0, -1, 0] == 0)
            if causal is None:
                raise CheckpointError(
                    "neither attn_bias_for_masking nor use_ar in config.json is there: cannot tell "
                    "Switti from Switti-AR. Load the published directory with its config.json"
                )
            return cls(
                depth=block_count(tensors, "blocks."),
                width=width,
                heads=integer("num_heads", said.get("num_heads", max(1, width // 64)), 1, width),
                vocabulary=tensors["head.weight"].shape[0],
                code_width=code_width,
                pooled_width=tensors["text_pooler.weight"].shape[1],
                context_width=tensors["blocks.0.cross_attn.to_kv.weight"].shape[1],
                hidden=tensors[f"blocks.0.ffn.{'up_proj' if gated else 'fc1'}.weight"].shape[0],
                sides=square_sides(scale_sizes(tensors["lvl_1L"])),
                causal=bool(causal),
                gated=gated,
                rope="pos_1LC" not in tensors,
                crop="crop_embed.weight" in tensors,
                rope_size=number("rope_size", said.get("rope_size", 128), 0, open_low=True),
                rope_theta=number("rope_theta", said.get("rope_theta", 10000), 0, open_low=True),
            )


class SelfAttention(nn.Module):
    """Attention within the scale, or with a cache also to earlier ones."""

    kernels: Kernels = NONE

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.how = Heads(heads, "whole", "pairs")
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.to_qkv, self.proj = Linear(width, 3 * width), Linear(width, width)

    def forward(self, x: Tensor, rotation: Rotation | None, cache: KVCache | None) -> Tensor:
        q, k, v = cached_heads(self.to_qkv(x), self.how, self.kernels, None, rotation, cache)
        return self.proj(attend(q, k, v, self.scale))


class CrossAttention(nn.Module):
    """Attention to the text, whose keys and values are computed once."""

    kernels: Kernels = NONE

    def __init__(self, width: int, heads: int, context: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.to_q, self.to_kv = Linear(width, width), Linear(context, 2 * width)
        self.proj = Linear(width, width)

    def keys_values(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """``(rows, H, T, c)`` each, of normed text ``(rows, T, context)``."""
        k, v = self.to_kv(text).chunk(2, dim=-1)
        k, v = (t.unflatten(2, (self.heads, -1)).transpose(1, 2) for t in (PLAIN(k), v))
        return k, v

    def forward(self, x: Tensor, text: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        (q,) = split_heads(self.to_q(x), Heads(self.heads, "whole", parts=1), self.kernels)
        return self.proj(attend(q, *text, self.scale, mask))


class Block(nn.Module):
    """Modulated self-attention, cross-attention, modulated feed-forward, each normed twice."""

    def __init__(self, config: SwittiConfig) -> None:
        super().__init__()
        c = config.width
        if config.crop:
            self.crop_cond_scales = nn.Parameter(torch.zeros(1, c))
        self.attn = SelfAttention(c, config.heads)
        self.cross_attn = CrossAttention(c, config.heads, config.context_width)
        self.ffn = (GatedFeedForward if config.gated else FeedForward)(c, config.hidden)
        self.self_attention_norm1, self.self_attention_norm2 = RMSNorm(c), RMSNorm(c)
        self.cross_attention_norm1, self.cross_attention_norm2 = RMSNorm(c), RMSNorm(c)
        self.ffn_norm1, self.ffn_norm2 = RMSNorm(c), RMSNorm(c)
        self.attention_y_norm = RMSNorm(config.context_width)
        self.ada_lin = ada_linear(c, 6)

    def modulation(self, condition: Tensor, crop: Tensor | None) -> Modulation:
        """Six ``(rows, 1, C)``: gamma1, gamma2, 1 + scale1, 1 + scale2, shift1, shift2."""
        if crop is not None:
            condition = condition + self.crop_cond_scales * crop
        six = self.ada_lin(condition).unflatten(1, (1, 6, -1)).unbind(2)
        gamma1, gamma2, scale1, scale2, shift1, shift2 = six
        return gamma1, gamma2, scale1 + 1, scale2 + 1, shift1, shift2

    def forward(
        self,
        x: Residual,
        modulation: Modulation,
        text: tuple[Tensor, Tensor],
        mask: Tensor,
        rotation: Rotation | None,
        cache: KVCache | None,
    ) -> None:
        gamma1, gamma2, scale1, scale2, shift1, shift2 = modulation
        y = self.attn(x.normed(self.self_attention_norm1.spec, scale1, shift1), rotation, cache)
        x.add(y, gamma1, self.self_attention_norm2.spec, stepwise=True)
        y = self.cross_attn(x.normed(self.cross_attention_norm1.spec), text, mask)
        x.add(y, None, self.cross_attention_norm2.spec)
        y = self.ffn(x.normed(self.ffn_norm1.spec, scale2, shift2))
        x.add(y, gamma2, self.ffn_norm2.spec, stepwise=True)


class Transformer(nn.Module):
    """The modules of a Switti checkpoint, under their published names."""

    def __init__(self, config: SwittiConfig) -> None:
        super().__init__()
        c = config.width
        self.pos_start = nn.Parameter(torch.zeros(1, config.sides[0] ** 2, c))
        if not config.rope:
            self.pos_1LC = nn.Parameter(torch.zeros(1, sum(s * s for s in config.sides), c))
        self.word_embed = Linear(config.code_width, c)
        self.text_pooler = Linear(config.pooled_width, c)
        self.lvl_embed = nn.Embedding(len(config.sides), c)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        if config.crop:
            self.crop_embed, self.crop_proj = Fourier(c // 8), Linear(c, c)
        self.head_nm, self.head = Head(c), Linear(c, config.vocabulary)

    def crop_condition(self) -> Tensor:
        """The published crop condition ``(1, C)``."""
        crop = torch.tensor(CROP, device=self.pos_start.device)
        return self.crop_proj(self.crop_embed(crop).reshape(1, -1))


class Switti(TextCodebookModel):
    """A Switti transformer with its tokenizer, speaking the model protocol.

    ``context`` ``(B, T, 2048)`` is CLIP ViT-L/14's last hidden state beside ViT-bigG/14's,
    ``pooled`` ``(B, 1280)`` bigG's pooler output, ``mask`` where bigG's tokenizer put a token.
    """

    family = "switti"
    draw_first = False
    tokenizer_patterns = ("../[vV][qQ][vV][aA][eE]*", "[vV][qQ][vV][aA][eE]*")
    unused_tensors = UNUSED_BUFFERS
    config_type, network_type = SwittiConfig, Transformer

    def __init__(
        self, config: SwittiConfig, transformer: Transformer, tokenizer: Any, dtype: torch.dtype
    ) -> None:
        super().__init__(config, transformer, tokenizer, dtype)
        self.info = replace(self.info, causal=config.causal)
        self.default_sampling = Sampling(guidance=6.0, top_k=400, top_p=0.95)
        if len(config.sides) == 14:  # README of Switti-1024; fewer scales: the pipeline's defaults
            self.default_sampling = Sampling(
                *(6.0, 1.0, 400, 0.95), smooth_from=2, guidance_off_from=11, temperature_off=0.1
            )
        self._levels = transformer.lvl_embed.weight[:, None]  # (S, 1, C)
        self._rotations = [self._rotation(side) for side in config.sides]
        ends = torch.tensor(config.sides).square().cumsum(0).tolist()
        self._starts = [0, *ends]

    def _rotation(self, side: int) -> Rotation | None:
        if not self.config.rope:
            return None
        width = self.config.width // self.config.heads
        extent, theta = self.config.rope_size, self.config.rope_theta
        angles = axial_angles(side, width, extent, self.device, theta)[None]
        return angles.cos(), angles.sin()

    @staticmethod
    def recognise(names: Mapping[str, Any]) -> bool:
        """Whether tensor names are a Switti's."""
        return {"text_pooler.weight", "blocks.0.self_attention_norm1.weight"} <= names.keys()

    def begin(
        self, conditioning: Conditioning, scales: tuple[ScaleSpec, ...], noise: Noise, guided: bool
    ) -> State:
        """Pool the text and compute every block's modulation, keys and values of text, once."""
        t, rows = self.transformer, conditioning.rows(guided)
        condition = t.text_pooler(rows["pooled"].to(self.dtype))
        context = rows["context"].to(self.dtype)
        crop = t.crop_condition() if self.config.crop else None
        return State.fresh(
            *(conditioning, scales, noise, guided),
            kv=empty_caches(self.config.depth) if self.config.causal else [],
            rows={
                "condition": condition,
                "blocks": [b.modulation(condition, crop) for b in t.blocks],
                "text": [b.cross_attn.keys_values(b.attention_y_norm(context)) for b in t.blocks],
                "mask": additive(rows["mask"], self.dtype),
                "head": t.head_nm.ada_lin(condition).unflatten(1, (1, 2, -1)),
            },
            canvas=self.blank_canvas(conditioning.batch, scales[-1]),
        )

    def embed(self, state: State, scale: ScaleSpec) -> Tensor:
        """Scale 0: the pooled text; later: the canvas so far, shrunk to this scale."""
        t, k = self.transformer, scale.index
        position = self._levels[k]
        if not self.config.rope:
            position = position + t.pos_1LC[:, self._starts[k] : self._starts[k + 1]]
        if k == 0:
            return state.rows["condition"][:, None] + t.pos_start + position
        return self.embed_canvas(state, scale, position)

    def run(
        self, state: State, scale: ScaleSpec, x: Tensor, blocks: range, positions: Positions = None
    ) -> Tensor:
        """Blocks ``blocks`` on all tokens, or on those at ``positions`` ``(rows, m)``."""
        rotation = self._rotations[scale.index]
        if rotation is not None:
            rotation = at_positions(rotation, positions)
        rows = state.rows
        stream = Residual(x, self.kernels)
        for i in blocks:
            cache = state.kv[i] if state.kv else None
            self.transformer.blocks[i](
                stream, rows["blocks"][i], rows["text"][i], rows["mask"], rotation, cache
            )
        return stream.value()

    def logits(self, state: State, scale: ScaleSpec, x: Tensor) -> Tensor:
        """``(rows, n, V)``; the head runs in the model's dtype, as published."""
        t = self.transformer
        return t.head(t.head_nm.normed(x, state.rows["head"])).float()

    def keep(self, state: State, branch: Branch | None) -> None:
        """Without AR nothing is cached, so both branches may come back."""
        if not self.config.causal:
            state.choose(branch)
        elif branch is not None:
            state.keep(branch)
