"""CLIP score: does the picture show what the prompt says? Behind the extra ``metrics-net``.

CLIP's weights travel in no wheel: they come from a local folder, or from the Hub where there is a
network. Source: Hessel et al., "CLIPScore", EMNLP 2021.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from stagevar_runtime.errors import CalibrationError, one_line

from .protocol import Items, Looking
from .wheels import missing

NAME = "clip-score"
SOURCE = "openai/clip-vit-base-patch16"


class ClipScore(Looking):
    """Cosine between CLIP's embeddings of picture and prompt, 0 where it is negative.

    A hundred times this is the CLIPScore that torchmetrics reports. Scores of other CLIP models do
    not compare, so ``name`` tells which. They lie near 0.3: the budget is 1 % of that.

    Raises:
        CalibrationError: the extra is not installed, or the model cannot be loaded.
    """

    default_loss = 0.003

    def __init__(self, source: str = SOURCE, fetch: bool = True) -> None:
        self.name = f"{NAME}={Path(source).name}"
        try:
            from transformers import CLIPModel, CLIPProcessor
        except ImportError as error:
            raise missing(self.name, "transformers", "metrics-net") from error
        try:
            self.model = CLIPModel.from_pretrained(source, local_files_only=not fetch).eval()
            self.processor = CLIPProcessor.from_pretrained(source, local_files_only=not fetch)
        except (OSError, ValueError) as error:
            raise CalibrationError(
                f"{source}: no CLIP model that can be loaded ({one_line(error, named=False)}). "
                f"Name the folder of one: --metric {NAME}=FOLDER"
            ) from error

    @torch.inference_mode()
    def score(self, images: Tensor, items: Items, exact: Tensor) -> Tensor:
        """``(B,)`` in [0, 1] for prompts ``items``."""
        pictures = images.float().cpu().mul(255).round().byte().permute(0, 2, 3, 1).numpy()
        prepared = self.processor(
            text=[str(item) for item in items],
            images=list(pictures),
            return_tensors="pt",
            padding=True,
            truncation=True,
        )
        seen = self.model(**prepared)
        return F.cosine_similarity(seen.image_embeds, seen.text_embeds).clamp_min(0).cpu()

    smooth = score
