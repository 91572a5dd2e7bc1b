"""Random arguments to ``generate`` on every family: a finite picture, or an error of ours.

pytest tests/fuzz/test_fuzz_arguments.py            # -m slow: all 10⁴
"""

from __future__ import annotations

import contextlib
import decimal
import fractions
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from family_files import STATES, inputs_of, write_family
from guarded import typed
from mutations import ODD

from stagevar_runtime import Pipeline, Sampling, load
from stagevar_runtime.errors import StagevarError
from stagevar_runtime.profile.presets import PRESETS

COUNTS = [150, pytest.param(10_000, marks=pytest.mark.slow)]
Chance = random.Random

NUMBERS: tuple[Callable[[Any], Any], ...] = (
    *(int, float, str, np.int64, np.float32, np.array, torch.tensor, fractions.Fraction),
    *(decimal.Decimal, complex, iter, lambda n: [n], lambda n: (n, n), lambda n: [n] * 4),
    *(lambda n: np.array([n] * 4), lambda n: torch.tensor([n] * 4), lambda n: range(n, n + 1)),
)
AROUND: tuple[Callable[[], Any], ...] = (
    contextlib.nullcontext,
    torch.inference_mode,
    torch.no_grad,
    torch.enable_grad,
    lambda: torch.autocast("cpu", dtype=torch.bfloat16),
)


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pipeline]:
    made = {}
    for family in STATES:
        path, options = write_family(family, "pth", tmp_path_factory.mktemp(family))
        encode = None if family == "var" else encoder(family)
        made[family] = load(path, profile=None, options=options, text_encoder=encode)
    return made


def encoder(family: str) -> Callable[[list[str]], dict[str, Any]]:
    """Features by the number of prompts."""

    def encode(prompts: list[str]) -> dict[str, Any]:
        if len(prompts) > 3:
            raise StagevarError("three prompts at most")
        return inputs_of(family, len(prompts))

    return encode


def odd_number(chance: Chance, plain: tuple[Any, ...]) -> Any:
    """Mostly a number as people write it, sometimes what is none."""
    if chance.random() < 0.25:
        return chance.choice(ODD)
    with contextlib.suppress(Exception):
        return chance.choice(NUMBERS)(chance.choice(plain))
    return None


def odd_tensor(chance: Chance, tensor: torch.Tensor) -> Any:
    """A tensor of features in another form, shape, dtype or with other values."""
    pick: tuple[Callable[[], Any], ...] = (
        lambda: tensor.numpy(),
        lambda: tensor.tolist(),
        lambda: tensor.double(),
        lambda: tensor.half(),
        lambda: tensor.to(torch.float8_e4m3fn),
        lambda: tensor.bool(),
        lambda: tensor.long(),
        lambda: tensor[:0],
        lambda: tensor[None],
        lambda: tensor[..., :-1],
        lambda: torch.cat([tensor, tensor]),
        lambda: tensor.flatten(),
        lambda: tensor.float() * 1e30,
        lambda: tensor.float() * torch.nan,
        lambda: tensor.float().requires_grad_(),
        lambda: tensor.to("meta"),
        lambda: tensor.float().to_sparse(),
        lambda: tensor.float() * 1j,
        lambda: chance.choice(ODD),
    )
    return chance.choice(pick)()


def random_arguments(chance: Chance, family: str) -> dict[str, Any]:
    """What ``generate`` gets."""
    images = chance.randint(1, 3)
    given: dict[str, Any] = inputs_of(family, images)
    if family != "var" and chance.random() < 0.2:
        given = {"prompts": chance.choice((["a"] * images, "a", *ODD))}
    for name in list(given):
        if chance.random() < 0.08:
            value = given[name]
            odd = (
                odd_tensor(chance, value)
                if torch.is_tensor(value)
                else odd_number(chance, (0, 1, 4, 5))
            )
            given[name] = odd
    if chance.random() < 0.05:
        given.pop(chance.choice(list(given)))
    if chance.random() < 0.05:
        given[chance.choice(("prompt", "label", "x", "size", "mask"))] = chance.choice(ODD)
    settings = {
        "seed": (0, 3, 2**32, 2**63, 2**64 - 1, 2**64),
        "guidance": (0, 1, 1.5, 3, 30, 1e6, -2),
        "temperature": (0.1, 1, 2, 1e-5, 1e6),
        "top_k": (0, 1, 9, 900, 10**6),
        "top_p": (0, 0.5, 0.97, 1),
    }
    for name, plain in settings.items():
        if chance.random() < 0.3:
            given[name] = odd_number(chance, plain)
    if chance.random() < 0.1:
        given["sampling"] = chance.choice((Sampling(), Sampling(3.0, smooth_from=1), *ODD))
    if family == "infinity" and chance.random() < 0.3:
        sizes = (
            {"size": "0.06M"},
            {"aspect_ratio": "16:9", "size": "0.06M"},
            {"height": 256, "width": 256},
        )
        given |= chance.choice(
            (*sizes, {"size": chance.choice(ODD)}, {"aspect_ratio": chance.choice(ODD)})
        )
    return given


def random_plan(chance: Chance, pipeline: Pipeline) -> None:
    """One of the presets, some steps, or none."""
    names = ["guidance", "tokens", "temperature", "null_keep", "guidance_scale", "run", "features"]
    values: tuple[Any, ...] = ("cond", "delta", "null", "full", "skip", 0.5, 3.0, *ODD)
    steps = [
        {"scale": k, chance.choice(names): chance.choice(values)}
        for k in sorted(chance.sample(range(5), chance.randint(1, 3)))
    ]
    chosen = chance.choice((None, *PRESETS, *PRESETS, steps, steps, steps))
    if chosen is None:
        pipeline.disable()
    else:
        pipeline.enable(chosen)


@pytest.mark.parametrize("count", COUNTS)
def test_arguments(pipelines: dict[str, Pipeline], count: int) -> None:
    drawn = 0
    for number in range(count):
        chance = random.Random(number)
        family = chance.choice(list(pipelines))
        pipeline, what = pipelines[family], f"case {number}, {family}"
        given = random_arguments(chance, family)
        if chance.random() < 0.5:
            typed(what, lambda c=chance, p=pipeline: random_plan(c, p))
        with chance.choice(AROUND)():
            made = typed(what, lambda p=pipeline, g=given: p.generate(**g))
        if made is None:
            continue
        drawn += 1
        assert made.images.shape[1] == 3 and made.images.dtype == torch.float32, what
        assert bool(made.images.isfinite().all()), f"{what}: not finite"
        assert 0 <= made.images.min() and made.images.max() <= 1, what
        if chance.random() < 0.05:  # and the same once more
            pipeline_again = typed(what, lambda p=pipeline, g=given: p.generate(**g))
            assert pipeline_again is None or torch.equal(pipeline_again.images, made.images), what
    assert drawn > count // 5, drawn
