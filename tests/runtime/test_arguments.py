"""Prompts, labels, numbers and seeds as people pass them: what is meant, or an error that names it.

pytest tests/runtime/test_arguments.py
"""

from __future__ import annotations

import decimal
import fractions
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import infinity_states, write_tiny

from stagevar_runtime import Pipeline, Sampling, load
from stagevar_runtime.errors import StagevarError

WIDTH = 24


@pytest.fixture(scope="module")
def var(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return load(write_tiny(tmp_path_factory.mktemp("var")), profile=None)


def encode(prompts: list[str]) -> dict[str, torch.Tensor]:
    """One token per prompt, from its text alone."""
    rows = [torch.Generator().manual_seed(len(text)) for text in prompts]
    text = torch.stack([torch.randn(1, WIDTH, generator=g) for g in rows])
    return {"text": text, "mask": torch.ones(len(prompts), 1, dtype=torch.bool)}


@pytest.fixture(scope="module")
def infinity(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    folder = tmp_path_factory.mktemp("infinity")
    transformer, tokenizer = infinity_states()
    torch.save(transformer, folder / "infinity_tiny.pth")
    torch.save({"vae": tokenizer}, folder / "infinity_vae_tiny.pth")
    options = {"size": "0.06M"}
    path = folder / "infinity_tiny.pth"
    return load(path, profile=None, options=options, text_encoder=encode)


def test_a_string_is_one_prompt(infinity: Pipeline) -> None:
    one = infinity.generate(prompts="a cat").images
    assert one.shape[0] == 1
    for many in (["a cat"], ("a cat",), np.array(["a cat"]), iter(["a cat"]), [np.str_("a cat")]):
        assert torch.equal(infinity.generate(prompts=many).images, one)
    assert infinity.generate(prompts=["a", "b c"]).images.shape[0] == 2


@pytest.mark.parametrize(
    "given", [[], (), [None], ["a", None], b"a", [b"a"], 3, [3], {"a": 1}, {"a"}, "\ud800", [["a"]]]
)
def test_no_prompts(infinity: Pipeline, given: Any) -> None:
    with pytest.raises(StagevarError, match=r"prompt"):
        infinity.generate(prompts=given)


@pytest.mark.parametrize(
    "given",
    [
        3,
        3.0,
        np.int64(3),
        [3],
        (3,),
        np.array([3]),
        torch.tensor(3),
        torch.tensor([[3]]),
        [[3]],
        np.uint64(3),
        torch.tensor([3], dtype=torch.uint8),
        [np.float32(3)],
        np.array(["x", 3])[1:],
    ],
)
def test_labels(var: Pipeline, given: Any) -> None:
    if isinstance(given, np.ndarray) and given.dtype.kind == "U":
        with pytest.raises(StagevarError, match="expected labels from 0 to 4"):
            var.generate(labels=given)
        return
    expected = var.generate(labels=[3]).images
    assert torch.equal(var.generate(labels=given).images, expected)


@pytest.mark.parametrize(
    "given",
    [
        [],
        None,
        [None],
        "1",
        ["1"],
        [1.7],
        -1,
        5,
        2**63,
        10**30,
        -(10**30),
        True,
        [float("nan")],
        float("inf"),
        b"1",
        {1: 2},
        {1},
        [[]],
        torch.zeros(0),
        1j,
        object(),
        torch.tensor([1.5]),
    ],
)
def test_no_labels(var: Pipeline, given: Any) -> None:
    with pytest.raises(StagevarError, match="expected labels from 0 to 4"):
        var.generate(labels=given)


@pytest.mark.parametrize(
    ("name", "given", "plain"),
    [
        ("seed", np.int64(3), 3),
        ("seed", torch.tensor(3), 3),
        ("seed", 3.0, 3),
        ("seed", np.array(3), 3),
        ("seed", np.array([3]), [3]),
        ("seed", range(3, 4), [3]),
        ("seed", torch.tensor([3]), [3]),
        ("guidance", np.float32(3), 3),
        ("guidance", torch.tensor(3.0), 3),
        ("guidance", fractions.Fraction(3), 3),
        ("guidance", decimal.Decimal(3), 3),
        ("guidance", [3, 2, 1, 0], (3, 2, 1, 0)),
        ("guidance", np.array([3, 2, 1, 0]), (3, 2, 1, 0)),
        ("guidance", torch.tensor([3, 2, 1, 0]), (3, 2, 1, 0)),
        ("temperature", np.float64(0.5), 0.5),
        ("top_k", np.int64(9), 9),
        ("top_k", 9.0, 9),
        ("top_k", [9] * 4, 9),
        ("top_p", np.float64(0.5), 0.5),
    ],
)
def test_numbers(var: Pipeline, name: str, given: Any, plain: Any) -> None:
    a, b = (var.generate(labels=[1], **{name: value}).images for value in (given, plain))
    assert torch.equal(a, b)


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("seed", [None, 2**64, -1, 1.5, NAN, "3", True, [1, 2], [], [None], [1.5], {}, 1j, b"1"]),
        ("guidance", [NAN, INF, -INF, "3", True, [1, 2], [], [NAN] * 4, 1e308, 10**400, {}, 1j]),
        ("temperature", [NAN, INF, 0, -1, "1", True, [1.0] * 4, 5e-324, 1e308, {}]),
        ("top_k", [-1, 1.5, NAN, "9", True, [9] * 7, [], 2**40, {}, [None] * 4]),
        ("top_p", [NAN, -0.1, 1.1, "1", True, [0.5], {}]),
    ],
)
def test_no_numbers(var: Pipeline, name: str, values: list[Any]) -> None:
    for value in values:
        if value is None and name != "seed":
            continue
        with pytest.raises(StagevarError, match=name):
            var.generate(labels=[1], **{name: value})


def test_lists_without_end(var: Pipeline) -> None:
    for name in ("seed", "guidance", "top_k", "labels"):
        for endless in (itertools.count(), itertools.repeat(1), range(10**12)):
            with pytest.raises(StagevarError, match=name.removesuffix("s")):
                var.generate(**{"labels": [1], name: endless})


def test_a_list_is_per_scale_or_per_image_by_its_argument(var: Pipeline) -> None:
    """Four scales: four values of guidance are one per scale, whatever the batch."""
    with pytest.raises(StagevarError, match=r"guidance has 2 values, .* per scale: 4"):
        var.generate(labels=[1, 2], guidance=[1.0, 2.0])
    with pytest.raises(StagevarError, match=r"got 4 seeds for 2 images"):
        var.generate(labels=[1, 2], seed=[1, 2, 3, 4])


def test_sampling_that_is_none(var: Pipeline) -> None:
    for wrong in ({"guidance": 3}, "greedy", 3):
        with pytest.raises(StagevarError, match="sampling"):
            var.generate(labels=[1], sampling=wrong)  # type: ignore[arg-type]
    with pytest.raises(StagevarError, match="smooth_from"):
        Sampling(smooth_from=-1)


@pytest.mark.parametrize("seed", [2**32, 2**32 + 1, 2**63 - 1, 2**63, 2**64 - 1])
def test_large_seeds_draw_their_own_picture(var: Pipeline, seed: int) -> None:
    images = {s: var.generate(labels=[1], seed=s).images for s in (seed, seed % 2**32, 0, 1)}
    assert not any(torch.equal(images[seed], images[s]) for s in images if s != seed)
    assert torch.equal(var.generate(labels=[1], seed=seed).images, images[seed])
    own = [var.generate(labels=[1], seed=[s]).images for s in (seed, seed % 2**32)]
    assert not torch.equal(*own)


def features(**changes: Any) -> dict[str, Any]:
    text = torch.randn(1, 4, WIDTH, generator=torch.Generator().manual_seed(0))
    return {"text": text, "mask": torch.tensor([[True, True, False, False]])} | changes


def test_features_in_any_form(infinity: Pipeline) -> None:
    given = features()
    expected = infinity.generate(**given).images
    for change in (
        {"text": given["text"].numpy()},
        {"text": given["text"].tolist(), "mask": given["mask"].tolist()},
        {"mask": given["mask"].long()},
        {"text": given["text"].masked_fill(~given["mask"][..., None], torch.nan)},
        {"text": given["text"].clone().requires_grad_()},
    ):
        assert torch.equal(infinity.generate(**given | change).images, expected)


@pytest.mark.parametrize(
    "change",
    [
        {"text": torch.full((1, 4, WIDTH), torch.nan)},
        {"text": torch.full((1, 4, WIDTH), torch.inf)},
        {"text": "a cat"},
        {"text": None},
        {"text": torch.zeros(1, 4, WIDTH).to_sparse()},
        {"text": torch.zeros(1, 4, WIDTH, device="meta")},
        {"text": torch.zeros(1, 4, WIDTH, dtype=torch.complex64)},
        {"text": [[["a"]]]},
        {"text": torch.zeros(())},
        {"mask": None},
        {"mask": torch.full((1, 4), 0.5)},
        {"mask": torch.zeros(1, 4)},
        {"mask": "yes"},
    ],
)
def test_features_that_are_none(infinity: Pipeline, change: dict[str, Any]) -> None:
    with pytest.raises(StagevarError, match=r"text|mask"):
        infinity.generate(**features(**change))


def test_sizes_as_people_write_them(infinity: Pipeline) -> None:
    expected = infinity.generate(**features(), aspect_ratio=0.571, size="0.06M").images
    for ratio in (np.float32(0.571), torch.tensor(0.571), "16:9", "0.571"):
        made = infinity.generate(**features(), aspect_ratio=ratio, size="0.06M").images
        assert torch.equal(made, expected)
    for wrong in (
        {"aspect_ratio": NAN},
        {"aspect_ratio": "wide"},
        {"aspect_ratio": [1]},
        {"aspect_ratio": 0},
        {"aspect_ratio": "1:0"},
        {"size": ["1M"]},
        {"size": 1},
        {"height": 256.5, "width": 256},
        {"height": "256", "width": 256},
        {"height": 10**400, "width": 256},
    ):
        with pytest.raises(StagevarError, match=r"aspect_ratio|size|height|pixels"):
            infinity.generate(**features(), **wrong)


def test_inputs_of_another_family(var: Pipeline, tmp_path: Path) -> None:
    for given in ({}, {"prompts": "a"}, {"text": 1}, {"labels": 1, "size": "1M"}):
        with pytest.raises(StagevarError, match="labels"):
            var.generate(**given)
