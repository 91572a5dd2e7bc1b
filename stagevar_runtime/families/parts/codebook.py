"""What the families with a codebook share: the schedule, drawing ids, the canvas of residuals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...errors import CheckpointError
from ...model.protocol import ScaleModel, ScaleSpec, State
from ...model.sampling import Drawn, ScaleSampling, draw, mask_logits, mix
from ..tokenizers.vqvae import VQVAE


class CodebookModel(ScaleModel):
    """Square scales, ids of a codebook, a canvas the scales add to: VAR, Switti, STAR and HART.

    ``draw_first``: where sampling is smoothed, VAR and HART draw ids as ever and then mix codes
    among those that top-k and top-p leave; Switti and STAR mix among all instead, and the ids are
    the heaviest codes.
    """

    config: Any  # sides, code_width
    tokenizer: VQVAE
    draw_first: ClassVar[bool] = True

    def scales(self) -> tuple[ScaleSpec, ...]:
        """The schedule the checkpoint was trained with."""
        return tuple(ScaleSpec(k, s, s, s * s) for k, s in enumerate(self.config.sides))

    def blank_canvas(self, batch: int, last: ScaleSpec) -> Tensor:
        """``(B, C, H, W)`` of zeros, in float32 like the tokenizer."""
        return torch.zeros(
            batch, self.config.code_width, last.height, last.width, device=self.device
        )

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


def checked_tokenizer(
    tensors: Mapping[str, Tensor],
    vocabulary: int,
    code_width: int,
    device: torch.device,
    prefix: str = "",
) -> VQVAE:
    """The image tokenizer of a transformer with this vocabulary and width of codes.

    Raises:
        CheckpointError: it is another model's.
    """
    vqvae = VQVAE.from_tensors(tensors, prefix).to(device)
    found = tuple(vqvae.quantize.embedding.weight.shape)
    if found != (vocabulary, code_width):
        raise CheckpointError(
            f"the tokenizer has {found[0]} codes of width {found[1]}, the transformer "
            f"expects {vocabulary} of width {code_width}: pass its own tokenizer"
        )
    return vqvae
