"""What pickle carries of a pipeline: its path and options, profile and plan; never weights."""

from __future__ import annotations

import pickle
from typing import Any

from .errors import StagevarError

KEPT = ("profile", "profile_source", "notes", "_profile_path", "plan_name", "_steps")


def carried(pipeline: Any) -> tuple[Any, ...]:
    """A pipeline's ``__reduce__``: it is loaded again where it arrives, and set as it was.

    Raises:
        StagevarError: it was not made by ``load``, or an argument of that cannot be pickled.
    """
    try:
        if pipeline.again is None:
            raise TypeError("it was not made by stagevar_runtime.load")
        pickle.dumps(pipeline.again)
    except (TypeError, AttributeError, pickle.PicklingError) as error:
        raise StagevarError(
            f"this pipeline of {pipeline.path} cannot be pickled: {error}. Pass the path and load "
            "it there"
        ) from error
    return pipeline.again, (), {name: getattr(pipeline, name) for name in KEPT}
