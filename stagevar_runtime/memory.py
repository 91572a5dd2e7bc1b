"""How much memory was used at the peak, and what the number means."""

from __future__ import annotations

import torch


def peak_memory(device: torch.device) -> tuple[float, str]:
    """Peak in MB and what it is the peak of: nothing is reset, so it counts from the start.

    On CUDA what PyTorch allocated on the device; elsewhere what the process had in memory.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6, "allocated on the device so far"
    try:
        import resource
    except ImportError:  # Windows
        return 0.0, "not known on this system"
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3, "of the process so far"
