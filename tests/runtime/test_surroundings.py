"""The same bits in every surrounding, and normal tensors back.

pytest tests/runtime/test_surroundings.py
"""

from __future__ import annotations

import os
import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from conftest import prompts, tiny_infinity, write_tiny
from tiny_families import hart_inputs, star_inputs, switti_inputs, tiny_hart, tiny_star, tiny_switti
from torch import Tensor

from stagevar_runtime import generate, load, replay
from stagevar_runtime.errors import NotFiniteError, StagevarError
from stagevar_runtime.model.sampling import Sampling, multinomial_no_sync, seeded
from stagevar_runtime.model.surroundings import undisturbed
from stagevar_runtime.profile import PlanStep

CPU = torch.device("cpu")


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
        assert torch.get_default_dtype() == dtype
    finally:
        torch.set_default_dtype(before)


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


SURROUNDINGS = {
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "float64": lambda: default_dtype(torch.float64),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "another default device": lambda: torch.device("meta"),
    "inference_mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "enable_grad": torch.enable_grad,
    "deterministic": deterministic,
}


def families() -> dict[str, Callable[[], tuple]]:
    def infinity():
        model = tiny_infinity()
        return model, model.condition(**prompts((3, 5)))

    def made(build, inputs):
        def both():
            model = build()
            return model, inputs(model, [0, 1])

        return both

    return {
        "infinity": infinity,
        "switti": made(tiny_switti, switti_inputs),
        "star": made(tiny_star, star_inputs),
        "hart": made(tiny_hart, hart_inputs),
    }


@pytest.mark.parametrize("family", ["var", *families()])
@pytest.mark.parametrize("name", SURROUNDINGS)
def test_same_bits(name: str, family: str, tiny_var) -> None:
    if family == "var":
        model, given = tiny_var, tiny_var.condition(labels=[1, 2])
    else:
        model, given = families()[family]()
    expected = generate(model, given, seed=3)
    replayed = replay(model, given, expected.ids, seed=3)  # HART mixes codes, ids alone differ
    with SURROUNDINGS[name]():
        made = generate(model, given, seed=3)
        seen = replay(model, given, made.ids, seed=3)
    assert made.images.dtype == torch.float32
    assert torch.equal(made.images, expected.images)
    assert torch.equal(seen.image, replayed.image)
    for tensor in (made.images, made.canvas, *made.ids, seen.image, *seen.logits):
        assert not tensor.is_inference() and not tensor.requires_grad


@pytest.mark.parametrize("name", SURROUNDINGS)
def test_loading_and_reading_anywhere(name: str, tmp_path: Path) -> None:
    path = write_tiny(tmp_path)
    expected = load(path, profile=None)
    with SURROUNDINGS[name]():
        made = load(path, profile=None)
        images = made.generate(labels=[1]).images
        assert made.fingerprint == expected.fingerprint
        decoded = made.model.tokenizer.decode(torch.ones(1, 32, 4, 4, device="cpu").float())
    assert torch.equal(images, expected.generate(labels=[1]).images)
    plain = expected.model.tokenizer.decode(torch.ones(1, 32, 4, 4))
    assert torch.equal(decoded.detach(), plain.detach())


def test_pictures_can_be_changed_and_trained_on(tiny_var) -> None:
    made = generate(tiny_var, tiny_var.condition(labels=[1]))
    torch.nn.Conv2d(3, 4, 3)(made.images).sum().backward()
    made.images.mul_(255)


def test_threads(tiny_var) -> None:
    given = tiny_var.condition(labels=[1, 2])
    expected = generate(tiny_var, given, seed=3).images
    found: list[Tensor] = []

    def run() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found.append(generate(tiny_var, given, seed=3).images)

    with default_dtype(torch.float64):
        threads = [threading.Thread(target=run) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(found) == 4 and all(torch.equal(images, expected) for images in found)


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_forked(tiny_var) -> None:
    """OpenMP's threads are not there in the child: it must not wait for them."""
    torch.set_num_threads(2)
    try:
        given = tiny_var.condition(labels=[1, 2])
        big = torch.randn(512, 512)
        (big @ big).sum()  # the pool of threads is there
        expected = generate(tiny_var, given, seed=3).images
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            same = torch.equal(generate(tiny_var, given, seed=3).images, expected)
            os.write(write, b"same" if same else b"different")
            os._exit(0)
        os.close(write)
        with os.fdopen(read, "rb") as answer:
            assert answer.read() == b"same"
        os.waitpid(child, 0)
    finally:
        torch.set_num_threads(1)


def test_pickle(calibrated: Path) -> None:
    pipeline = load(calibrated)
    pipeline.enable([PlanStep(scale=2, guidance="cond")])
    there = pickle.loads(pickle.dumps(pipeline))
    assert there.plan_name == pipeline.plan_name and there.steps == pipeline.steps
    assert there.profile == pipeline.profile and there.profile_source == pipeline.profile_source
    images = [p.generate(labels=[1, 2], seed=5).images for p in (pipeline, there)]
    assert torch.equal(*images)
    exact = pickle.loads(pickle.dumps(pipeline.disable()))
    assert exact.plan_name == "exact" and not exact.steps


def test_pickle_says_why_not(tmp_path: Path) -> None:
    pipeline = load(write_tiny(tmp_path), profile=None, text_encoder=lambda prompts: {})
    with pytest.raises(StagevarError, match=r"cannot be pickled: .*load it there"):
        pickle.dumps(pipeline)


def test_default_dtype_comes_back_after_an_error() -> None:
    with default_dtype(torch.float64):
        with pytest.raises(KeyError), undisturbed(), undisturbed():
            raise KeyError
        assert torch.get_default_dtype() == torch.float64


@pytest.mark.parametrize("own", [False, True])
def test_overflow_is_said(tiny_files: Path, own: bool) -> None:
    state = torch.load(tiny_files, weights_only=True)
    state["blocks.1.ffn.fc2.weight"] *= 1e5
    torch.save(state, tiny_files)
    model = load(tiny_files, profile=None, dtype=torch.float16)
    with pytest.raises(NotFiniteError, match=r"logits at scale 0 .* in float16.*bfloat16"):
        model.generate(labels=[1], seed=[0] if own else 0)


def test_a_canvas_that_is_not_finite(tiny_var) -> None:
    given = tiny_var.condition(labels=[1])
    weight = tiny_var.tokenizer.quantize.embedding.weight
    kept = weight.clone()
    try:
        weight.fill_(torch.inf)
        with pytest.raises(NotFiniteError, match=r"canvas|logits"):
            generate(tiny_var, given)
    finally:
        weight.copy_(kept)


def test_race_of_clocks_draws_as_torch_does() -> None:
    good = torch.rand(3, 5).softmax(-1)
    drawn = multinomial_no_sync(good, torch.Generator().manual_seed(0))
    assert torch.equal(
        drawn, torch.multinomial(good, 1, generator=torch.Generator().manual_seed(0))
    )


def test_seeds_past_32_bits_have_numbers_of_their_own() -> None:
    seeds = [0, 1, 2**32 - 1, 2**32, 2**32 + 1, 2**33, 2**63, 2**64 - 2, 2**64 - 1]
    drawn = [tuple(torch.rand(8, generator=seeded(s, CPU)).tolist()) for s in seeds]
    assert len(set(drawn)) == len(seeds)
    for seed in (0, 7, 2**32 - 1):  # as PyTorch draws them
        theirs = torch.rand(8, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(torch.rand(8, generator=seeded(seed, CPU)), theirs)
    many = torch.rand(100_000, generator=seeded(2**64 - 1, CPU))
    assert abs(many.mean().item() - 0.5) < 0.005 and abs(many.std().item() - 12**-0.5) < 0.005


def test_settings_are_plain_numbers() -> None:
    made = Sampling(guidance=torch.tensor(3.0), top_k=900.0, temperature=torch.tensor(1))
    assert made == Sampling(guidance=3.0, top_k=900, temperature=1)
    assert type(made.guidance) is float and type(made.top_k) is int
