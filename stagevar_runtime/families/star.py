"""STAR, text-to-image (Ma et al., arXiv 2406.10797): d16 and d30, 256 to 1024 pixels.

Kept as trained: in every block all rows of the batch receive the cross-attention of row 0. With
one prompt a batch, as published, that is the cond row; so here the null row of an image gets the
cross-attention of its cond row, and a batch equals its images one at a time. Guidance therefore
differs by the pooled text at the first scale alone, and the null row cannot run without its cond
row. Shapes: B images, rows = B or 2B, n tokens of a scale, T text tokens, C width, V codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint.reader import Checkpoint
from ..checkpoint.weights import block_count, complete
from ..errors import StagevarError, UnsupportedModelError
from ..kernels.heads import Rotation
from ..kernels.linear import Linear
from ..kernels.norms import PLAIN, Residual
from ..model.inputs import number, parse_sides, plain, shown
from ..model.kvcache import KVCache, empty_caches
from ..model.protocol import Conditioning, Positions, ScaleSpec, State
from ..model.sampling import Noise, Sampling
from .parts.codebook import TextCodebookModel
from .parts.layers import Attention, FeedForward, TextAttention
from .parts.rope import at_positions, axial_angles
from .parts.text_inputs import additive
from .tokenizers.vqvae import VQVAE

SCHEDULES = {
    256: (1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
    512: (1, 2, 3, 4, 6, 9, 13, 18, 24, 32),
    1024: (1, 2, 3, 4, 5, 7, 9, 12, 16, 21, 27, 36, 48, 64),
}
UNUSED = ("class_emb.weight", "lvl_1L", "attn_bias_for_masking")  # trained along, never read
GUESSED = (
    "10 scales do not tell 256 from 512 pixels, 256 was taken: pass "
    "options={'resolution': 512} for the other"
)
LEAK = (
    "star adds the cross-attention of the cond row to the null row too, as its weights were "
    "trained: prompts of a batch are kept apart, and the null branch cannot run alone"
)


@dataclass(frozen=True)
class STARConfig:
    """What tensors tell, and what options do: the schedule, ``rope_norm``, ``logit_norm``."""

    depth: int
    width: int
    heads: int
    vocabulary: int
    code_width: int
    context_width: int
    hidden: int
    sides: tuple[int, ...]
    l2_norm: bool = True
    levels: bool = True
    logit_norm: bool = True
    rope_norm: float = 64.0
    rope_theta: float = 10000.0

    @property
    def pooled_width(self) -> int:
        """Pooled text is as wide as hidden states."""
        return self.context_width

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], options: Mapping[str, Any]) -> STARConfig:
        """Read off the tensors' shapes; ``options`` say what these do not (see :class:`STAR`).

        Raises:
            CheckpointError: a tensor that every STAR has is missing.
            UnsupportedModelError: a variant that was trained otherwise.
        """
        _refuse_variants(tensors)
        with complete("STAR"):
            width, code_width = tensors["word_embed.weight"].shape
            scale_mul = tensors.get("blocks.0.attn.scale_mul_1H11")
            levels = tensors.get("lvl_embed.weight")
            return cls(
                depth=block_count(tensors, "blocks."),
                width=width,
                heads=scale_mul.numel() if scale_mul is not None else max(1, width // 64),
                vocabulary=tensors["head_logits.weight"].shape[0],
                code_width=code_width,
                context_width=tensors["encoder_proj.weight"].shape[1],
                hidden=tensors["blocks.0.ffn.fc1.weight"].shape[0],
                sides=_schedule(None if levels is None else levels.shape[0], options),
                l2_norm=scale_mul is not None,
                levels=levels is not None,
                logit_norm=_switch("logit_norm", options.get("logit_norm", True)),
                rope_norm=_positive("rope_norm", options.get("rope_norm", 64.0)),
                rope_theta=_positive("rope_theta", options.get("rope_theta", 10000.0)),
            )


def _refuse_variants(tensors: Mapping[str, Tensor]) -> None:
    if any(name.startswith("feat_extract_blocks.") for name in tensors):
        raise UnsupportedModelError(
            "this is STAR's sampler variant (star-1024-sampler): its late scales are drawn by a "
            "masked predictor of their own, which is not implemented. Use star-1024"
        )
    odd = [n for n in ("pos_1LC", "blocks.0.ada_gss", "lvl_embed_proj.weight") if n in tensors]
    if odd or "blocks.0.cross_attn.mat_kv.weight" not in tensors:
        what = f"has {odd[0]}" if odd else "has no cross-attention"
        raise UnsupportedModelError(
            f"this STAR checkpoint {what}: an ablation that was never published. Supported are the "
            "published models, with rotary positions, cross-attention and no AdaLN"
        )


def _schedule(scales: int | None, options: Mapping[str, Any]) -> tuple[int, ...]:
    """The sides of all scales: given, of the resolution given, or guessed from their number."""
    resolution, sides = options.get("resolution"), options.get("patch_nums")
    if sides is None:
        if resolution is not None and str(plain(resolution)) not in map(str, SCHEDULES):
            raise StagevarError(f"resolution is {shown(resolution)}, expected 256, 512 or 1024")
        known = {len(s): r for r, s in reversed(SCHEDULES.items())}
        found = known.get(scales or 0) if resolution is None else int(plain(resolution))
        if found is None:
            raise UnsupportedModelError(
                f"STAR with {scales} scales: no published schedule has as many. "
                "Pass options={'patch_nums': [1, 2, ...]}"
            )
        sides = SCHEDULES[found]
    found_sides = parse_sides(sides)
    if scales is not None and len(found_sides) != scales:
        raise StagevarError(
            f"the schedule is {shown(sides)}, expected a side for each of the {scales} scales that "
            "lvl_embed holds"
        )
    return found_sides


def _switch(name: str, said: Any) -> bool:
    """True or false, also as text."""
    found = plain(said)
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if isinstance(found, (bool, int)) and found in (0, 1):
        return bool(found)
    if isinstance(found, str) and found.lower() in words:
        return words[found.lower()]
    raise StagevarError(f"{name} is {shown(said)}, expected true or false")


def _positive(name: str, said: Any) -> float:
    try:
        return number(name, float(said) if isinstance(said, str) else said, 0, open_low=True)
    except ValueError as error:
        raise StagevarError(f"{name} is {shown(said)}, expected a number above 0") from error


class Block(nn.Module):
    """Self-attention, cross-attention and feed-forward, each behind a plain layer norm."""

    def __init__(self, config: STARConfig) -> None:
        super().__init__()
        c, h = config.width, config.heads
        self.attn = Attention(c, h, config.l2_norm, rotate="pairs")
        self.cross_attn = TextAttention(c, h, config.context_width, config.l2_norm)
        self.ffn = FeedForward(c, config.hidden)

    def forward(
        self,
        x: Residual,
        batch: int,
        text: tuple[Tensor, Tensor],
        mask: Tensor,
        rotation: Rotation,
        cache: KVCache,
    ) -> None:
        x.add(self.attn(x.normed(), cache, rotation))
        x.add(self.cross_attn(x.normed(rows=batch), text, mask))  # null rows get their cond rows'
        x.add(self.ffn(x.normed()))


class Transformer(nn.Module):
    """The modules of a STAR checkpoint that inference reads, under their published names."""

    def __init__(self, config: STARConfig) -> None:
        super().__init__()
        c = config.width
        self.pos_start = nn.Parameter(torch.zeros(1, config.sides[0] ** 2, c))
        self.word_embed = Linear(config.code_width, c)
        if config.levels:
            self.lvl_embed = nn.Embedding(len(config.sides), c)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.head_logits = Linear(c, config.vocabulary)
        self.encoder_proj = Linear(config.context_width, c)


class STAR(TextCodebookModel):
    """A STAR transformer with its tokenizer, speaking the model protocol.

    Options: ``resolution`` 256, 512 or 1024 (tensors do not tell 256 from 512; 256 is taken),
    or ``patch_nums``, the side of every scale; ``rope_norm``, ``rope_theta`` and ``logit_norm``
    where they differ from every published configuration. Text is Stable Diffusion 2.1's CLIP's,
    1024 wide; of the empty prompt's only ``null_pooled`` reaches the result (see the module).
    """

    family = "star"
    draw_first = False
    tokenizer_patterns = ("[vV][aA][eE]*.pth", "[vV][aA][eE]*.safetensors")
    unused_tensors = UNUSED
    config_type, network_type = STARConfig, Transformer
    float32 = ("head_logits",)
    options = ("resolution", "patch_nums", "rope_norm", "rope_theta", "logit_norm")

    def __init__(
        self, config: STARConfig, transformer: Transformer, tokenizer: VQVAE, dtype: torch.dtype
    ) -> None:
        super().__init__(config, transformer, tokenizer, dtype)
        self.info = replace(self.info, rows_independent=False, notes=(LEAK,))
        self.default_sampling = Sampling(guidance=4.5, top_k=600, top_p=0.8)
        width = config.width // config.heads
        angles = [
            axial_angles(side, width, config.rope_norm, self.device, config.rope_theta)[None]
            for side in config.sides
        ]
        self._rotations: list[Rotation] = [(a.cos(), a.sin()) for a in angles]
        for block in transformer.blocks:
            block.attn.prepare()  # type: ignore[operator,union-attr]
            block.cross_attn.prepare()  # type: ignore[operator,union-attr]

    @staticmethod
    def recognise(names: Mapping[str, Any]) -> bool:
        """Whether tensor names are a STAR's, the sampler variant included."""
        return {"head_logits.weight", "encoder_proj.weight"} <= names.keys()

    @staticmethod
    def settings(opened: Checkpoint, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """What the caller says: these checkpoints come without a ``config.json``."""
        return options

    @staticmethod
    def guesses(config: STARConfig, said: Mapping[str, Any]) -> tuple[str, ...]:
        """The schedule, where tensors and options leave it open."""
        open_ = len(config.sides) == 10 and not {"resolution", "patch_nums"} & set(said)
        return (GUESSED,) if open_ else ()

    def begin(
        self, conditioning: Conditioning, scales: tuple[ScaleSpec, ...], noise: Noise, guided: bool
    ) -> State:
        """Project the pooled text and compute keys and values of the cond rows' text, once.

        These have B rows whether guided or not, so they stay in ``extra``.
        """
        t, cond = self.transformer, conditioning.cond
        context = cond["context"].to(self.dtype)
        return State.fresh(
            *(conditioning, scales, noise, guided),
            kv=empty_caches(self.config.depth),
            rows={"start": t.encoder_proj(conditioning.rows(guided)["pooled"].to(self.dtype))},
            canvas=self.blank_canvas(conditioning.batch, scales[-1]),
            extra={
                "text": [b.cross_attn.keys_values(context) for b in t.blocks],
                "mask": additive(cond["mask"], self.dtype),
            },
        )

    def embed(self, state: State, scale: ScaleSpec) -> Tensor:
        """Scale 0: the pooled text; later: the canvas so far, shrunk to this scale."""
        t = self.transformer
        level = t.lvl_embed.weight[scale.index] if self.config.levels else 0.0
        if scale.index == 0:
            return state.rows["start"][:, None] + t.pos_start + level
        return self.embed_canvas(state, scale, level)

    def run(
        self, state: State, scale: ScaleSpec, x: Tensor, blocks: range, positions: Positions = None
    ) -> Tensor:
        """Blocks ``blocks`` on all tokens, or on those at ``positions`` ``(rows, m)``, which must
        be the same in both rows of an image."""
        rotation = at_positions(self._rotations[scale.index], positions)
        text, mask = state.extra["text"], state.extra["mask"]
        stream = Residual(x, self.kernels)
        for i in blocks:
            block = self.transformer.blocks[i]
            block(stream, state.batch, text[i], mask, rotation, state.kv[i])
        return stream.value()

    def logits(self, state: State, scale: ScaleSpec, x: Tensor) -> Tensor:
        """``(rows, n, V)``."""
        x = x.float()
        return self.transformer.head_logits(PLAIN(x) if self.config.logit_norm else x)
