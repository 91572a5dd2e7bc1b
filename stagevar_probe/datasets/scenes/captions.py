"""A closed grammar of captions for scenes of coloured shapes, in GenEval's six kinds.

Source of the kinds and of the metadata: GenEval (Ghosh et al., arXiv 2310.11513).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "orange": (240, 140, 30),
    "yellow": (235, 220, 40),
    "green": (40, 170, 60),
    "cyan": (40, 200, 210),
    "blue": (40, 70, 220),
    "purple": (140, 50, 200),
    "pink": (245, 90, 170),
}
SHAPES = ("circle", "square", "triangle", "diamond", "star", "heart", "cross", "ring")
PLURALS = {shape + ("es" if shape == "cross" else "s"): shape for shape in SHAPES}
NUMBERS = {"two": 2, "three": 3, "four": 4}
POSITIONS = ("left of", "right of", "above", "below")
KINDS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
VOCABULARY = (
    *("a", "an", "and", "left", "right", "of", "above", "below"),
    *NUMBERS,
    *COLORS,
    *SHAPES,
    *PLURALS,
)


@dataclass(frozen=True)
class Asked:
    """One requirement: ``count`` objects of a shape, of a colour if one is said."""

    shape: str
    color: str | None = None
    count: int = 1


@dataclass(frozen=True)
class Scene:
    """What a caption asks. ``position``: of the first object, seen from the second."""

    kind: str
    objects: tuple[Asked, ...]
    position: str | None = None

    def metadata(self, prompt: str) -> dict[str, object]:
        """A line of GenEval's ``evaluation_metadata.jsonl``."""
        include: list[dict[str, object]] = []
        for asked in self.objects:
            color = {"color": asked.color} if asked.color else {}
            include.append({"class": asked.shape, "count": asked.count, **color})
        if self.position:
            include[0]["position"] = [self.position, 1]
        line: dict[str, object] = {"tag": self.kind, "include": include, "prompt": prompt}
        if self.kind == "counting":
            asked = self.objects[0]
            line["exclude"] = [{"class": asked.shape, "count": asked.count + 1}]
        return line


_COLOR, _SHAPE = "|".join(COLORS), "|".join(SHAPES)
_ONE = rf"(?:an? )(?:({_COLOR}) )?({_SHAPE})"
_COUNTED = re.compile(rf"({'|'.join(NUMBERS)}) (?:({_COLOR}) )?({'|'.join(PLURALS)})")
_PAIR = re.compile(rf"{_ONE} (and|{'|'.join(POSITIONS)}) {_ONE}")
_SINGLE = re.compile(_ONE)


def caption(scene: Scene) -> str:
    """The caption of a scene; :func:`parse` reads it back."""
    words = [_phrase(asked) for asked in scene.objects]
    return f" {scene.position or 'and'} ".join(words)


def _phrase(asked: Asked) -> str:
    color = f"{asked.color} " if asked.color else ""
    if asked.count == 1:
        return f"{'an' if color.startswith('o') else 'a'} {color}{asked.shape}"
    number = next(word for word, n in NUMBERS.items() if n == asked.count)
    return f"{number} {color}{next(p for p, shape in PLURALS.items() if shape == asked.shape)}"


def parse(text: str) -> Scene:
    """The scene a caption asks for.

    Raises:
        ValueError: it is no sentence of the grammar.
    """
    text = " ".join(text.lower().strip(" .").split())
    if match := _COUNTED.fullmatch(text):
        number, color, plural = match.groups()
        return Scene("counting", (Asked(PLURALS[plural], color, NUMBERS[number]),))
    if match := _PAIR.fullmatch(text):
        color, shape, link, other_color, other = match.groups()
        objects = (Asked(shape, color), Asked(other, other_color))
        if link != "and":
            return Scene("position", objects, link)
        if (shape, color) == (other, other_color):
            raise ValueError(f"{text!r} asks for the same object twice: say 'two ...'")
        return Scene("color_attr" if color and other_color else "two_object", objects)
    if match := _SINGLE.fullmatch(text):
        color, shape = match.groups()
        return Scene("colors" if color else "single_object", (Asked(shape, color),))
    raise ValueError(
        f"{text!r} is no scene: expected such as 'a red circle', 'three stars', "
        "'a ring and a cross', 'a heart left of a square'"
    )
