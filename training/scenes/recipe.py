"""What a training folder was begun with."""

from __future__ import annotations

import json
import os
from pathlib import Path

from ..data import DataError
from ..state import save_json


def same_recipe(folder: Path, recipe: dict[str, object]) -> None:
    """Refuse to go on in a folder that was begun with other pictures or another size.

    Raises:
        DataError: it was.
    """
    path = folder / "recipe.json"
    if not path.is_file():
        if os.environ.get("RANK", "0") == "0":
            save_json(path, recipe)
        return
    begun = json.loads(path.read_text())
    for name, value in recipe.items():
        if begun.get(name) != value:
            raise DataError(
                f"{folder} was begun with {name} {begun.get(name)}, not {value}. "
                "Name another folder with --runs, or delete this one"
            )
