"""What to say of files that only unpickling would open."""

from __future__ import annotations

import re

_PICKLED = re.compile(r"GLOBAL (\S+)")


def refusal(error: Exception) -> str | None:
    """Why PyTorch's safe reader refused; None where the file is damaged instead."""
    found = _PICKLED.search(str(error))
    if not found and "weights_only" not in str(error).lower():
        return None
    name = f"{found[1]!r}" if found else "an object"
    advice = "save its state dict alone, or as safetensors"
    if found and ("torchao" in found[1] or "bitsandbytes" in found[1]):
        advice = "its weights are quantised: load the original ones"
    if found and "torch.distributed" in found[1]:
        advice = "gather its shards into one state dict first"
    return (
        f"needs {name} to be unpickled, which could run code; refused. "
        f"Expected tensors only: {advice}"
    )
