"""Imports of the runtime's modules where the libraries of profiles are not installed."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

NEEDED = ("pydantic", "yaml")  # by profiles, which training does not read


def without_profiles() -> bool:
    """Let ``stagevar_runtime``'s rooms be imported without its front door; whether it was done.

    The package's ``__init__`` offers profiles, which need pydantic. A machine that is lent for
    minutes may not have it, and the modules of a family do not ask for it. Where everything is
    installed nothing is done.
    """
    if "stagevar_runtime" in sys.modules or all(map(importlib.util.find_spec, NEEDED)):
        return False
    package = ModuleType("stagevar_runtime")
    package.__path__ = [str(Path(__file__).resolve().parents[1] / "stagevar_runtime")]
    sys.modules["stagevar_runtime"] = package
    return True
