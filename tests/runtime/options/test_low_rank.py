"""Layers through part of their input, on all tokens.

pytest tests/runtime/options/test_low_rank.py
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import prompts, tiny_infinity
from pydantic import ValidationError
from safetensors.torch import save_file

from stagevar_runtime import load
from stagevar_runtime.errors import ProfileError, ProfileMismatchError
from stagevar_runtime.families.var import VAR
from stagevar_runtime.kernels.linear import linear
from stagevar_runtime.loop.engine import generate, replay, start
from stagevar_runtime.loop.plan import compile_plan
from stagevar_runtime.model.protocol import Conditioning, ScaleModel
from stagevar_runtime.options.low_rank import KIND, Bases, Layer, narrow, random_vectors
from stagevar_runtime.profile import (
    CreatedBy,
    FeatureOption,
    ModelRef,
    PlanEntry,
    PlanStep,
    Profile,
    TokenOption,
    dump_profile,
    parse_profile,
    write_profile,
)
from stagevar_runtime.summary import summary_row

HASH = "sha256:" + "0" * 64
HALF = TokenOption(keep=0.5, select="deviation", restore="cache")
QUARTER = FeatureOption(rank=16, basis="random")


def some_bases(model: Any, rank: int, scales: tuple[int, ...], seed: int = 5) -> Bases:
    """Any orthonormal directions and means of the size that inputs have."""
    generator = torch.Generator().manual_seed(seed)
    vectors, means = {}, {}
    for scale in scales:
        for group, blocks in enumerate(model.info.groups):
            for name in model.info.layers:
                at = scale, group, name
                vectors[at] = random_vectors(model.info.width, rank, len(vectors))
                means[at] = torch.randn(len(blocks), model.info.width, generator=generator)
    return Bases(vectors, means)


@pytest.fixture(params=["var", "infinity"])
def drawn(request: pytest.FixtureRequest, tiny_var: VAR) -> tuple[ScaleModel, Conditioning]:
    """A model of each family that has features, and three things to draw."""
    if request.param == "var":
        return tiny_var, tiny_var.condition(labels=torch.tensor([0, 3, 1]))
    model = tiny_infinity()
    return model, model.condition(**prompts((3, 5, 2)))


def made(model: Any, conditioning: Conditioning, *steps: PlanStep, seed: Any = (1, 2, 3)) -> Any:
    plan = compile_plan(steps, model.info, model.scales(), model.default_sampling)
    return generate(model, conditioning, plan, seed=list(seed))


def logits(model: Any, conditioning: Conditioning, ids: list, *steps: PlanStep) -> list:
    plan = compile_plan(steps, model.info, model.scales(), model.default_sampling)
    return replay(model, conditioning, ids, plan).logits


@pytest.mark.parametrize("basis", ["pca", "random"])
def test_all_directions_are_the_exact_path(drawn: Any, basis: str) -> None:
    model, conditioning = drawn
    last = len(model.scales()) - 1
    model.low_rank.use(some_bases(model, model.info.width, (last,)))
    ids = made(model, conditioning).ids
    option = FeatureOption(rank=model.info.width, basis=basis, layers=tuple(model.info.layers))
    exact = logits(model, conditioning, ids)[last]
    whole = logits(model, conditioning, ids, PlanStep(scale=last, features=option))[last]
    torch.testing.assert_close(whole, exact, atol=1e-4, rtol=1e-4)
    assert not torch.equal(whole, exact)  # or the layers were not narrowed at all


def test_every_layer_counts(drawn: Any) -> None:
    model, conditioning = drawn
    last = len(model.scales()) - 1
    ids = made(model, conditioning).ids
    exact = logits(model, conditioning, ids)[last]
    for name in model.info.layers:
        one = FeatureOption(rank=4, basis="random", layers=(name,))
        got = logits(model, conditioning, ids, PlanStep(scale=last, features=one))
        assert (got[last] - exact).abs().max() > 1e-2, name
        assert all(
            torch.equal(a, b)
            for a, b in zip(got[:last], logits(model, conditioning, ids)[:last], strict=True)
        )


def test_inputs_within_the_directions_lose_nothing() -> None:
    """What lies in m + span(P) comes out exactly; what lies outside is replaced by the mean's."""
    generator = torch.Generator().manual_seed(1)
    weight, bias = torch.randn(12, 8, generator=generator), torch.randn(12, generator=generator)
    mean, vectors = torch.randn(8, generator=generator), random_vectors(8, 3, 2)
    layer = Layer(torch.nn.Identity(), weight, bias)
    inside = mean + torch.randn(5, 3, generator=generator) @ vectors.T
    got = linear(inside, weight, bias, narrow=narrow(layer, vectors, mean))
    torch.testing.assert_close(got, inside @ weight.T + bias)
    any_x = torch.randn(5, 8, generator=generator)
    nearest = mean + (any_x - mean) @ vectors @ vectors.T
    got = linear(any_x, weight, None, narrow=narrow(layer._replace(bias=None), vectors, mean))
    torch.testing.assert_close(got, nearest @ weight.T)
    unbiased = narrow(layer._replace(bias=None), vectors, None)
    low = narrow(Layer(layer.module, weight.bfloat16(), bias.bfloat16()), vectors, mean)
    assert {part.dtype for part in low if part is not None} == {torch.bfloat16}
    assert unbiased.bias is None and (unbiased.down.shape, unbiased.up.shape) == ((3, 8), (12, 3))


def test_an_image_is_the_same_in_any_batch(drawn: Any) -> None:
    model, conditioning = drawn
    last = len(model.scales()) - 1
    steps = [
        PlanStep(scale=last - 1, features=QUARTER.model_copy(update={"rank": 8})),
        PlanStep(scale=last, guidance="cond", features=FeatureOption(rank=8, basis="random")),
    ]
    both = made(model, conditioning, *steps)
    alone = made(model, conditioning[1:2], *steps, seed=(2,))
    torch.testing.assert_close(both.images[1], alone.images[0], atol=1e-4, rtol=0)
    exact = made(model, conditioning)
    assert (both.images - exact.images).abs().max() > 1e-3


def test_features_and_tokens_compose(drawn: Any) -> None:
    """At full rank the tokens option alone is left, at a lower one both show."""
    model, conditioning = drawn
    last = len(model.scales()) - 1
    ids = made(model, conditioning).ids
    names = tuple(model.info.layers)

    def at(rank: int | None, tokens: TokenOption | None) -> torch.Tensor:
        features = rank and FeatureOption(rank=rank, basis="random", layers=names)
        step = PlanStep(scale=last, tokens=tokens, features=features or None)
        return logits(model, conditioning, ids, step)[last]

    tokens = at(None, HALF)
    torch.testing.assert_close(at(model.info.width, HALF), tokens, atol=1e-4, rtol=1e-4)
    both = at(4, HALF)
    assert (both - tokens).abs().max() > 1e-2 and (both - at(4, None)).abs().max() > 1e-2


def test_only_layers_that_become_cheaper(tiny_var: VAR) -> None:
    """d 64: qkv from 48 on, the output from 32 on and fc1 from 51.2 on take more products."""

    def layers(rank: int) -> tuple[str, ...]:
        step = PlanStep(scale=2, features=FeatureOption(rank=rank, basis="random"))
        plan = compile_plan([step], tiny_var.info, tiny_var.scales(), tiny_var.default_sampling)
        assert [s.low_rank is None for s in plan] == [True, True, False, True]
        return plan[2].low_rank.layers  # type: ignore[union-attr]

    assert layers(31) == ("qkv", "proj", "fc1")
    assert layers(32) == ("qkv", "fc1")
    assert layers(48) == layers(51) == ("fc1",)
    with pytest.raises(ProfileError, match="makes no layer cheaper, expected one below 51"):
        layers(52)


def refused(model: Any, option: FeatureOption) -> str:
    with pytest.raises(ProfileError) as error:
        compile_plan(
            [PlanStep(scale=2, features=option)],
            model.info,
            model.scales(),
            model.default_sampling,
        )
    return str(error.value)


def test_what_cannot_be_is_refused(tiny_var: VAR) -> None:
    said = refused(tiny_var, FeatureOption(rank=65, basis="random"))
    assert "rank 65, expected at most the width of the model, 64" in said
    said = refused(tiny_var, FeatureOption(rank=8, basis="random", layers=("fc2",)))
    assert "'fc2', expected one of qkv, proj, fc1" in said
    with pytest.raises(ValidationError, match="expected run: skip alone"):
        PlanStep(scale=2, run="skip", features=QUARTER)
    with pytest.raises(ValidationError, match="expected it measured"):
        FeatureOption(rank=8, basis="pca", seed=1)


def test_models_name_the_layers_that_can_be_narrowed(tiny_var: VAR) -> None:
    assert tiny_var.info.layers == {"qkv": 192, "proj": 64, "fc1": 256}
    assert [*tiny_infinity().info.layers] == ["qkv", "proj", "text_q", "text_proj", "fc1"]


def test_a_missing_basis_is_said_before_the_loop(tiny_var: VAR) -> None:
    tiny_var.low_rank.use(some_bases(tiny_var, 16, (2,)))
    conditioning = tiny_var.condition(labels=torch.tensor([0]))
    for scale, rank in ((3, 16), (2, 17)):
        option = FeatureOption(rank=rank, basis="pca")
        plan = compile_plan(
            [PlanStep(scale=scale, features=option)],
            tiny_var.info,
            tiny_var.scales(),
            tiny_var.default_sampling,
        )
        with pytest.raises(ProfileError, match=f"scale {scale} asks for {rank} measured"):
            start(tiny_var, conditioning, plan, 0)


def test_the_first_bases_that_hold_enough_are_used(tiny_var: VAR) -> None:
    few, many = some_bases(tiny_var, 8, (3,), 1), some_bases(tiny_var, 16, (3,), 2)
    conditioning = tiny_var.condition(labels=torch.tensor([0, 1, 2]))

    def images(rank: int, *bases: Bases) -> torch.Tensor:
        tiny_var.low_rank.use(*bases)
        step = PlanStep(scale=3, features=FeatureOption(rank=rank, basis="pca"))
        return made(tiny_var, conditioning, step).images

    assert torch.equal(images(8, few, many), images(8, few))
    assert torch.equal(images(16, few, many), images(16, many))
    assert not torch.equal(images(8, many), images(8, few))


def test_random_directions_are_orthonormal_and_seeded(tiny_var: VAR) -> None:
    torch.testing.assert_close(
        random_vectors(64, 16, 3).T @ random_vectors(64, 16, 3), torch.eye(16)
    )
    conditioning = tiny_var.condition(labels=torch.tensor([0, 1, 2]))

    def images(seed: int) -> torch.Tensor:
        option = FeatureOption(rank=16, basis="random", seed=seed)
        return made(tiny_var, conditioning, PlanStep(scale=3, features=option)).images

    assert torch.equal(images(1), images(1)) and not torch.equal(images(1), images(2))
    at = tiny_var.low_rank.at(3, next(iter(tiny_var.low_rank._made))[0])
    assert not torch.equal(at[0]["qkv"].down, at[1]["qkv"].down)  # a group each


def test_the_file_is_half_as_large_and_orthonormal_again(tmp_path: Path, tiny_var: VAR) -> None:
    bases = some_bases(tiny_var, 16, (2, 3))
    (tmp_path / "x.safetensors").write_bytes(bases.cut({3: 8}).dump(HASH))
    read = Bases.load(tmp_path / "x.safetensors", HASH)
    assert read.vectors.keys() == {p for p in bases.vectors if p[0] == 3}
    for place, vectors in read.vectors.items():
        torch.testing.assert_close(vectors.T @ vectors, torch.eye(8), atol=1e-6, rtol=0)
        own = bases.vectors[place][:, :8]
        torch.testing.assert_close(vectors @ vectors.T, own @ own.T, atol=2e-3, rtol=0)
        torch.testing.assert_close(read.means[place], bases.means[place], atol=2e-3, rtol=0)
    with pytest.raises(ProfileMismatchError, match="was measured on weights sha256:00000000"):
        Bases.load(tmp_path / "x.safetensors", "sha256:" + "1" * 64)
    save_file({"a": torch.zeros(1)}, tmp_path / "y.safetensors")
    with pytest.raises(ProfileError, match="kind is None"):
        Bases.load(tmp_path / "y.safetensors", HASH)
    half = {"3.0.qkv.vectors": torch.zeros(4, 2)}
    save_file(half, tmp_path / "w.safetensors", {"kind": KIND, "weights": HASH})
    with pytest.raises(ProfileError, match=r"damaged bases at 3\.0\.qkv"):
        Bases.load(tmp_path / "w.safetensors", HASH)
    for vectors, means in (((4,), (1, 4)), ((4, 2), (1, 5)), ((0, 0), (4,))):
        shapes = {"3.0.qkv.vectors": torch.ones(vectors), "3.0.qkv.means": torch.ones(means)}
        save_file(shapes, tmp_path / "w.safetensors", {"kind": KIND, "weights": HASH})
        with pytest.raises(ProfileError, match=r"damaged bases at 3\.0\.qkv.*Recalibrate"):
            Bases.load(tmp_path / "w.safetensors", HASH)
    (tmp_path / "z.safetensors").write_bytes(b"nothing")
    with pytest.raises(ProfileError, match="cannot be read"):
        Bases.load(tmp_path / "z.safetensors", HASH)


def profile_of(pipeline: Any, **plans: tuple[PlanStep, ...]) -> Profile:
    return Profile(
        created_by=CreatedBy(tool="test", version="0"),
        model=ModelRef(
            family="var",
            architecture=pipeline.fingerprint.architecture,
            weights=pipeline.fingerprint.weights,
            schedules={"4x4": tuple(s.grid for s in pipeline.model.scales())},
        ),
        provenance="measured",
        default_plan=next(iter(plans)),
        plans={name: PlanEntry(steps=steps) for name, steps in plans.items()},
    )


def test_the_bases_are_found_beside_the_profile(tiny_files: Path) -> None:
    pipeline = load(tiny_files, profile=None, device="cpu")
    steps = (PlanStep(scale=3, features=FeatureOption(rank=16, basis="pca")),)
    profile = profile_of(pipeline, balanced=steps)
    assert parse_profile(dump_profile(profile)) == profile
    assert "features: {rank: 16, basis: pca}" in dump_profile(profile)
    write_profile(profile, tiny_files.with_suffix(".stagevar.yaml"))
    with pytest.raises(ProfileError, match="asks for 16 measured directions"):
        load(tiny_files, device="cpu")
    beside = tiny_files.with_suffix(".stagevar.safetensors")
    bases = some_bases(pipeline.model, 16, (3,))
    beside.write_bytes(bases.dump(pipeline.fingerprint.weights))
    found = load(tiny_files, device="cpu")
    pipeline.model.low_rank.use(bases)  # type: ignore[attr-defined]
    pipeline.enable(steps)
    a, b = (p.generate(labels=[0, 1], seed=[1, 2]).images for p in (found, pipeline))
    torch.testing.assert_close(a, b, atol=2e-2, rtol=0)  # half precision apart
    last = found.summary().rows[-1]
    assert last.asked == "rank 16 pca" and "features 16 pca in qkv proj fc1" in last.done
    given = load(tiny_files, device="cpu", profile=profile)  # an object: beside the checkpoint
    assert torch.equal(given.generate(labels=[0, 1], seed=[1, 2]).images, a)
    beside.write_bytes(bases.dump(HASH))
    with pytest.raises(ProfileMismatchError):
        load(tiny_files, device="cpu")


def test_a_plan_without_measured_bases_needs_no_file(tiny_files: Path) -> None:
    pipeline = load(tiny_files, profile=None, device="cpu")
    random = (PlanStep(scale=3, features=QUARTER),)
    measured = (PlanStep(scale=3, features=FeatureOption(rank=16, basis="pca")),)
    pipeline.use_profile(profile_of(pipeline, balanced=random, fast=measured))
    assert "features 16 random" in str(pipeline.summary())
    with pytest.raises(ProfileError, match="file beside the profile"):
        pipeline.enable("fast")


def test_bases_in_a_folder_are_no_weights(tmp_path: Path, tiny_files: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    tokenizer = tiny_files.with_name("vae_tiny.pth")
    tiny_files.rename(folder / "var_tiny.pth")
    (folder / "stagevar.safetensors").write_bytes(Bases({}, {}).dump(HASH))
    pipeline = load(folder, tokenizer=tokenizer, device="cpu", profile=None)
    assert pipeline.model.info.family == "var"


def test_summary_says_what_was_not_narrowed(tiny_var: VAR) -> None:
    step = PlanStep(scale=2, features=FeatureOption(rank=40, basis="random", seed=3))
    plan = compile_plan([step], tiny_var.info, tiny_var.scales(), tiny_var.default_sampling)
    row = summary_row(tiny_var, plan[2], 1.0, 2)
    assert (row.asked, "features 40 random in qkv fc1" in row.done) == ("rank 40 random", True)
    assert replace(plan[2], layers=()) != plan[2] and hash(plan[2])
