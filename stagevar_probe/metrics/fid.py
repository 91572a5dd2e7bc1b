"""FID through torchmetrics, behind the extra ``metrics-net``; its Inception is downloaded."""

from __future__ import annotations

from torch import Tensor

from stagevar_runtime.errors import CalibrationError

from .wheels import missing


def fid(real: Tensor, made: Tensor, batch: int = 64) -> float:
    """Fréchet inception distance of two sets of pictures ``(n, 3, H, W)`` in [0, 1].

    Biased by the number of pictures: compare only sets of one size, 10,000 or more. Source: Heusel
    et al. 2017.

    Raises:
        CalibrationError: the extra is not installed, or the weights cannot be loaded.
    """
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance

        metric = FrechetInceptionDistance(feature=2048)
    except ImportError as error:
        raise missing("FID", "torchmetrics with torch-fidelity", "metrics-net") from error
    except OSError as error:
        raise CalibrationError(f"FID: Inception's weights cannot be loaded ({error})") from error
    for images, is_real in ((real, True), (made, False)):
        for part in images.split(batch):
            metric.update(part.float().mul(255).round().byte(), real=is_real)
    return float(metric.compute())
