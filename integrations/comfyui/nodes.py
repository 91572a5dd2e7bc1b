"""Nodes that load a next-scale model, draw with it, and say what was done.

Written against ComfyUI's node interface (class attributes and the mappings at the end). ``comfy``
itself is used where it is there: for the progress bar and the cancel button.
"""

from __future__ import annotations

from typing import Any

import torch

import stagevar_runtime
from stagevar_runtime import Pipeline, StagevarError

PIPELINE = "STAGEVAR_PIPELINE"
DTYPES = {
    "default": None,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}
MAX_SEED = 2**63 - 1
MAX_SIDE = 4096


class Load:
    """A checkpoint, by its path or its name on the Hub, with its profile and a plan of it."""

    CATEGORY = "StageVAR"
    RETURN_TYPES = (PIPELINE,)
    RETURN_NAMES = ("pipeline",)
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """``profile``: ``auto``, ``none``, a path or a Hub name. ``plan``: empty is the
        profile's own; a name in it, a preset, or ``exact``."""
        text = ("STRING", {"default": ""})
        return {
            "required": {
                "checkpoint": ("STRING", {"default": "", "tooltip": "path or owner/name"}),
                "profile": ("STRING", {"default": "auto"}),
                "plan": text,
            },
            "optional": {
                "tokenizer": text,
                "text_encoder": text,
                "device": text,
                "dtype": (list(DTYPES), {"default": "default"}),
            },
        }

    def load(
        self,
        checkpoint: str,
        profile: str = "auto",
        plan: str = "",
        tokenizer: str = "",
        text_encoder: str = "",
        device: str = "",
        dtype: str = "default",
    ) -> tuple[Pipeline]:
        """Empty texts mean what None means to :func:`stagevar_runtime.load`."""
        if not checkpoint.strip():
            raise StagevarError("no checkpoint: give a path, or owner/name on the Hub")
        pipeline = stagevar_runtime.load(
            checkpoint.strip(),
            tokenizer.strip() or None,
            device.strip() or None,
            DTYPES[dtype],
            None if profile == "none" or plan == "exact" else profile.strip() or "auto",
            text_encoder=text_encoder.strip() or None,
        )
        if plan not in ("", "exact"):
            pipeline.enable(plan)
        return (pipeline,)


class Generate:
    """Pictures of a prompt, and the summary of how they were made."""

    CATEGORY = "StageVAR"
    RETURN_TYPES = ("IMAGE", "STRING")
    RETURN_NAMES = ("images", "summary")
    FUNCTION = "generate"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """``prompt``: text, or class numbers for a model of classes. 0 for ``width``, ``height``
        and ``guidance`` is the model's own."""
        side = ("INT", {"default": 0, "min": 0, "max": MAX_SIDE, "step": 16})
        return {
            "required": {
                "pipeline": (PIPELINE,),
                "prompt": ("STRING", {"default": "", "multiline": True}),
                "seed": (
                    "INT",
                    {"default": 0, "min": 0, "max": MAX_SEED, "control_after_generate": True},
                ),
                "batch": ("INT", {"default": 1, "min": 1, "max": 64}),
            },
            "optional": {
                "negative": ("STRING", {"default": "", "multiline": True}),
                "width": side,
                "height": side,
                "guidance": ("FLOAT", {"default": 0.0, "min": 0.0, "max": 50.0, "step": 0.1}),
            },
        }

    def generate(
        self,
        pipeline: Pipeline,
        prompt: str,
        seed: int = 0,
        batch: int = 1,
        negative: str = "",
        width: int = 0,
        height: int = 0,
        guidance: float = 0.0,
    ) -> tuple[torch.Tensor, str]:
        """``images`` ``(B, H, W, 3)`` in [0, 1], as ComfyUI has them; picture i has seed + i."""
        said: dict[str, Any] = {}
        if pipeline.model.info.classes:
            said["labels"] = _labels(prompt)
        else:
            said |= {"prompt": prompt, "negative_prompt": negative.strip() or None}
        count = batch * len(said.get("labels", (0,)))
        out = pipeline(
            **said,
            num_images_per_prompt=batch,
            seed=[(seed + i) % (MAX_SEED + 1) for i in range(count)],
            width=width or None,
            height=height or None,
            guidance_scale=guidance or None,
            output_type="pt",
            callback_on_step_end=_watched(pipeline),
        )
        return out.images.permute(0, 2, 3, 1).float().cpu(), str(pipeline.summary())


class Summary:
    """Shows the summary that came with the pictures."""

    CATEGORY = "StageVAR"
    RETURN_TYPES = ("STRING",)
    FUNCTION = "show"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """A text that another node made."""
        return {"required": {"summary": ("STRING", {"forceInput": True})}}

    def show(self, summary: str) -> dict[str, Any]:
        """For the page, and for nodes behind this one."""
        return {"ui": {"text": [summary]}, "result": (summary,)}


def _labels(text: str) -> list[int]:
    try:
        return [int(part) for part in text.replace(",", " ").split()] or [0]
    except ValueError as error:
        raise StagevarError(
            f"got the prompt {text!r}, but this model draws classes: expected numbers"
        ) from error


def _watched(pipeline: Pipeline) -> Any:
    """Moves ComfyUI's bar after every scale and heeds its cancel button; None elsewhere."""
    try:
        from comfy.model_management import throw_exception_if_processing_interrupted as stop
        from comfy.utils import ProgressBar
    except ImportError:
        return None
    bar = ProgressBar(len(pipeline.model.scales()))

    def scale_done(pipe: Any, index: int, scale: Any, values: dict[str, Any]) -> None:
        bar.update_absolute(index + 1)
        stop()

    return scale_done


NODE_CLASS_MAPPINGS = {
    "StageVARLoad": Load,
    "StageVARGenerate": Generate,
    "StageVARSummary": Summary,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "StageVARLoad": "StageVAR: load",
    "StageVARGenerate": "StageVAR: generate",
    "StageVARSummary": "StageVAR: summary",
}
