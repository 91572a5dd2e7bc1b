"""Prompts to prove plans with, made from words: as many as are asked, the same for a seed.

GenEval's six kinds (Ghosh et al. 2023, arXiv 2310.11513) with words of our own, scenes and styles.
None of them is among the prompts that a plan is chosen with (``builtin.jsonl``).
"""

from __future__ import annotations

import random
from collections.abc import Collection
from itertools import cycle, islice

from ..supply import Purpose

THINGS = (
    *("apple", "backpack", "balloon", "basket", "bench", "bicycle", "bird", "boat", "book"),
    *("bottle", "bowl", "bridge", "bus", "butterfly", "cake", "camera", "candle", "car", "castle"),
    *("cat", "chair", "clock", "coat", "computer", "couch", "cow", "crown", "cup", "deer", "dog"),
    *("door", "dragon", "drum", "duck", "elephant", "fish", "flower", "fork", "fox", "frog"),
    *("giraffe", "glove", "guitar", "hammer", "hat", "helicopter", "horse", "house", "jacket"),
    *("kettle", "key", "kite", "knife", "ladder", "lamp", "laptop", "leaf", "lemon", "lion"),
    *("mailbox", "mirror", "mountain", "mouse", "mushroom", "owl", "parrot", "pear", "pencil"),
    *("penguin", "piano", "pizza", "plate", "rabbit", "robot", "rocket", "sandwich", "scarf"),
    *("sheep", "ship", "shoe", "skateboard", "snail", "spoon", "suitcase", "swan", "table"),
    *("teapot", "telescope", "tent", "tiger", "toaster", "tractor", "train", "tree", "truck"),
    *("turtle", "umbrella", "vase", "violin", "wagon", "whale", "windmill", "zebra"),
)
COLORS = ("black", "blue", "brown", "green", "orange", "pink", "purple", "red", "white", "yellow")
NUMBERS = ("two", "three", "four")
PLACES = ("to the left of", "to the right of", "above", "below")
SETTINGS = (
    *("in a snowy forest", "on a beach at sunset", "in a busy market", "on a rooftop at night"),
    *("in a quiet library", "beside a waterfall", "in a desert", "under a stormy sky"),
    *("in an old workshop", "on a mountain path", "in a field of sunflowers", "by a window"),
)
STYLES = (
    *("a watercolour painting of", "a pencil sketch of", "a pixel art picture of"),
    *("an oil painting of", "a stained glass window of", "a studio photo of", "a paper cut of"),
    *("a black and white photo of", "a children's book illustration of", "a clay model of"),
)
KINDS = (
    *("single_object", "two_object", "counting", "colors", "position", "color_attr"),
    *("scene", "style"),
)
TRIES = 20  # draws after which a kind has run out of new prompts
MARKS: dict[str, str] = {"race": "race", "proof": "held out"}


def template_prompts(
    purpose: Purpose, count: int, known: Collection[str] = ()
) -> list[tuple[str, str]]:
    """``count`` pairs of kind and prompt, the kinds in turn; a purpose shares none with another.

    ``known``: prompts to leave out. A kind that runs out of new ones repeats some: every input has
    a seed of its own.
    """
    rng, seen = random.Random(MARKS[purpose]), set(known)
    words = THINGS[purpose == "race" :: 2]  # a single thing has few prompts: each its own words
    out: list[tuple[str, str]] = []
    for kind in islice(cycle(KINDS), count):
        drawn = (_prompt(kind, words, rng) for _ in range(TRIES))
        text = next((text for text in drawn if text not in seen), None)
        while text is None or text in known:
            text = _prompt(kind, words, rng)
        seen.add(text)
        out.append((kind, text))
    return out


def _prompt(kind: str, things: tuple[str, ...], rng: random.Random) -> str:
    one, other = rng.sample(things, 2)
    color, second = rng.sample(COLORS, 2)
    if kind == "single_object":
        return f"a photo of {_a(one)} {rng.choice(SETTINGS)}"
    if kind == "two_object":
        return f"a photo of {_a(one)} and {_a(other)}"
    if kind == "counting":
        return f"a photo of {rng.choice(NUMBERS)} {_plural(one)} {rng.choice(SETTINGS)}"
    if kind == "colors":
        return f"a photo of {_a(f'{color} {one}')}"
    if kind == "position":
        return f"a photo of {_a(one)} {rng.choice(PLACES)} {_a(other)}"
    if kind == "color_attr":
        return f"a photo of {_a(f'{color} {one}')} and {_a(f'{second} {other}')}"
    if kind == "scene":
        return f"{_a(f'{color} {one}')} and {_a(other)} {rng.choice(SETTINGS)}"
    return f"{rng.choice(STYLES)} {_a(one)} {rng.choice(SETTINGS)}"


def _a(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _plural(thing: str) -> str:
    if thing in ("fish", "deer", "sheep"):
        return thing
    if thing == "mouse":
        return "mice"
    if thing == "leaf":
        return "leaves"
    if thing == "knife":
        return "knives"
    if thing.endswith("y"):
        return f"{thing[:-1]}ies"
    return f"{thing}es" if thing.endswith(("s", "x", "ch", "sh")) else f"{thing}s"
