"""HART, text-to-image (Tang et al., arXiv 2410.10812): text as scale 0, diffusion at the end.

Kept as trained: padded text is attended to like any token, the head pools the text over its
padding, positions of the picture continue behind the last word, so the two branches turn by
different angles, and the last scale is guided with the strength of the one before it.
Shapes: B images, rows = B or 2B, n tokens of a scale, T text tokens, C width, V codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ..checkpoint.weights import block_count, complete, scale_sizes, square_sides
from ..errors import CheckpointError, StagevarError, UnsupportedModelError
from ..kernels.heads import Rotation
from ..kernels.linear import Linear
from ..kernels.norms import Residual
from ..model.inputs import finite, integer, shown, tensor
from ..model.kvcache import KVCache, empty_caches
from ..model.protocol import Conditioning, Positions, ScaleSpec, State
from ..model.sampling import Drawn, Noise, Sampling, ScaleSampling
from .parts.codebook import CodebookModel
from .parts.diffusion import DiffusionHead, NumberEmbedding, denoising_steps
from .parts.layers import Attention, FeedForward, GatedFeedForward, Head, RMSNorm, ada_linear
from .parts.rope import at_positions, grid_angles, text_angles
from .parts.text_inputs import checked_mask, checked_text
from .tokenizers.vqvae import VQVAE

UNUSED_BUFFERS = ("lvl_1L", "attn_bias_for_masking")
FLOAT32 = ("head", "head_nm", "decoder_norm", "diffloss")
Modulation = tuple[Tensor, ...] | None


@dataclass(frozen=True)
class HARTConfig:
    """What tensors tell, and pooling and diffusion steps of ``config.json``."""

    depth: int
    width: int
    heads: int
    vocabulary: int
    code_width: int
    context_tokens: int
    context_width: int
    hidden: int
    sides: tuple[int, ...]
    diffusion_width: int
    diffusion_depth: int
    modulation: Literal["table", "linear", "none"] = "table"
    gated: bool = True
    l2_norm: bool = True
    context_norm: bool = True
    level_numbers: bool = True
    pooling: str = "max"
    diffusion_steps: int = 8

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], said: Mapping[str, Any]) -> HARTConfig:
        """Read off the tensors' shapes and ``lvl_1L``; ``said`` is the content of config.json.

        Raises:
            CheckpointError: a tensor that every HART has is missing.
            UnsupportedModelError: a variant that was never published.
        """
        _refuse_variants(tensors)
        with complete("HART"):
            width, code_width = tensors["word_embed.weight"].shape
            counts = scale_sizes(tensors["lvl_1L"])
            scale_mul = tensors.get("blocks.0.attn.scale_mul_1H11")
            gated = "blocks.0.ffn.gate_proj.weight" in tensors
            heads = integer("num_heads", said.get("num_heads") or max(1, width // 64), 1, width)
            modulation: Literal["table", "linear", "none"] = "none"
            if "blocks.0.ada_lin.1.weight" in tensors:
                modulation = "linear"
            elif "blocks.0.scale_shift_table" in tensors:
                modulation = "table"
            return cls(
                depth=block_count(tensors, "blocks."),
                width=width,
                heads=heads if scale_mul is None else scale_mul.numel(),
                vocabulary=tensors["head.weight"].shape[0],
                code_width=code_width,
                context_tokens=counts[0],
                context_width=tensors["context_embed.weight"].shape[1],
                hidden=tensors[f"blocks.0.ffn.{'gate_proj' if gated else 'fc1'}.weight"].shape[0],
                sides=(1, *square_sides(counts[1:])),
                diffusion_width=tensors["diffloss.net.input_proj.weight"].shape[0],
                diffusion_depth=block_count(tensors, "diffloss.net.res_blocks."),
                modulation=modulation,
                gated=gated,
                l2_norm=scale_mul is not None,
                context_norm="context_norm.weight" in tensors,
                level_numbers="lvl_embed.mlp.0.weight" in tensors,
                pooling=_pooling(said.get("sep_aln_pooling_mode", "max")),
                diffusion_steps=integer(
                    "num_sampling_steps", _whole(said.get("num_sampling_steps", 8)), 1, 1000
                ),
            )


def _whole(said: Any) -> Any:
    """A whole number, which the publisher writes as text."""
    return int(said) if isinstance(said, str) and said.isdecimal() and len(said) < 9 else said


def _pooling(said: Any) -> str:
    if not isinstance(said, str):
        raise CheckpointError(f"sep_aln_pooling_mode is {shown(said)}, expected max or mean")
    return said


def _refuse_variants(tensors: Mapping[str, Tensor]) -> None:
    if "blocks.0.attn.mat_qkv.weight" in tensors or "pos_start" in tensors:
        raise UnsupportedModelError(
            "this HART has attention of type gpt2, which its own text-to-image loop cannot run "
            "either. Supported is the published attention of type llama"
        )
    if any(name.startswith("blocks.0.cross_attn.") for name in tensors):
        raise UnsupportedModelError(
            "this HART has cross-attention, a variant that was never published. "
            "Supported is the published model, whose text is the first scale"
        )


class Block(nn.Module):
    """Modulated attention and feed-forward behind one RMS norm they share."""

    def __init__(self, config: HARTConfig) -> None:
        super().__init__()
        c = config.width
        self.attn = Attention(c, config.heads, config.l2_norm, "qkv_proj", "halves")
        self.ffn = (GatedFeedForward if config.gated else FeedForward)(c, config.hidden)
        self.ln_wo_grad = RMSNorm(c)  # it has a weight, its name notwithstanding
        if config.modulation == "table":
            self.scale_shift_table = nn.Parameter(torch.zeros(6, c))
        elif config.modulation == "linear":
            self.ada_lin = ada_linear(c, 6)

    def forward(
        self, x: Residual, modulation: Modulation, rotation: Rotation, cache: KVCache
    ) -> None:
        gamma1, gamma2, scale1, scale2, shift1, shift2 = modulation or (None,) * 6
        norm = self.ln_wo_grad.spec
        y = self.attn(x.normed(norm, scale1, shift1), cache, rotation)
        x.add(y, gamma1, stepwise=True)
        x.add(self.ffn(x.normed(norm, scale2, shift2)), gamma2, stepwise=True)


class NormedHead(Head):
    """The head's modulation, with the norm before it."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.ln_wo_grad = RMSNorm(width)


class Transformer(nn.Module):
    """The modules of a HART checkpoint, under their published names."""

    def __init__(self, config: HARTConfig) -> None:
        super().__init__()
        c = config.width
        self.word_embed = Linear(config.code_width, c)
        self.context_embed = Linear(config.context_width, c)
        if config.context_norm:
            self.context_norm = RMSNorm(config.context_width)
        self.lvl_embed: nn.Module = (
            NumberEmbedding(c) if config.level_numbers else nn.Embedding(len(config.sides), c)
        )
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.head_nm, self.head = NormedHead(c), Linear(c, config.vocabulary)
        self.decoder_norm = RMSNorm(c)
        self.diffloss = DiffusionHead(
            config.code_width, c, config.diffusion_width, config.diffusion_depth
        )


class HART(CodebookModel):
    """A HART transformer with its hybrid tokenizer, speaking the model protocol."""

    family = "hart"
    tokenizer_patterns = ("../tokenizer", "tokenizer")
    unused_tensors = UNUSED_BUFFERS
    config_type, network_type = HARTConfig, Transformer
    float32 = FLOAT32

    def __init__(
        self, config: HARTConfig, transformer: Transformer, tokenizer: VQVAE, dtype: torch.dtype
    ) -> None:
        super().__init__(config, transformer, tokenizer, dtype)
        self.info = replace(
            self.info,
            guidance_held=True,
            inputs=("context", "mask"),
            notes=("hart ends in a diffusion stage: the last scale runs on all its tokens",),
        )
        late = max(0, len(config.sides) - 7)
        self.default_sampling = Sampling(
            guidance=4.5, top_k=(600,) * 7 + (300,) * late, smooth_from=0
        )
        self._levels = transformer.lvl_embed(torch.arange(len(config.sides), device=self.device))
        self._steps = denoising_steps(config.diffusion_steps)
        for block in transformer.blocks:
            block.attn.prepare()  # type: ignore[operator,union-attr]

    @staticmethod
    def recognise(names: Mapping[str, Any]) -> bool:
        """Whether tensor names are a HART's."""
        return {"diffloss.net.input_proj.weight", "context_embed.weight"} <= names.keys()

    def scales(self) -> tuple[ScaleSpec, ...]:
        """The schedule the checkpoint was trained with: text first, diffusion last."""
        specs = list(super().scales())
        specs[0] = ScaleSpec(0, 1, 1, self.config.context_tokens)
        last = specs[-1]
        specs[-1] = ScaleSpec(last.index, last.height, last.width, last.tokens, "final")
        return tuple(specs)

    def condition(self, context: Tensor, mask: Tensor) -> Conditioning:
        """Features of the prompts; the null branch needs none.

        Args:
            context: ``(B, T, 1536)``, the last hidden state of Qwen2-VL-1.5B-Instruct behind the
                published system prompt; T is exactly what the model was trained with, 300.
            mask: ``(B, T)``, True where there is a token. Positions count these tokens.

        Raises:
            StagevarError: a shape is wrong or a prompt has no token.
        """
        context = tensor("context", context)
        batch, tokens = context.shape[0] if context.ndim else 0, self.config.context_tokens
        context = checked_text("context", context, batch, self.config.context_width)
        if context.shape[1] != tokens:
            raise StagevarError(
                f"context has {context.shape[1]} tokens, expected {tokens}, padding included: "
                "the text is the model's first scale"
            )
        mask = checked_mask("mask", mask, context.shape[:2], batch).expand(batch, -1)
        finite("context", context)  # padding too: the pooled text is the highest over all of it
        position = mask.long().cumsum(1) - 1
        first = torch.zeros_like(mask)
        first[:, 0] = True
        return Conditioning(
            {"context": context, "mask": mask, "position": position},
            {
                "context": torch.zeros_like(context),
                "mask": first,
                "position": torch.zeros_like(position),
            },
        )

    def begin(
        self, conditioning: Conditioning, scales: tuple[ScaleSpec, ...], noise: Noise, guided: bool
    ) -> State:
        """Embed the text and compute every block's modulation, once for all scales."""
        t, given = self.transformer, conditioning.rows(guided)
        context = given["context"].to(self.dtype)
        text = t.context_embed(t.context_norm(context) if self.config.context_norm else context)
        share = given["mask"].to(text.dtype)
        share = share / share.sum(1, keepdim=True)
        average = (text * share[..., None]).sum(1)
        highest = text.amax(1)  # over the padding too, as trained
        pooled = highest if self.config.pooling == "max" else average
        head = t.head_nm.ada_lin(highest.float()).unflatten(1, (1, 2, -1))
        return State.fresh(
            *(conditioning, scales, noise, guided),
            kv=empty_caches(self.config.depth),
            rows={
                "text": text,
                "position": given["position"],
                "blocks": [self._modulation(b, average, pooled) for b in t.blocks],
                "head": head,
            },
            canvas=self.blank_canvas(conditioning.batch, scales[-1]),
        )

    def _modulation(self, block: Any, average: Tensor, pooled: Tensor) -> Modulation:
        """Six ``(rows, 1, C)``: gamma1, gamma2, 1 + scale1, 1 + scale2, shift1, shift2."""
        if self.config.modulation == "none":
            return None
        if self.config.modulation == "table":
            six = (block.scale_shift_table + average[:, None]).split(1, dim=1)
        else:
            six = block.ada_lin(pooled).unflatten(1, (1, 6, -1)).unbind(2)
        gamma1, gamma2, scale1, scale2, shift1, shift2 = six
        return gamma1, gamma2, 1 + scale1, 1 + scale2, shift1, shift2

    def embed(self, state: State, scale: ScaleSpec) -> Tensor:
        """Scale 0: the text; later: the canvas so far, shrunk to this scale."""
        width = self.config.width // self.config.heads
        position, level = state.rows["position"], self._levels[scale.index]
        if scale.index == 0:
            angles = text_angles(position, width)
            x = state.rows["text"] + level
        else:
            angles = grid_angles(scale.height, self.config.sides[-1], position[:, -1], width)
            x = self.embed_canvas(state, scale, level)
        state.rows["rotation"] = (angles.cos(), angles.sin())
        return x

    def run(
        self, state: State, scale: ScaleSpec, x: Tensor, blocks: range, positions: Positions = None
    ) -> Tensor:
        """Blocks ``blocks`` on all tokens, or on those at ``positions`` ``(rows, m)``."""
        rotation = at_positions(state.rows["rotation"], positions)
        stream = Residual(x, self.kernels)
        for i in blocks:
            self.transformer.blocks[i](stream, state.rows["blocks"][i], rotation, state.kv[i])
        return stream.value()

    def logits(self, state: State, scale: ScaleSpec, x: Tensor) -> Tensor:
        """``(rows, n, V)``; at scale 0 of every text token, of which the last one counts."""
        t = self.transformer
        state.rows.pop("rotation", None)
        if scale.kind == "final":
            state.extra["hidden"] = x.float()
        norm = t.head_nm.ln_wo_grad.spec
        return t.head(t.head_nm.normed(x.float(), state.rows["head"], norm))

    def sample(
        self, state: State, scale: ScaleSpec, logits: Tensor, sampling: ScaleSampling
    ) -> Drawn:
        """Ids ``(B, n)``; one id at scale 0."""
        return super().sample(
            state, scale, logits[:, -1:] if scale.index == 0 else logits, sampling
        )

    def advance(self, state: State, scale: ScaleSpec, drawn: Drawn) -> None:
        """Add the codes to the canvas; at the last scale without phi, with a drawn residual."""
        if scale.kind != "final":
            super().advance(state, scale, drawn)
            return
        codes = self.codes(drawn) + self._residual(state, scale, drawn.ids)
        laid_out = codes.transpose(1, 2).unflatten(2, (scale.height, scale.width))
        state.canvas = state.canvas + laid_out

    def _residual(self, state: State, scale: ScaleSpec, ids: Tensor) -> Tensor:
        """What the diffusion head draws on top of the codes, ``(B, n, C)``."""
        t, branches = self.transformer, len(state.branches)
        chosen = t.word_embed(self.tokenizer.embed(ids).to(self.dtype)).float()
        z = t.decoder_norm(state.extra.pop("hidden") + chosen.repeat(branches, 1, 1)).flatten(0, 1)
        strength = None if state.weights is None else -state.weights[1]
        if strength == 1.0:  # as published, 1 exactly switches the head's guidance off
            strength, z = None, z[: z.shape[0] // branches]
        normal = state.noise.normal(scale.index, scale.tokens, branches, strength is not None)
        drawn = t.diffloss.draw(z, strength, self._steps, normal)
        return drawn.unflatten(0, (state.batch, scale.tokens))
