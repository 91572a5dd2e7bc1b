"""Shipped figures, presets on every family.

pytest tests/runtime/profile/test_star_hart_profiles.py
"""

import json
from pathlib import Path

import pytest
import torch
from conftest import SHARED
from tiny_text import hart_states, star_states, switti_states, text_features

from stagevar_runtime.errors import ProfileError
from stagevar_runtime.families import families
from stagevar_runtime.families.hart import HART
from stagevar_runtime.families.star import STAR
from stagevar_runtime.families.switti import Switti
from stagevar_runtime.loop import engine
from stagevar_runtime.loop.plan import compile_plan, plan_for
from stagevar_runtime.profile import FeatureOption, PlanStep, dump_profile
from stagevar_runtime.profile.discovery import find_profile
from stagevar_runtime.profile.fingerprint import Fingerprint
from stagevar_runtime.profile.presets import PRESETS, preset
from tools import star_hart_profiles

FOLDER = Path(__file__).resolve().parents[3] / "profiles"
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("file", "family", "billions"), [("star-1024", "star", 1.68), ("hart-0.7b", "hart", 0.73)]
)
def test_shipped_profile_is_what_the_script_writes(file: str, family: str, billions: float) -> None:
    """The architecture's hash is computed again from the published shapes."""
    script = star_hart_profiles
    made = getattr(script, f"{family}_profile")()
    assert (FOLDER / f"{file}.yaml").read_text() == dump_profile(made)
    model, tensors = getattr(script, f"build_{family}")()
    assert round(sum(t.numel() for t in tensors.values()) / 1e9, 2) == billions
    print_ = Fingerprint(made.model.architecture, "sha256:" + 64 * "0")
    found = find_profile(Path(f"{family}.pth"), print_, environ={})
    assert found and found.profile.provenance == "published" and found.profile.model.weights is None
    plan = compile_plan(made.plan().steps, model.info, model.scales(), model.default_sampling)
    assert [len(step.branches) for step in plan] == [2] * 12 + [1] * 2
    assert plan[-1].reduced == (family == "star")


def test_shipped_star_ranks_are_the_published_ones() -> None:
    published = SHARED / "published/star_rank_ratio.json"
    if not published.exists():
        pytest.skip("published figures are not at hand (../shared/published)")
    table = json.loads(published.read_text())["energy"]["0.96"]["mean"][0]
    assert list(star_hart_profiles.STAR_RANKS) == table


def tiny(name: str):
    """A model with 13 scales, so that the presets reduce three of them, and its inputs."""
    sides = (1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 3, 4, 5)
    features = text_features(2, 24, 24)
    if name == "star":
        options = {"patch_nums": sides}
        model = STAR.from_tensors(*star_states(sides=sides), CPU, torch.float32, options)
        return model, model.condition(**features)
    if name == "hart":
        model = HART.from_tensors(*hart_states(sides=sides), CPU, torch.float32, {})
        return model, model.condition(context=features["context"], mask=features["mask"])
    states = switti_states(sides=sides, causal=name == "switti-ar")
    model = Switti.from_tensors(*states, CPU, torch.float32)
    return model, model.condition(**text_features(2, 40, 24))


@pytest.mark.parametrize("name", ["star", "hart", "switti", "switti-ar"])
def test_every_preset_runs_and_changes_something(name: str) -> None:
    model, inputs = tiny(name)
    exact = engine.generate(model, inputs, plan_for(model, (), model.default_sampling), seed=[1, 2])
    for kind in PRESETS:
        steps = preset(kind, model.info, model.scales())
        if any(step.precision for step in steps):
            with pytest.raises(ProfileError, match="int8"):
                compile_plan(steps, model.info, model.scales(), model.default_sampling)
            continue
        plan = compile_plan(steps, model.info, model.scales(), model.default_sampling)
        made = engine.generate(model, inputs, plan, seed=[1, 2])
        assert torch.isfinite(made.images).all()
        assert not torch.equal(made.images, exact.images), kind


def test_families_say_what_they_can_do() -> None:
    known = families()
    assert {"var", "infinity", "switti", "star", "hart"} <= known.keys()
    for name in ("star", "hart", "switti", "switti-ar"):
        info = tiny(name)[0].info
        assert info.rows_independent == (name != "star")
        assert info.causal == (name != "switti")
        assert not info.layers and not info.sizes


@pytest.mark.parametrize("name", ["star", "hart", "switti", "switti-ar"])
def test_families_without_features_say_so(name: str) -> None:
    model = tiny(name)[0]
    steps = [PlanStep(scale=5, features=FeatureOption(rank=8, basis="random"))]
    said = f"the {model.info.family} family cannot narrow its layers"
    with pytest.raises(ProfileError, match=said):
        compile_plan(steps, model.info, model.scales(), model.default_sampling)
