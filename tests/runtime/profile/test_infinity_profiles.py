"""The shipped figures, and other aspect ratios.

pytest tests/runtime/profile/test_infinity_profiles.py
"""

import json
import logging
from pathlib import Path

import pytest
import torch
from conftest import SHARED, infinity_states, prompts

from stagevar_runtime import Profile, Sampling, load
from stagevar_runtime.errors import StagevarError
from stagevar_runtime.families.infinity.sizes import without_weights
from stagevar_runtime.loop.plan import compile_plan
from stagevar_runtime.profile import (
    CreatedBy,
    ModelRef,
    PlanEntry,
    PlanStep,
    TokenOption,
    dump_profile,
    load_profile,
)
from stagevar_runtime.profile.discovery import find_profile
from stagevar_runtime.profile.fingerprint import Fingerprint, schedule
from tools import infinity_profiles

FOLDER = Path(__file__).resolve().parents[3] / "profiles"


@pytest.mark.parametrize("name", ["2b", "8b"])
def test_shipped_profile_is_what_the_script_writes(name: str) -> None:
    """The architecture's hash is computed again from the published shapes."""
    made, path = infinity_profiles.profile(name), FOLDER / f"infinity-{name}.yaml"
    assert path.read_text() == dump_profile(made)
    model, tensors = without_weights(name)
    parameters = sum(t.numel() for t in tensors.values())
    assert round(parameters / 1e9, 1) == {"2b": 2.2, "8b": 8.4}[name]
    assert model.info.bits == {"2b": 32, "8b": 56}[name] and len(model.info.groups) == 8
    print_ = Fingerprint(made.model.architecture, "sha256:" + 64 * "0")
    found = find_profile(Path("infinity.pth"), print_, environ={})
    assert found and found.path == path and found.profile.model.weights is None


def test_shipped_ranks_are_the_published_ones() -> None:
    published = SHARED / "published/infinity_rank_ratio.json"
    if not published.exists():
        pytest.skip("published figures are not at hand (../shared/published)")
    table = json.loads(published.read_text())["energy"]["0.96"]
    for name in ("2b", "8b"):
        plan = load_profile(FOLDER / f"infinity-{name}.yaml").plan("stagevar")
        assert [list(step.tokens.keep) for step in plan.steps if step.tokens] == table


@pytest.mark.parametrize("ratio", [1.0, 0.571])
def test_shipped_plans_fit_every_ratio(ratio: float) -> None:
    model, _ = without_weights("2b")
    shipped, scales = load_profile(FOLDER / "infinity-2b.yaml"), model.scales(aspect_ratio=ratio)
    paper = compile_plan(shipped.plan("stagevar").steps, model.info, scales, Sampling(3.0))
    assert [step.branches for step in paper[9:]] == [("cond", "null")] + [("null",)] * 3
    assert all(g.tokens and g.tokens.select == "projection" for s in paper[10:] for g in s.groups)
    assert all(step.run == "full" for step in paper)
    released = compile_plan(
        shipped.plan("stagevar-released").steps, model.info, scales, Sampling(3.0)
    )
    assert [step.run for step in released[10:]] == ["full", "skip", "skip"]


@pytest.fixture
def pipeline(tmp_path: Path):
    transformer, tokenizer = infinity_states()
    torch.save(transformer, tmp_path / "infinity_x.pth")
    torch.save({"vae": tokenizer}, tmp_path / "infinity_vae_d4.pth")
    path = tmp_path / "infinity_x.pth"
    return load(path, profile=None, device="cpu", options={"size": "0.06M"})


def square_profile(pipeline) -> Profile:
    scales = tuple((h, w) for h, w in schedule(pipeline.model.scales()))
    step = PlanStep(
        scale=6,
        guidance="null",
        tokens=TokenOption(keep=(0.5, 0.25), select="projection", restore="cache"),
    )
    return Profile(
        created_by=CreatedBy(tool="test", version="0"),
        model=ModelRef(
            family="infinity",
            architecture=pipeline.fingerprint.architecture,
            schedules={"16x16": scales},
        ),
        provenance="published",
        default_plan="stagevar",
        plans={"stagevar": PlanEntry(steps=(step,))},
    )


def test_a_square_profile_serves_another_ratio_and_says_so(pipeline, caplog) -> None:
    with caplog.at_level(logging.INFO):
        pipeline.enable(profile=square_profile(pipeline))
    assert "never measured on these weights" in caplog.text
    given = prompts((3, 5))
    pipeline.generate(**given, seed=[1, 2])
    assert "scale index" not in str(pipeline.summary())
    made = pipeline.generate(**given, seed=[1, 2], aspect_ratio=0.5)
    said = str(pipeline.summary())
    assert "was made for 16x16, this is 11x22: its rows apply by scale index" in said
    assert pipeline.summary().rows[6].kept_tokens == (121, 60)
    assert made.images.shape == (2, 3, 22, 44)


def test_a_plan_for_more_scales_than_a_size_has_runs_exact_and_says_so(pipeline, caplog) -> None:
    given = prompts((3,))
    pipeline.disable()
    exact = pipeline.generate(**given, seed=1, size="0.06M")
    pipeline.model.settings = type(pipeline.model.settings)(size="0.25M")
    pipeline.enable([PlanStep(scale=9, run="skip")])
    with caplog.at_level("WARNING", "stagevar_runtime"):
        for _ in range(2):
            made = pipeline.generate(**given, seed=1, size="0.06M")
    assert torch.equal(made.images, exact.images)
    said = "plan custom is for 10 scales, this size has 7: the exact path runs"
    assert [record.message for record in caplog.records] == [said]
    assert said in pipeline.summary().notes


def test_guidance_may_be_a_list(pipeline) -> None:
    given = prompts((3,))
    one = pipeline.generate(**given, seed=1, guidance=2.0)
    many = pipeline.generate(**given, seed=1, guidance=[2.0] * 7)
    assert torch.equal(one.images, many.images)
    with pytest.raises(StagevarError, match=r"guidance has 3 values, .* one per scale: 7"):
        pipeline.generate(**given, guidance=[1.0, 2.0, 3.0])


def test_missing_and_unknown_inputs_are_named(pipeline) -> None:
    with pytest.raises(StagevarError, match="takes text, mask, null_text, null_mask, aspect_ratio"):
        pipeline.generate(text=torch.zeros(1, 2, 24))
