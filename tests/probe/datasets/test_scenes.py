"""Captions, pictures and the rule that judges them.

pytest tests/probe/datasets/test_scenes.py
"""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch

from stagevar_probe.datasets.scenes import KINDS, Asked, Scene, caption, closeness, judge, parse
from stagevar_probe.datasets.scenes import prompts as suite
from stagevar_probe.datasets.scenes.judge import find_objects, passed
from stagevar_probe.datasets.scenes.render import (
    HELD_OUT_PAIRS,
    decide,
    draw_scene,
    held_out,
    render,
    training_scene,
    training_set,
    unseen_pairs,
)
from stagevar_probe.metrics.quality import find_quality
from stagevar_runtime.errors import CalibrationError


@pytest.fixture(scope="module")
def rendered():
    return training_set(240, seed=4)


@pytest.mark.parametrize("kind", KINDS)
def test_captions_are_read_back(kind: str) -> None:
    rng = random.Random(1)
    for _ in range(60):
        scene = draw_scene(rng, kind)
        assert parse(caption(scene)) == scene


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("an orange star", "colors"),
        ("A ring.", "single_object"),
        ("four crosses", "counting"),
        ("three red hearts", "counting"),
        ("a heart left of a square", "position"),
        ("a red circle and a blue ring", "color_attr"),
        ("a circle and a ring", "two_object"),
    ],
)
def test_kinds(text: str, kind: str) -> None:
    assert parse(text).kind == kind


@pytest.mark.parametrize("link", ["and", "left of", "right of", "above", "below"])
def test_two_objects_stand_in_halves_in_reading_order_unless_said(link: str) -> None:
    scene, rng = parse(f"a red circle {link} a blue cross"), random.Random(0)
    for _ in range(12):
        image = torch.from_numpy(render(scene, rng)).movedim(-1, 0) / 255
        places = {f.color: f.center for f in find_objects(image)}
        (x, y), (other_x, other_y) = places["red"], places["blue"]
        right, down = x - other_x, y - other_y
        far = max(right, down, key=abs)
        assert abs(far) > 0.4
        before = link in ("and", "left of", "above")
        assert (far < 0) == before and (link == "and" or (far == right) == ("t of" in link))


@pytest.mark.parametrize("text", ["a dog", "five stars", "a star over a ring", "a star and a star"])
def test_what_is_no_scene_is_said(text: str) -> None:
    with pytest.raises(ValueError, match=text):
        parse(text)


def test_metadata_is_genevals() -> None:
    line = parse("three red hearts").metadata("three red hearts")
    assert line["include"] == [{"class": "heart", "count": 3, "color": "red"}]
    assert line["exclude"] == [{"class": "heart", "count": 4}]
    near = parse("a heart above a square").metadata("")
    assert near["include"][0]["position"] == ["above", 1]


def test_rendered_pictures_pass(rendered) -> None:
    pixels, texts = rendered
    assert {parse(text).kind for text in texts} == set(KINDS)
    assert all(passed(pixels.float() / 255, texts))


def test_other_captions_do_not_pass(rendered) -> None:
    pixels, texts = rendered
    assert sum(passed(pixels.float() / 255, texts[1:] + texts[:1])) < 0.1 * len(texts)
    assert not any(passed(torch.rand(20, 3, 128, 128), texts[:20]))
    assert not any(passed(torch.full((20, 3, 128, 128), 0.5), texts[:20]))


def test_blur_and_noise_are_forgiven(rendered) -> None:
    pixels, texts = rendered
    images = torch.nn.functional.avg_pool2d(pixels.float() / 255, 3, 1, 1)
    images = images + 0.03 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    assert sum(passed(images.clamp(0, 1), texts)) >= 0.95 * len(texts)


def picture(*objects: Asked, position: str | None = None, seed: int = 0) -> torch.Tensor:
    count = objects[0].count
    scene = Scene("counting" if count > 1 else "position", objects, position)
    pixels = render(scene, random.Random(seed))
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255


def test_each_requirement_counts() -> None:
    red, blue = Asked("circle", "red"), Asked("ring", "blue")
    image = picture(red, blue, position="left of")
    assert judge(image, parse("a red circle left of a blue ring"))
    assert judge(image, parse("a blue ring right of a circle"))
    for wrong in (
        "a blue circle and a red ring",
        "a red circle right of a blue ring",
        "a red circle above a blue ring" if find_objects(image)[0].center[1] > 1 else "a star",
        "two circles",
        "a red circle and a blue heart",
    ):
        assert not judge(image, parse(wrong))
    three = picture(Asked("star", "green", 3))
    assert judge(three, parse("three stars")) and not judge(three, parse("two stars"))
    assert not judge(three, parse("four stars"))


def test_closeness_orders_near_misses() -> None:
    image = picture(Asked("circle", "red"), Asked("ring", "blue"), position="left of")
    right = closeness(image, parse("a red circle and a blue ring"))
    half = closeness(image, parse("a red circle and a green ring"))
    wrong = closeness(image, parse("a green star and a yellow heart"))
    assert right > 0.9 > half > wrong
    assert closeness(torch.zeros(3, 64, 64), parse("a star")) == 0.0


def test_training_keeps_its_promises() -> None:
    rng, unseen = random.Random(3), unseen_pairs()
    assert len(unseen) == round(HELD_OUT_PAIRS * 64)
    for _ in range(400):
        scene, decided = training_scene(rng)
        assert not any((a.color, a.shape) in unseen for a in decided.objects)
        assert len(scene.objects) == 1 or not held_out(caption(scene))


def test_suite_asks_what_training_did_not() -> None:
    asked = suite.suite_prompts(140, seed=0)
    assert Counter(kind for kind, _ in asked) == dict.fromkeys(suite.suite_kinds(), 20)
    for kind, text in asked:
        scene = parse(text)
        assert suite.has_unseen(scene) == (kind == suite.UNSEEN)
        assert len(scene.objects) == 1 or held_out(text)
        assert scene.kind == ("colors" if kind == suite.UNSEEN else kind)
    assert asked == suite.suite_prompts(140, seed=0) != suite.suite_prompts(140, seed=1)
    lines = suite.prompt_lines(60, seed=0)
    assert not {text for kind, text in asked if kind in ("position", "color_attr")} & set(lines)


def test_real_pictures_pass_and_differ_from_training() -> None:
    prompts = [text for _, text in suite.suite_prompts(35, seed=0)]
    real = suite.real_pictures(prompts, seed=0)
    assert real.shape == (35, 3, 128, 128) and all(passed(real, prompts))
    assert not torch.equal(real, suite.real_pictures(prompts, seed=1))


@pytest.mark.parametrize("side", [96, 256])
def test_pictures_of_another_side_show_the_same(side: int) -> None:
    prompts = [text for _, text in suite.suite_prompts(14, seed=0)]
    real = suite.real_pictures(prompts, seed=0, side=side)
    assert real.shape == (14, 3, side, side) and sum(passed(real, prompts)) >= 13
    usual = suite.real_pictures(prompts, seed=0)
    small = torch.nn.functional.interpolate(real, size=(32, 32), mode="area")
    assert (small - torch.nn.functional.avg_pool2d(usual, 4)).abs().mean() < 0.01


def test_decided_scenes_have_colours() -> None:
    scene = decide(parse("a circle above a red ring"), random.Random(0))
    assert all(asked.color for asked in scene.objects) and scene.objects[1].color == "red"


def test_the_metric(tmp_path) -> None:
    quality = find_quality("scenes", tmp_path / "m.safetensors", 0, "pixels")
    prompts = [text for _, text in suite.suite_prompts(14, seed=0)]
    real = suite.real_pictures(prompts, seed=0)
    assert quality.score(real, prompts, real).tolist() == [1.0] * 14
    assert quality.smooth(real, prompts, real).mean() > 0.9
    assert quality.smooth(torch.zeros_like(real), prompts, real).tolist() == [0.0] * 14
    assert quality.reference is not None and quality.reference.shape == (1000, 768)
    with pytest.raises(CalibrationError, match="a dog"):
        quality.score(real[:1], ["a dog"], real[:1])
