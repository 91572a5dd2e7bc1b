"""What a command said: its one clear line, that it worked, the picture it wrote."""

from __future__ import annotations

from pathlib import Path

from click.testing import Result
from PIL import Image

from stagevar_runtime.errors import StagevarError


def refused(result: Result, code: int = 1) -> str:
    """The one clear line a user is told."""
    error = result.exception
    assert isinstance(error, StagevarError), result
    assert error.exit_code == code
    said = str(error)
    assert said and "\n" not in said and len(said) < 600
    assert result.stdout == ""
    return said


def done(result: Result) -> Result:
    assert result.exception is None, result.exception
    return result


def picture(path: Path) -> Image.Image:
    with Image.open(path) as opened:
        opened.load()
        assert opened.format == "PNG"
        return opened.copy()
