"""Qwen2-VL's language model, as HART reads it, through ``transformers``.

encoder = QwenEncoder(system_prompt=text)        # HART's own, see below; needs stagevar[qwen]
features = encoder.encode(["a red cube"])        # loaded by the first call that needs it
encoder.drop()                                   # gives its memory back
pipeline.generate(**features)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .hub import Loaded, checked_prompts, from_hub, ready, transformers_module

HART_ENCODER = "mit-han-lab/Qwen2-VL-1.5B-Instruct"
TOKENS = 300

Parts = tuple[Any, Any]  # tokenizer and language model, called as those of transformers


class QwenEncoder(Loaded):
    """Prompts to features: the last hidden state of each prompt's 300 tokens, padding included.

    Args:
        system_prompt: read before every prompt and cut off again. HART was trained with the one in
            its ``hart/utils/constants.py`` (``llm_system_prompt``); ``""`` leaves it out.
        source: a local folder or a name on the Hub.
        device: None is CUDA where there is one, else the CPU.
        dtype: None is float16 on CUDA, as published, and float32 elsewhere.
        tokens: how many a prompt is padded or cut to, as many as the model's first scale has.
        load: makes the tokenizer and the model instead of ``transformers`` (tests).
    """

    def __init__(
        self,
        system_prompt: str,
        source: str = HART_ENCODER,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        tokens: int = TOKENS,
        load: Callable[[], Parts] | None = None,
    ) -> None:
        self.system_prompt, self.source, self.tokens = system_prompt, str(source), tokens
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        on_cuda = self.device.type == "cuda"
        self.dtype = dtype or (torch.float16 if on_cuda else torch.float32)
        self._load = load or self._from_transformers

    @torch.inference_mode()
    def encode(self, prompts: Sequence[str], batch: int = 16) -> dict[str, Tensor]:
        """What HART's ``model.condition`` takes: ``context`` ``(B, 300, width)`` float32 and
        ``mask`` ``(B, 300)`` bool.

        Raises:
            StagevarError: no prompts, or ``transformers`` is missing.
            CheckpointError: the encoder's files cannot be found or read.
        """
        checked_prompts(prompts)
        parts = [
            self._run(list(prompts[start : start + batch]))
            for start in range(0, len(prompts), batch)
        ]
        return {n: torch.cat([part[n] for part in parts]) for n in parts[0]}

    def _run(self, prompts: list[str]) -> dict[str, Tensor]:
        self._parts = self._parts or self._load()
        tokenizer, model = self._parts
        ids = tokenizer(
            prompts,
            truncation=True,
            max_length=self.tokens,
            padding="max_length",
            return_tensors="pt",
        )["input_ids"].to(self.device)
        mask = ids != tokenizer.pad_token_id
        seen, before = mask, 0
        if self.system_prompt:
            system = tokenizer(
                [self.system_prompt], truncation=True, max_length=self.tokens, return_tensors="pt"
            )["input_ids"].to(self.device)
            before = system.shape[1]
            ids = torch.cat([system.expand(len(prompts), -1), ids], 1)
            seen = torch.cat([torch.ones_like(ids[:, :before], dtype=torch.bool), mask], 1)
        out = model(input_ids=ids, attention_mask=seen, output_hidden_states=True)
        return {"context": out["hidden_states"][-1][:, before:].float(), "mask": mask}

    def _from_transformers(self) -> Parts:
        hub = transformers_module(self.source, "qwen", "context=, mask=")

        def load(local: bool) -> Parts:
            tokenizer = hub.AutoTokenizer.from_pretrained(self.source, local_files_only=local)
            model = hub.AutoModel.from_pretrained(
                self.source, dtype=self.dtype, local_files_only=local
            )
            return tokenizer, ready(model, self.device)

        return from_hub(self.source, "language model", load)
