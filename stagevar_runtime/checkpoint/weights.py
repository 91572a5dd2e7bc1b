"""Put a state dict into modules: strictly, one tensor at a time, without a second copy."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..kernels.linear import pack


def load_exactly(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    device: torch.device,
    dtype: torch.dtype,
    keep: tuple[str, ...] = (),
    unused: tuple[str, ...] = (),
) -> None:
    """Put ``tensors`` into a module made on the meta device, one at a time, strictly.

    Floating tensors become ``dtype``, those under the ``keep`` prefixes float32.

    Raises:
        CheckpointError: names or shapes differ; the message lists them.
    """
    expected = module.state_dict()
    missing = sorted(expected.keys() - tensors.keys() - {n for n in expected if "zero_k_bias" in n})
    extra = sorted(tensors.keys() - expected.keys() - set(unused))
    if missing or extra:
        raise CheckpointError(
            f"tensors do not match the model: missing {missing[:4]} ({len(missing)} in all), "
            f"unexpected {extra[:4]} ({len(extra)} in all)"
        )
    ready = {}
    for name, blank in expected.items():
        tensor = tensors.get(name)
        if tensor is None:
            tensor = torch.zeros(blank.shape)
        if tensor.shape != blank.shape:
            raise CheckpointError(
                f"tensor {name} has shape {tuple(tensor.shape)}, expected {tuple(blank.shape)}"
            )
        wanted = torch.float32 if name.split(".")[0] in keep else dtype
        ready[name] = tensor.to(device, wanted if tensor.is_floating_point() else tensor.dtype)
    module.load_state_dict(ready, assign=True)
    for blank_module in module.modules():  # buffers that are computed, not loaded
        for name, buffer in blank_module._buffers.items():
            if buffer is not None and buffer.is_meta:
                blank_module._buffers[name] = torch.empty(0, device=device)
    pack(module)
