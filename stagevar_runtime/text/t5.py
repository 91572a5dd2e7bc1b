"""The encoder half of T5, as Infinity reads it (flan-T5-XL), through ``transformers``.

encoder = T5Encoder("google/flan-t5-xl")        # or a local folder; needs stagevar[t5]
text, mask = encoder.encode(["a red cube"])      # loaded by the first call that needs it
encoder.drop()                                   # gives its memory back
pipeline.generate(text=text, mask=mask)
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError, StagevarError, one_line
from ..files import write_whole
from .hub import Loaded

INFINITY_ENCODER = "google/flan-t5-xl"
MAX_LENGTH = 512

Parts = tuple[Any, Any]  # tokenizer and encoder, called as those of transformers


logger = logging.getLogger("stagevar_runtime")


class T5Encoder(Loaded):
    """Prompts to features, one prompt's cached on disk or not.

    Args:
        source: a local folder or a name on the Hub.
        device: None is CUDA where there is one, else the CPU.
        dtype: None is float16 on CUDA, as published, and float32 elsewhere.
        max_length: tokens a prompt may have, the end mark included.
        cache: a folder that keeps every prompt's features; a prompt found there needs no encoder.
        load: makes the tokenizer and the encoder instead of ``transformers`` (tests).
    """

    def __init__(
        self,
        source: str | Path = INFINITY_ENCODER,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        max_length: int = MAX_LENGTH,
        cache: str | Path | None = None,
        load: Callable[[], Parts] | None = None,
    ) -> None:
        self.source = str(source)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        on_cuda = self.device.type == "cuda"
        self.dtype = dtype or (torch.float16 if on_cuda else torch.float32)
        self.max_length = max_length
        self.cache = None if cache is None else Path(cache)
        self._load = load or self._from_transformers

    @torch.inference_mode()
    def encode(self, prompts: Sequence[str], batch: int = 16) -> tuple[Tensor, Tensor]:
        """Features ``(B, T, width)`` float32, zero in the padding, and mask ``(B, T)`` bool.

        T is the longest prompt's length. Prompts are encoded ``batch`` at a time.

        Raises:
            StagevarError: no prompts, one that is too long, or ``transformers`` is missing.
            CheckpointError: the encoder's files cannot be found or read.
        """
        if isinstance(prompts, str) or not prompts:
            raise StagevarError(f"got {prompts!r}, expected a list of prompts")
        known = {prompt: self._cached(prompt) for prompt in prompts}
        missing = [prompt for prompt, features in known.items() if features is None]
        for start in range(0, len(missing), batch):
            part = missing[start : start + batch]
            for prompt, features in zip(part, self._run(part), strict=True):
                known[prompt] = features
                self._remember(prompt, features)
        found = [known[prompt] for prompt in prompts]
        lengths = torch.tensor([len(features) for features in found if features is not None])
        text = torch.nn.utils.rnn.pad_sequence(
            [features.to(self.device).float() for features in found if features is not None],
            batch_first=True,
        )
        mask = torch.arange(text.shape[1]) < lengths[:, None]
        return text, mask.to(self.device)

    def _run(self, prompts: list[str]) -> list[Tensor]:
        """One ``(tokens, width)`` a prompt, as the encoder makes them."""
        self._parts = self._parts or self._load()
        tokenizer, encoder = self._parts
        tokens = tokenizer(text=prompts, padding=True, return_tensors="pt")
        mask = tokens["attention_mask"]
        for prompt, length in zip(prompts, mask.sum(1).tolist(), strict=True):
            if length > self.max_length:
                raise StagevarError(
                    f"prompt {prompt[:40]!r}... has {length} tokens, expected at most "
                    f"{self.max_length}. Shorten it"
                )
        _warn_unknown(prompts, tokens["input_ids"], getattr(tokenizer, "unk_token_id", None))
        out = encoder(
            input_ids=tokens["input_ids"].to(self.device), attention_mask=mask.to(self.device)
        )
        features = out["last_hidden_state"]
        return [row[:n] for row, n in zip(features, mask.sum(1).tolist(), strict=True)]

    def _from_transformers(self) -> Parts:
        try:
            from transformers import AutoTokenizer, T5EncoderModel
        except ImportError as error:
            raise StagevarError(
                f"encoding prompts with {self.source} needs transformers: "
                f"pip install 'stagevar[t5]', or pass precomputed features (text=, mask=)"
            ) from error
        local = Path(self.source).exists()
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                self.source, legacy=True, local_files_only=local
            )
            encoder = T5EncoderModel.from_pretrained(
                self.source, dtype=self.dtype, local_files_only=local
            )
        except (OSError, ValueError) as error:
            what = one_line(error, named=False)
            raise CheckpointError(
                f"{self.source}: not a T5 encoder that can be loaded ({what}). Pass the folder of "
                f"{INFINITY_ENCODER}, or precomputed features (text=, mask=)"
            ) from error
        return tokenizer, encoder.to(self.device).eval().requires_grad_(False)

    def _file(self, prompt: str) -> Path | None:
        if self.cache is None:
            return None
        key = json.dumps([self.source, str(self.dtype), prompt])
        return self.cache / f"{hashlib.sha256(key.encode()).hexdigest()}.safetensors"

    def _cached(self, prompt: str) -> Tensor | None:
        path = self._file(prompt)
        if path is None or not path.exists():
            return None
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)["text"]
        except (SafetensorError, KeyError, OSError) as error:
            raise CheckpointError(
                f"{path}: damaged features in the cache, delete the file ({error})"
            ) from error

    def _remember(self, prompt: str, features: Tensor) -> None:
        """Write a prompt's features whole or not at all, in the encoder's own dtype."""
        path = self._file(prompt)
        if path is None:
            return
        from safetensors.torch import save

        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, save({"text": features.cpu().contiguous()}, {"prompt": prompt}))


def _warn_unknown(prompts: Sequence[str], ids: Tensor, unknown: int | None) -> None:
    """Say so where the tokenizer knew hardly a token of a prompt: it will not be drawn."""
    if unknown is None:
        return
    for prompt, row in zip(prompts, ids, strict=True):
        missed = int((row == unknown).sum())
        if 2 * missed >= max(2, int((row > 1).sum())):  # 0 pads, 1 ends
            logger.warning(
                "the text encoder knows hardly a token of %r (%d are unknown to it): translate it",
                prompt[:60],
                missed,
            )
