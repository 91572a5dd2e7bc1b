"""Scenes of coloured shapes: captions, pictures, and a rule that judges one by the other."""

from .captions import COLORS, KINDS, SHAPES, VOCABULARY, Asked, Scene, caption, parse
from .judge import closeness, find_objects, judge, passed
from .render import training_set

__all__ = [
    "COLORS",
    "KINDS",
    "SHAPES",
    "VOCABULARY",
    "Asked",
    "Scene",
    "caption",
    "closeness",
    "find_objects",
    "judge",
    "parse",
    "passed",
    "training_set",
]
