"""Files are written whole or not at all, and whether they can be is asked before the work."""

from __future__ import annotations

from pathlib import Path

from stagevar_runtime import files
from stagevar_runtime.errors import StagevarError
from stagevar_runtime.hub import output_beside


def beside(checkpoint: Path, name: str) -> Path:
    """``model.NAME`` beside ``model.pth``, ``NAME`` in a directory; of a model in a Hub cache, in
    the current folder."""
    checkpoint = output_beside(checkpoint)
    return checkpoint / name if checkpoint.is_dir() else checkpoint.with_suffix(f".{name}")


def stem_of(measurements: Path) -> str:
    """What a measurements file shares with the profile that was written with it."""
    return measurements.name.removesuffix(".measurements.json")


def check_writable(*paths: Path) -> None:
    """Raise StagevarError for the first path that could not be written, before hours of work."""
    for path in paths:
        if path.is_dir():
            raise StagevarError(f"{path}: is a directory, expected the name of a file")
        files.sweep(path)
        partial = files.partial_path(path)
        try:
            partial.touch()
            partial.unlink()
        except OSError as error:
            raise _refused(path, error) from error


def write_whole(path: Path, content: bytes) -> None:
    """Write a file by way of a temporary one beside it. Raises StagevarError when it cannot."""
    try:
        files.write_whole(path, content)
    except OSError as error:
        raise _refused(path, error) from error


def _refused(path: Path, error: OSError) -> StagevarError:
    return StagevarError(
        f"{path}: cannot be written ({error.strerror}), expected a folder that exists and can be "
        "written to. Choose another with --output"
    )
