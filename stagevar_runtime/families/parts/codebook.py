"""What the families with a codebook share: the schedule, drawing ids, the canvas of residuals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from ...checkpoint.reader import Checkpoint
from ...checkpoint.weights import load_exactly
from ...errors import CheckpointError
from ...model.protocol import (
    Conditioning,
    ModelInfo,
    ScaleModel,
    ScaleSpec,
    State,
    split_depth,
    tile_on,
)
from ...model.sampling import Drawn, ScaleSampling, draw, mask_logits, mix
from ..tokenizers.vqvae import VQVAE
from .text_inputs import text_and_pooled

if TYPE_CHECKING:
    from typing_extensions import Self

GROUPS = 4  # groups of blocks that ranks and token reduction work on


class CodebookModel(ScaleModel):
    """Square scales, ids of a codebook, a canvas the scales add to: VAR, Switti, STAR and HART.

    ``draw_first``: where sampling is smoothed, VAR and HART draw ids as ever and then mix codes
    among those that top-k and top-p leave; Switti and STAR mix among all instead, and the ids are
    the heaviest codes. ``float32``: modules whose weights keep that type.
    ``config_type.from_tensors`` reads tensors and what was said beside them;
    ``network_type`` is made of a configuration.
    """

    family: ClassVar[str]
    config: Any  # depth, width, heads, sides, vocabulary, code_width
    tokenizer: VQVAE
    draw_first: ClassVar[bool] = True
    options: tuple[str, ...] = ()
    float32: ClassVar[tuple[str, ...]] = ()
    config_type: ClassVar[type[Any]]
    network_type: ClassVar[type[nn.Module]]

    def __init__(self, config: Any, transformer: Any, tokenizer: VQVAE, dtype: torch.dtype) -> None:
        self.config, self.transformer, self.tokenizer = config, transformer, tokenizer
        self.dtype, self.device = dtype, next(transformer.parameters()).device
        self.blocks = list(transformer.blocks)
        self.info = ModelInfo(
            family=self.family,
            depth=config.depth,
            width=config.width,
            heads=config.heads,
            tile=tile_on(self.device),
            groups=split_depth(config.depth, GROUPS),
            guidance="ramp",
            config=asdict(config),
        )

    @staticmethod
    def settings(opened: Checkpoint, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """What tensors cannot tell: the checkpoint's ``config.json``, which may be missing."""
        return opened.config or {}

    @staticmethod
    def guesses(config: Any, said: Mapping[str, Any]) -> tuple[str, ...]:
        """What had to be guessed, for the notes of a summary."""
        return ()

    @classmethod
    def from_checkpoint(
        cls,
        opened: Checkpoint,
        tokenizer: Checkpoint,
        device: torch.device,
        dtype: torch.dtype,
        options: Mapping[str, Any],
    ) -> Self:
        """Build from opened files."""
        said = cls.settings(opened, options)
        return cls.from_tensors(opened.tensors, tokenizer.tensors, device, dtype, said)

    @classmethod
    def from_tensors(
        cls,
        tensors: Mapping[str, Tensor],
        tokenizer: Mapping[str, Tensor],
        device: torch.device,
        dtype: torch.dtype,
        said: Mapping[str, Any] | None = None,
    ) -> Self:
        """Build from published state dicts; ``said`` is what they cannot tell.

        Raises:
            CheckpointError: tensors are missing, left over, of the wrong shape, or the tokenizer
                has another vocabulary.
            UnsupportedModelError: a variant that was never published.
        """
        config = cls.config_type.from_tensors(tensors, said or {})
        with torch.device("meta"):
            transformer = cls.network_type(config)
        codes = checked_tokenizer(tokenizer, config.vocabulary, config.code_width, device)
        load_exactly(
            transformer, tensors, device, dtype, keep=cls.float32, unused=cls.unused_tensors
        )
        model = cls(config, transformer.eval().requires_grad_(False), codes, dtype)
        notes = (*model.info.notes, *cls.guesses(config, said or {}))
        model.info = replace(model.info, notes=notes)
        return model

    def scales(self) -> tuple[ScaleSpec, ...]:
        """The schedule the checkpoint was trained with."""
        return tuple(ScaleSpec(k, s, s, s * s) for k, s in enumerate(self.config.sides))

    def blank_canvas(self, batch: int, last: ScaleSpec) -> Tensor:
        """``(B, C, H, W)`` of zeros, in float32 like the tokenizer."""
        return torch.zeros(
            batch, self.config.code_width, last.height, last.width, device=self.device
        )

    def embed_canvas(self, state: State, scale: ScaleSpec, position: Tensor | float) -> Tensor:
        """The canvas so far, shrunk to this scale, ``position`` added: ``(rows, n, C)``."""
        grid = self.tokenizer.shrink(state.canvas, (scale.height, scale.width))
        tokens = grid.flatten(2).transpose(1, 2).to(self.dtype)
        x = self.transformer.word_embed(tokens) + position
        return x.repeat(len(state.branches), 1, 1)

    def sample(
        self, state: State, scale: ScaleSpec, logits: Tensor, sampling: ScaleSampling
    ) -> Drawn:
        """Ids ``(B, n)``; where sampling is smoothed, weights over all codes, too."""
        if not sampling.smooth:
            return draw(logits, sampling, state.noise, scale.index)
        ids = None
        if self.draw_first:
            ids = draw(logits, sampling, state.noise, scale.index).ids
            logits = mask_logits(logits, sampling.top_k, sampling.top_p)
        done = scale.index - (scale.kind == "final")  # HART's last stage keeps the ratio before it
        weights = mix(logits, state.noise, scale.index, done / max(1, len(state.scales) - 1))
        return Drawn(weights.argmax(-1) if ids is None else ids, weights)

    def codes(self, drawn: Drawn) -> Tensor:
        """Codes ``(B, n, C)`` of the ids, or of the mixture where there is one."""
        if drawn.weights is not None:
            return drawn.weights @ self.tokenizer.quantize.embedding.weight
        return self.tokenizer.embed(drawn.ids)

    def advance(self, state: State, scale: ScaleSpec, drawn: Drawn) -> None:
        """Residual quantisation: add the codes, resized and smoothed, to the canvas."""
        codes = self.codes(drawn)
        laid_out = codes.transpose(1, 2).unflatten(2, (scale.height, scale.width))
        state.canvas = self.tokenizer.accumulate(
            state.canvas, laid_out, scale.index, len(self.config.sides)
        )

    def decode(self, state: State) -> Tensor:
        """``(B, 3, H, W)`` in [0, 1]."""
        return self.tokenizer.decode(state.canvas)


class TextCodebookModel(CodebookModel):
    """A codebook model that is conditioned on hidden states of a text encoder and a pooled one."""

    config: Any  # and context_width, pooled_width

    def __init__(self, config: Any, transformer: Any, tokenizer: VQVAE, dtype: torch.dtype) -> None:
        super().__init__(config, transformer, tokenizer, dtype)
        inputs = ("context", "pooled", "mask")
        null = tuple(f"null_{name}" for name in inputs)
        self.info = replace(self.info, inputs=inputs, optional_inputs=null)

    def condition(
        self,
        context: Tensor,
        pooled: Tensor,
        mask: Tensor,
        null_context: Tensor | None = None,
        null_pooled: Tensor | None = None,
        null_mask: Tensor | None = None,
    ) -> Conditioning:
        """Features of the prompts and of the empty prompt.

        Args:
            context: ``(B, T, context_width)``, the encoder's last hidden state.
            pooled: ``(B, pooled_width)``, its pooler output.
            mask: ``(B, T)``, True where there is a token.
            null_context, null_pooled, null_mask: the same of ``""``; one row serves all images.

        Raises:
            StagevarError: a shape is wrong or something is missing.
        """
        return text_and_pooled(
            *(context, pooled, mask, null_context, null_pooled, null_mask),
            context_width=self.config.context_width,
            pooled_width=self.config.pooled_width,
        )


def checked_tokenizer(
    tensors: Mapping[str, Tensor],
    vocabulary: int,
    code_width: int,
    device: torch.device,
) -> VQVAE:
    """The image tokenizer of a transformer with this vocabulary and width of codes.

    Raises:
        CheckpointError: it is another model's.
    """
    prefix = "vae." if any(name.startswith("vae.") for name in tensors) else ""
    vqvae = VQVAE.from_tensors(tensors, prefix).to(device)
    found = tuple(vqvae.quantize.embedding.weight.shape)
    if found != (vocabulary, code_width):
        raise CheckpointError(
            f"the tokenizer has {found[0]} codes of width {found[1]}, the transformer "
            f"expects {vocabulary} of width {code_width}: pass its own tokenizer"
        )
    return vqvae
