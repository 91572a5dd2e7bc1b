"""Generate faster with next-scale image models, by a profile that sits beside the checkpoint.

import stagevar_runtime

pipeline = stagevar_runtime.load("var_d16.pth")     # finds var_d16.stagevar.yaml
made = pipeline.generate(labels=[207, 360], seed=0)
made.images                                          # (2, 3, 256, 256) in [0, 1]
print(pipeline.summary())
"""

import logging

from .errors import (
    CalibrationError,
    CheckpointError,
    NotFiniteError,
    ProfileError,
    ProfileMismatchError,
    StagevarError,
    UnsupportedModelError,
)
from .families import families
from .loading import load
from .loop.engine import Generation, Observer, Replay, generate, replay
from .model.sampling import Sampling
from .pipeline import Pipeline
from .profile.files import load_profile, write_profile
from .profile.schema import Profile

__version__ = "0.1.0"
__all__ = [
    "CalibrationError",
    "CheckpointError",
    "Generation",
    "NotFiniteError",
    "Observer",
    "Pipeline",
    "Profile",
    "ProfileError",
    "ProfileMismatchError",
    "Replay",
    "Sampling",
    "StagevarError",
    "UnsupportedModelError",
    "families",
    "generate",
    "load",
    "load_profile",
    "replay",
    "write_profile",
]

logging.getLogger("stagevar_runtime").addHandler(logging.NullHandler())
