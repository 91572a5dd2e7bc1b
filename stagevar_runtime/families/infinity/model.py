"""Infinity, text-conditional, one bit a channel (Han et al., arXiv 2412.04431): every size.

Shapes: B images, rows = B or 2B, n tokens of a scale, T text tokens, C width, d bits a token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from ...checkpoint.reader import Checkpoint
from ...checkpoint.weights import load_exactly
from ...errors import CheckpointError, StagevarError, UnsupportedModelError
from ...kernels.heads import Rotation
from ...kernels.linear import WHOLE
from ...kernels.norms import Residual
from ...model.kvcache import empty_caches
from ...model.lru import LRU
from ...model.protocol import (
    Conditioning,
    ModelInfo,
    Positions,
    ScaleModel,
    ScaleSpec,
    State,
    split_depth,
    tile_on,
)
from ...model.sampling import Drawn, Noise, Sampling, ScaleSampling, draw
from ...options.low_rank import LowRank
from ...options.precision import Precisions
from ..parts.rope import at_positions, infinity_rotations
from ..tokenizers.bsq_vae import BSQVAE
from .blocks import InfinityConfig, Transformer
from .options import NAMES, PUBLISHED_NAMES, InfinityOptions, sampling_of
from .schedules import COUNTS, Schedule, full_extent, published_schedule, schedule_of_pixels
from .text import check_text, padded

GROUPS = 8  # groups of blocks where the file has no chunks
SCHEDULES_KEPT = 8  # sizes and aspect ratios whose rotations are kept
UNUSED_BUFFERS = (
    *("lvl_1L", "attn_bias_for_masking"),  # training only
    *("Infinity_visible_kvlen", "Infinity_invisible_qlen"),
)
FLOAT32 = (  # what the publishers keep in float32: all but the blocks
    *("cfg_uncond", "text_norm", "text_proj_for_sos", "text_proj_for_ca", "pos_start"),
    *("lvl_embed", "word_embed", "shared_ada_lin", "head_nm", "head"),
)


class Infinity(ScaleModel):
    """An Infinity transformer with its tokenizer, speaking the model protocol."""

    family = "infinity"
    tokenizer: BSQVAE
    blocks: list[Any]
    tokenizer_patterns = tuple(
        f"{folder}infinity_vae_*{suffix}"
        for folder in ("", "../")
        for suffix in (".pth", ".safetensors")
    )
    unused_tensors = UNUSED_BUFFERS
    options = (*NAMES, *PUBLISHED_NAMES)

    def __init__(
        self,
        config: InfinityConfig,
        transformer: Transformer,
        tokenizer: BSQVAE,
        dtype: torch.dtype,
        settings: InfinityOptions | None = None,
    ) -> None:
        self.config, self.transformer, self.tokenizer = config, transformer, tokenizer
        self.dtype, self.settings = dtype, settings or InfinityOptions()
        self._prepared: LRU[list[Rotation]] = LRU(SCHEDULES_KEPT)
        self.device = transformer.pos_start.device
        self.patchify = config.bits == 4 * tokenizer.bits
        self.blocks = list(transformer.in_order())
        for block in self.blocks:
            block.prepare()
        layers = [config.depth + i for i in self.settings.guidance_layer if i < 0]
        self._mixed_after, self._guides_logits = (
            frozenset(layers),
            0 in self.settings.guidance_layer,
        )
        chunks = config.chunk_ranges()
        self._level_before: frozenset[int] = frozenset()
        if self.settings.level == "chunk":
            self._level_before = frozenset(r.start for r in chunks or _singles(config.depth))
        groups = chunks or split_depth(config.depth, GROUPS)
        self.low_rank = LowRank([block.layers() for block in self.blocks], groups)
        self.precisions = Precisions([block.products() for block in self.blocks])
        self.info = ModelInfo(
            family=self.family,
            depth=config.depth,
            width=config.width,
            heads=config.heads,
            tile=tile_on(self.device),
            groups=groups,
            guidance="linear",
            guides_logits=self._guides_logits,
            inputs=("text", "mask"),
            optional_inputs=("null_text", "null_mask"),
            sizes=("aspect_ratio", "size", "height", "width"),
            bits=config.bits,
            native=self.settings.schedule or published_schedule(1.0, self.settings.native_size),
            layers=self.low_rank.widths,
            config={
                **asdict(config),
                "patchify": self.patchify,
                "rope": self.settings.rope,
                "level": self.settings.level,
                "guidance_layer": self.settings.guidance_layer,
            },
        )
        temperature = 1.0 if self.patchify else 0.5
        self.default_sampling = Sampling(guidance=3.0, temperature=temperature, top_p=0.97)

    @staticmethod
    def recognise(names: Mapping[str, Any]) -> bool:
        """Whether tensor names are a text-conditional Infinity's."""
        return {"text_proj_for_sos.ca.mat_q", "word_embed.weight", "cfg_uncond"} <= names.keys()

    @classmethod
    def from_checkpoint(
        cls,
        opened: Checkpoint,
        tokenizer: Checkpoint,
        device: torch.device,
        dtype: torch.dtype,
        options: Mapping[str, Any],
    ) -> Infinity:
        """Build from opened files.

        A folder or file whose name says 512x512, as published, defaults to size 0.25M. The header
        of a safetensors file may hold an own ``schedule`` and the defaults of sampling, under our
        prefix (``stagevar.schedule``).
        """
        codes = next(
            (tokenizer.parts[key] for key in ("vae", "ema") if key in tokenizer.parts),
            tokenizer.tensors,
        )
        size = "0.25M" if "512x512" in opened.path.name else "1M"
        said = opened.settings
        if "schedule" in said:
            options = {"schedule": said["schedule"], **options}
        model = cls.from_tensors(opened.tensors, codes, device, dtype, options, size)
        model.default_sampling = replace(model.default_sampling, **sampling_of(said))
        return model

    @classmethod
    def from_tensors(
        cls,
        tensors: Mapping[str, Tensor],
        tokenizer: Mapping[str, Tensor],
        device: torch.device,
        dtype: torch.dtype,
        options: Mapping[str, Any] | None = None,
        default_size: str = "1M",
    ) -> Infinity:
        """Build from published state dicts.

        Raises:
            CheckpointError: tensors are missing, left over or of the wrong shape, or the tokenizer
                has another number of bits.
            StagevarError: an option is unknown or out of range.
        """
        config = InfinityConfig.from_tensors(tensors)
        settings = InfinityOptions.parse(options or {}, config.depth, default_size)
        vae = BSQVAE.from_tensors(tokenizer)
        if config.bits not in (vae.bits, 4 * vae.bits):
            raise CheckpointError(
                f"the tokenizer has {vae.bits} bits a cell, the transformer expects {config.bits} "
                f"(or {config.bits / 4:g} in patches of 2x2): pass its own tokenizer"
            )
        scale = next(t for name, t in tensors.items() if name.endswith("sa.scale_mul_1H11"))
        with torch.device("meta"):
            transformer = Transformer(config, scale.shape)
        load_exactly(transformer, tensors, device, dtype, keep=FLOAT32, unused=UNUSED_BUFFERS)
        transformer.eval().requires_grad_(False)
        return cls(config, transformer, vae.to(device), dtype, settings)

    def scales(
        self,
        aspect_ratio: float | str | None = None,
        size: str | None = None,
        height: int | None = None,
        width: int | None = None,
    ) -> tuple[ScaleSpec, ...]:
        """A published schedule: the default one, or the nearest to what is asked.

        Args:
            aspect_ratio: height over width, near one of the 15 published ones, or ``"16:9"``.
            size: ``0.06M``, ``0.25M``, ``0.60M`` or ``1M`` pixels.
            height, width: pixels of the image instead, near those of a published one.

        Raises:
            StagevarError: nothing published is near, or both ways were used at once.
        """
        own = self.settings.schedule
        if own is not None:
            if (aspect_ratio, size, height, width) != (None, None, None, None):
                raise StagevarError(
                    f"this model draws {own[-1][0]}x{own[-1][1]} tokens only, expected no "
                    "aspect_ratio, size, height or width"
                )
            schedule = own
        elif height is None and width is None:
            ratio = self.settings.aspect_ratio if aspect_ratio is None else aspect_ratio
            schedule = published_schedule(ratio, self.settings.size if size is None else size)
        elif height is None or width is None or aspect_ratio is not None:
            raise StagevarError(
                f"got height {height}, width {width}, aspect_ratio {aspect_ratio}, expected "
                f"height and width, or aspect_ratio (with size: {', '.join(COUNTS)})"
            )
        else:
            schedule = schedule_of_pixels(height, width, size)
        return tuple(ScaleSpec(k, h, w, h * w) for k, (h, w) in enumerate(schedule))

    def condition(
        self,
        text: Tensor,
        mask: Tensor,
        null_text: Tensor | None = None,
        null_mask: Tensor | None = None,
    ) -> Conditioning:
        """Features of the prompts, and of what guidance leads away from.

        Args:
            text: ``(B, T, text width)`` floats, T5's last hidden state.
            mask: ``(B, T)``, true where a token is.
            null_text, null_mask: a negative prompt, ``(1 or B, T', text width)``; None is the
                learned null text, of each prompt's own length.

        Raises:
            StagevarError: shapes do not fit, a prompt is empty or too long.
        """
        text, mask = check_text("text", "mask", text, mask, self.config)
        text, mask = text.to(self.device), mask.to(self.device)
        if null_text is None and null_mask is None:
            learned = self.transformer.cfg_uncond[: mask.shape[1]].float()
            null = padded(learned.expand(len(text), -1, -1), mask, mask.shape[1])
            return Conditioning({"text": text, "mask": mask}, null)
        if null_text is None or null_mask is None:
            given = "null_text" if null_mask is None else "null_mask"
            raise StagevarError(f"got {given} alone, expected null_text and null_mask together")
        other, other_mask = check_text("null_text", "null_mask", null_text, null_mask, self.config)
        if len(other) not in (1, len(text)):
            raise StagevarError(f"null_text has {len(other)} prompts, expected 1 or {len(text)}")
        length = max(mask.shape[1], other_mask.shape[1])
        other = other.to(self.device).expand(len(text), -1, -1)
        other_mask = other_mask.to(self.device).expand(len(text), -1)
        return Conditioning(padded(text, mask, length), padded(other, other_mask, length))

    def begin(
        self, conditioning: Conditioning, scales: tuple[ScaleSpec, ...], noise: Noise, guided: bool
    ) -> State:
        """Read the text: pooled vector, modulations, keys and values of every block."""
        t, rows = self.transformer, conditioning.rows(guided)
        schedule = tuple((scale.height, scale.width) for scale in scales)
        if len(scales) > self.config.levels or scales[0].tokens != 1:
            raise StagevarError(
                f"got {len(scales)} scales from {schedule[0]}, expected up to "
                f"{self.config.levels} from (1, 1)"
            )
        length = -(-rows["mask"].shape[1] // self.text_tile) * self.text_tile
        rows = padded(rows["text"], rows["mask"], length)
        whole = self.text_tile == 1 and bool(rows["mask"].all())
        mask = None if whole else rows["mask"][:, None, None]
        text = t.text_norm(rows["text"])
        condition = t.text_proj_for_sos.ca.pool(text, mask)  # (rows, C)
        text = t.text_proj_for_ca(text).to(self.dtype)
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
                "mask": mask,
                "blocks": [block.modulation(condition, shared) for block in self.blocks],
                "text": [block.ca.keys_values(text) for block in self.blocks],
                "head": t.head_nm.ada_lin(condition).unflatten(1, (1, 2, -1)),
            },
            canvas=torch.zeros(
                conditioning.batch,
                self.tokenizer.bits,
                *self._cells(scales[-1]),
                device=self.device,
            ),
            extra={"rope": self._prepared.get(schedule, lambda: self._rotations(schedule))},
        )

    def _rotations(self, schedule: Schedule) -> list[Rotation]:
        head_dim = self.config.width // self.config.heads
        extent, mode = full_extent(schedule), self.settings.rope
        made = infinity_rotations(schedule, extent, head_dim, mode)
        return [(cos.to(self.device), sin.to(self.device)) for cos, sin in made]

    def _cells(self, scale: ScaleSpec) -> tuple[int, int]:
        """The tokenizer's grid of a scale: twice the tokens' where they are patches of 2x2."""
        fold = 2 if self.patchify else 1
        return scale.height * fold, scale.width * fold

    def embed(self, state: State, scale: ScaleSpec) -> Tensor:
        """Scale 0: the pooled text; later: the canvas so far at this scale. Level added."""
        t = self.transformer
        if scale.index == 0:
            x = state.rows["condition"][:, None] + t.pos_start
        else:
            grid = self.tokenizer.resize(state.canvas, self._cells(scale))
            if self.patchify:
                grid = torch.pixel_unshuffle(grid, 2)
            x = t.word_embed(grid.flatten(2).transpose(1, 2)).repeat(len(state.branches), 1, 1)
        return x if self._level_before else x + t.lvl_embed.weight[scale.index]

    def run(
        self, state: State, scale: ScaleSpec, x: Tensor, blocks: range, positions: Positions = None
    ) -> Tensor:
        """Every token is rotated by its own position, whichever tokens ``x`` holds."""
        rotation = at_positions(state.extra["rope"][scale.index], positions)
        rows, stream = state.rows, Residual(x, self.kernels)
        for i in blocks:
            if i in self._level_before:
                level = self.transformer.lvl_embed.weight[scale.index]
                stream = Residual(stream.value() + level, self.kernels)
            own = (rows["blocks"][i], rows["text"][i], rows["mask"])
            narrow = state.narrow.get(i, WHOLE)
            self.blocks[i](stream, *own, rotation, state.kv[i], narrow)
            if i in self._mixed_after and _guides(state):
                stream = Residual(_mixed(state, stream.value(), positions), self.kernels)
        return stream.value()

    def logits(self, state: State, scale: ScaleSpec, x: Tensor) -> Tensor:
        """``(rows, n, 2 · bits)``: a pair a bit."""
        t = self.transformer
        logits = t.head(t.head_nm.normed(x.float(), state.rows["head"]))
        if self._guides_logits or not _guides(state):
            return logits
        return logits[: state.batch].repeat(2, 1, 1)  # guided inside: the cond rows hold the result

    def sample(
        self, state: State, scale: ScaleSpec, logits: Tensor, sampling: ScaleSampling
    ) -> Drawn:
        """Bits ``(B, n, bits)``, in the order of the model's own channels."""
        bits, kernels = self.config.bits, self.kernels
        return draw(logits, sampling, state.noise, scale.index, bits, kernels)

    def advance(self, state: State, scale: ScaleSpec, drawn: Drawn) -> None:
        """Add the codes of the bits ``(B, n, bits)``, resized, to the canvas."""
        ids = drawn.ids
        if ids.ndim != 3 or ids.shape[2] != self.config.bits:
            raise StagevarError(
                f"ids of scale {scale.index} have shape {tuple(ids.shape)}, expected "
                f"({state.batch}, {scale.tokens}, {self.config.bits}): one bit a channel"
            )
        grid = ids.transpose(1, 2).unflatten(2, (scale.height, scale.width))
        if self.patchify:
            grid = torch.pixel_shuffle(grid, 2)
        codes = self.tokenizer.codes(grid.movedim(1, -1)).movedim(-1, 1)
        state.canvas = self.tokenizer.accumulate(state.canvas, codes)

    def decode(self, state: State) -> Tensor:
        """``(B, 3, H, W)`` in [0, 1]."""
        return self.tokenizer.decode(state.canvas)


def _singles(depth: int) -> tuple[range, ...]:
    return tuple(range(i, i + 1) for i in range(depth))


def _guides(state: State) -> bool:
    """Whether two branches are about to be combined with a strength that is not 1."""
    return state.guided and state.weights is not None and state.weights[1] != 0


def _mixed(state: State, x: Tensor, positions: Tensor | None) -> Tensor:
    """Guidance on a hidden state ``(2B, m, C)``: both branches go on from the combination."""
    if positions is not None:
        raise UnsupportedModelError(
            "guidance at a hidden layer combines the two branches token by token, but each branch "
            "kept tokens of its own. Drop guidance where tokens are reduced, or guide the logits "
            "(guidance_layer=0)"
        )
    assert state.weights is not None
    cond, null = x.chunk(2)
    return (state.weights[0] * cond + state.weights[1] * null).repeat(2, 1, 1)
