"""CLIP's text encoders, as Switti and STAR read them, through ``transformers``.

encoder = ClipEncoder.switti()                   # or .star(); needs stagevar[clip]
features = encoder.encode(["a red cube"])        # loaded by the first call that needs it
encoder.drop()                                   # gives its memory back
pipeline.generate(**features)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import StagevarError
from .hub import checked_prompts, free, from_hub, ready, transformers_module

SWITTI_ENCODERS = (
    "openai/clip-vit-large-patch14",
    "laion/CLIP-ViT-bigG-14-laion2B-39B-b160k",
)
STAR_ENCODER = "stabilityai/stable-diffusion-2-1"
TOKENS = 77
INPUTS = "context=, pooled=, mask= and the null_ ones"

Parts = tuple[Any, Any]  # tokenizer and encoder, called as those of transformers


class ClipEncoder:
    """Prompts to features; those of the empty prompt are made once and kept.

    Args:
        sources: local folders or names on the Hub. Features of several encoders are laid side by
            side; the pooled ones and the mask are the last encoder's.
        subfolders: where tokenizer and encoder lie inside a source.
        device: None is CUDA where there is one, else the CPU.
        dtype: of the encoders; None is float32, as published.
        load: makes a source's tokenizer and encoder instead of ``transformers`` (tests).
    """

    def __init__(
        self,
        sources: Sequence[str],
        subfolders: tuple[str, str] = ("", ""),
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        load: Callable[[str], Parts] | None = None,
    ) -> None:
        if isinstance(sources, str) or not sources:
            raise StagevarError(f"got {sources!r}, expected a list of encoders")
        self.sources = tuple(map(str, sources))
        self.subfolders = subfolders
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.dtype = dtype or torch.float32
        self._load = load or self._from_transformers
        self._parts: list[Parts] = []
        self._null: dict[str, Tensor] | None = None

    @classmethod
    def switti(cls, sources: Sequence[str] = SWITTI_ENCODERS, **how: Any) -> ClipEncoder:
        """ViT-L/14 beside ViT-bigG/14: context ``(B, 77, 2048)``, pooled ``(B, 1280)``."""
        return cls(sources, **how)

    @classmethod
    def star(cls, source: str = STAR_ENCODER, **how: Any) -> ClipEncoder:
        """Stable Diffusion 2.1's: context ``(B, 77, 1024)``, pooled ``(B, 1024)``."""
        return cls([source], subfolders=("tokenizer", "text_encoder"), **how)

    @torch.inference_mode()
    def encode(self, prompts: Sequence[str], batch: int = 16) -> dict[str, Tensor]:
        """What ``model.condition`` of Switti and STAR takes, null features included.

        ``context`` ``(B, 77, width)`` and ``pooled`` ``(B, width)`` float32, ``mask`` ``(B, 77)``
        bool; ``null_...`` the same with one row. Longer prompts are cut, as published.

        Raises:
            StagevarError: no prompts, or ``transformers`` is missing.
            CheckpointError: an encoder's files cannot be found or read.
        """
        checked_prompts(prompts)
        if self._null is None:
            self._null = {f"null_{n}": t for n, t in self._run([""]).items()}
        parts = [
            self._run(list(prompts[start : start + batch]))
            for start in range(0, len(prompts), batch)
        ]
        return {n: torch.cat([part[n] for part in parts]) for n in parts[0]} | self._null

    def to(self, device: torch.device) -> None:
        """Encode there from now on; what was loaded moves along."""
        self.device, self._null = device, None
        for _, encoder in self._parts:
            encoder.to(device)

    def drop(self) -> None:
        """Forget the encoders and free their memory; the next prompts load them again."""
        self._parts = []
        free(self.device)

    def _run(self, prompts: list[str]) -> dict[str, Tensor]:
        self._parts = self._parts or [self._load(source) for source in self.sources]
        hidden = []
        for tokenizer, encoder in self._parts:
            tokens = tokenizer(
                prompts,
                truncation=True,
                max_length=TOKENS,
                padding="max_length",
                return_tensors="pt",
            )
            mask = tokens["attention_mask"].to(self.device)
            out = encoder(input_ids=tokens["input_ids"].to(self.device), attention_mask=mask)
            hidden.append(out["last_hidden_state"].float())
        pooled = out["pooler_output"].float()
        return {"context": torch.cat(hidden, -1), "pooled": pooled, "mask": mask == 1}

    def _from_transformers(self, source: str) -> Parts:
        hub = transformers_module(source, "clip", INPUTS)
        tokenizer_folder, encoder_folder = self.subfolders

        def load(local: bool) -> Parts:
            tokenizer = hub.CLIPTokenizer.from_pretrained(
                source, subfolder=tokenizer_folder, local_files_only=local
            )
            encoder = hub.CLIPTextModel.from_pretrained(
                source, subfolder=encoder_folder, dtype=self.dtype, local_files_only=local
            )
            return tokenizer, ready(encoder, self.device)

        return from_hub(source, "CLIP text encoder", load)
