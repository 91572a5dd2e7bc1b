"""VAR, class-conditional (Tian et al., arXiv 2404.02905): every published size, one class.

Shapes: B images, rows = B or 2B, n tokens of a scale, C width, H heads, c head dim, V codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint.reader import Checkpoint
from ..checkpoint.weights import block_count, complete, scale_sizes, square_sides
from ..errors import CheckpointError, StagevarError
from ..kernels.linear import WHOLE, Linear, LowRankLayers
from ..kernels.norms import PLAIN, Residual
from ..model.inputs import labels as checked_labels
from ..model.inputs import parse_sides, shown
from ..model.kvcache import KVCache, empty_caches
from ..model.protocol import Conditioning, Positions, ScaleSpec, State
from ..model.sampling import Noise, Sampling
from ..options.low_rank import Layer, LowRank
from ..options.precision import Precisions
from .parts.codebook import CodebookModel
from .parts.layers import Attention, FeedForward, Head, ada_linear
from .tokenizers.vqvae import VQVAE

UNUSED_BUFFERS = ("lvl_1L", "attn_bias_for_masking")  # rebuilt, or training only
Modulation = tuple[Tensor, ...]  # six of (rows, 1, C): gamma1, gamma2, 1 + scale1, 1 + scale2, ...


@dataclass(frozen=True)
class VARConfig:
    """Everything the tensors of a checkpoint tell."""

    depth: int
    width: int
    heads: int
    classes: int
    vocabulary: int
    code_width: int
    sides: tuple[int, ...]
    hidden: int
    shared_adaln: bool
    l2_norm: bool

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, Tensor], said: Mapping[str, Any] | None = None
    ) -> VARConfig:
        """Read the configuration off the tensors' shapes and ``lvl_1L``'s values.

        ``said``: ``patch_nums`` where there is no ``lvl_1L``, as in an average of parameters.

        Raises:
            CheckpointError: a tensor that every VAR has is missing.
        """
        said = said or {}
        with complete("VAR"):
            width, code_width = tensors["word_embed.weight"].shape
            scale_mul = tensors.get("blocks.0.attn.scale_mul_1H11")
            return cls(
                depth=block_count(tensors, "blocks."),
                width=width,
                heads=scale_mul.numel() if scale_mul is not None else max(1, width // 64),
                classes=tensors["class_emb.weight"].shape[0] - 1,
                vocabulary=tensors["head.weight"].shape[0],
                code_width=code_width,
                sides=_sides(tensors, said.get("patch_nums")),
                hidden=tensors["blocks.0.ffn.fc1.weight"].shape[0],
                shared_adaln="shared_ada_lin.1.weight" in tensors,
                l2_norm=scale_mul is not None,
            )


def _sides(tensors: Mapping[str, Tensor], asked: Any) -> tuple[int, ...]:
    """The side of every scale: of ``lvl_1L``, or as asked where a file holds parameters alone."""
    length = tensors["pos_1LC"].shape[1]
    if "lvl_1L" in tensors:
        sides = square_sides(scale_sizes(tensors["lvl_1L"]))
        if asked is not None and parse_sides(asked) != sides:
            raise StagevarError(f"patch_nums is {shown(asked)}, this file was trained with {sides}")
    elif asked is None:
        raise CheckpointError(
            "tensor lvl_1L is missing, as in an average of parameters: pass the side of every "
            "scale, options={'patch_nums': '1_2_3_4_5_6_8_10_13_16'} (--option patch_nums=1_2_3)"
        )
    else:
        sides = parse_sides(asked)
    levels = tensors["lvl_embed.weight"].shape[0]
    if len(sides) != levels or sum(side**2 for side in sides) != length:
        raise CheckpointError(
            f"scales of sides {sides} do not fit {levels} levels and {length} positions"
        )
    return sides


class Block(nn.Module):
    """Attention and feed-forward, each modulated by the condition (AdaLN)."""

    def __init__(self, config: VARConfig) -> None:
        super().__init__()
        self.attn = Attention(config.width, config.heads, config.l2_norm)
        self.ffn = FeedForward(config.width, config.hidden)
        if config.shared_adaln:
            self.ada_gss = nn.Parameter(torch.zeros(1, 1, 6, config.width))
        else:
            self.ada_lin = ada_linear(config.width, 6)

    def modulation(self, condition: Tensor, shared: Tensor | None) -> Modulation:
        """Six ``(rows, 1, C)``: gamma1, gamma2, 1 + scale1, 1 + scale2, shift1, shift2."""
        if shared is not None:
            six = self.ada_gss + shared
        else:
            six = self.ada_lin(condition).unflatten(1, (1, 6, -1))
        gamma1, gamma2, scale1, scale2, shift1, shift2 = six.unbind(2)
        return gamma1, gamma2, scale1 + 1, scale2 + 1, shift1, shift2

    def products(self) -> dict[str, Layer]:
        """Every linear layer."""
        fc2 = self.ffn.fc2
        return {**self.layers(), "fc2": Layer(fc2, fc2.weight, fc2.bias)}

    def layers(self) -> dict[str, Layer]:
        """The layers that features can narrow."""
        attn, fc1 = self.attn, self.ffn.fc1
        return {
            "qkv": Layer(attn, getattr(attn, attn.projection).weight, attn.qkv_bias),
            "proj": Layer(attn.proj, attn.proj.weight, attn.proj.bias),
            "fc1": Layer(self.ffn, fc1.weight, fc1.bias),
        }

    def forward(
        self, x: Residual, modulation: Modulation, cache: KVCache, narrow: LowRankLayers = WHOLE
    ) -> None:
        gamma1, gamma2, scale1, scale2, shift1, shift2 = modulation
        x.add(self.attn(x.normed(PLAIN, scale1, shift1), cache, narrow=narrow), gamma1)
        x.add(self.ffn(x.normed(PLAIN, scale2, shift2), narrow), gamma2)


class Transformer(nn.Module):
    """The modules of a VAR checkpoint, under their published names."""

    def __init__(self, config: VARConfig) -> None:
        super().__init__()
        c, length = config.width, sum(side**2 for side in config.sides)
        self.pos_start = nn.Parameter(torch.zeros(1, config.sides[0] ** 2, c))
        self.pos_1LC = nn.Parameter(torch.zeros(1, length, c))
        self.word_embed = Linear(config.code_width, c)
        self.class_emb = nn.Embedding(config.classes + 1, c)
        self.lvl_embed = nn.Embedding(len(config.sides), c)
        if config.shared_adaln:
            self.shared_ada_lin = ada_linear(c, 6)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.head_nm = Head(c)
        self.head = Linear(c, config.vocabulary)


class VAR(CodebookModel):
    """A VAR transformer with its tokenizer, speaking the model protocol."""

    family = "var"
    tokenizer_patterns = ("vae_*.pth", "vae_*.safetensors")
    unused_tensors = UNUSED_BUFFERS
    config_type, network_type = VARConfig, Transformer
    float32 = ("head", "head_nm")
    options = ("patch_nums",)

    def __init__(
        self, config: VARConfig, transformer: Transformer, tokenizer: VQVAE, dtype: torch.dtype
    ) -> None:
        super().__init__(config, transformer, tokenizer, dtype)
        for block in transformer.blocks:
            block.attn.prepare()  # type: ignore[operator,union-attr]
        layers = [block.layers() for block in self.blocks]  # type: ignore[operator]
        self.low_rank = LowRank(layers, self.info.groups)
        self.precisions = Precisions([block.products() for block in self.blocks])  # type: ignore[operator]
        self.info = replace(self.info, classes=config.classes, layers=self.low_rank.widths)
        self.default_sampling = Sampling(guidance=1.5, top_k=900, top_p=0.96)
        starts = [0]
        for side in config.sides:
            starts.append(starts[-1] + side**2)
        level = torch.cat(
            [torch.full((side**2,), k, device=self.device) for k, side in enumerate(config.sides)]
        )
        position = transformer.pos_1LC + transformer.lvl_embed(level)
        self._positions = [position[:, a:b] for a, b in pairwise(starts)]

    @staticmethod
    def recognise(names: Mapping[str, Any]) -> bool:
        """Whether tensor names are a class-conditional VAR's."""
        return {"class_emb.weight", "lvl_embed.weight", "pos_1LC"} <= names.keys() and (
            "blocks.0.attn.mat_qkv.weight" in names and "head_nm.ada_lin.1.weight" in names
        )

    @staticmethod
    def settings(opened: Checkpoint, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """The options: a config.json says nothing of VAR."""
        return options

    def condition(self, labels: Any) -> Conditioning:
        """Class labels in [0, classes): one, or any list, array or tensor of them."""
        labels = checked_labels(labels, self.config.classes)
        null = torch.full_like(labels, self.config.classes)
        return Conditioning({"labels": labels}, {"labels": null})

    def begin(
        self, conditioning: Conditioning, scales: tuple[ScaleSpec, ...], noise: Noise, guided: bool
    ) -> State:
        """Embed the labels and compute every block's modulation, once for all scales."""
        t = self.transformer
        condition = t.class_emb(conditioning.rows(guided)["labels"])  # (rows, C)
        shared = (
            t.shared_ada_lin(condition).unflatten(1, (1, 6, -1))
            if self.config.shared_adaln
            else None
        )
        return State.fresh(
            *(conditioning, scales, noise, guided),
            kv=empty_caches(self.config.depth),
            rows={
                "condition": condition,
                "blocks": [b.modulation(condition, shared) for b in t.blocks],
                "head": t.head_nm.ada_lin(condition.float()).unflatten(1, (1, 2, -1)),
            },
            canvas=self.blank_canvas(conditioning.batch, scales[-1]),
        )

    def embed(self, state: State, scale: ScaleSpec) -> Tensor:
        """Scale 0: the class; later: the canvas so far, shrunk to this scale. Positions added."""
        position = self._positions[scale.index]
        if scale.index == 0:
            start = state.rows["condition"][:, None] + self.transformer.pos_start
            return (start + position).to(self.dtype)
        return self.embed_canvas(state, scale, position)

    def run(
        self, state: State, scale: ScaleSpec, x: Tensor, blocks: range, positions: Positions = None
    ) -> Tensor:
        """Positions are in ``x`` already, so a subset of tokens needs none."""
        stream = Residual(x, self.kernels)
        for i in blocks:
            narrow = state.narrow.get(i, WHOLE)
            self.transformer.blocks[i](stream, state.rows["blocks"][i], state.kv[i], narrow)
        return stream.value()

    def logits(self, state: State, scale: ScaleSpec, x: Tensor) -> Tensor:
        """``(rows, n, V)``."""
        t = self.transformer
        return t.head(t.head_nm.normed(x.float(), state.rows["head"]))
