"""What the studio's page shows, without the page; and the filmstrip.

pytest tests/probe/studio/test_session.py
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import torch
from tiny_files import RED, write_infinity

from stagevar_probe.datasets.inputs import balanced_labels
from stagevar_probe.report.filmstrip import Row, boundaries, filmstrip, story
from stagevar_probe.studio.session import OWN, Sliders, Studio, Wish
from stagevar_runtime import ProfileError, StagevarError, load, load_profile
from stagevar_runtime.model.protocol import ScaleSpec
from stagevar_runtime.profile import Boundary, PlanStep, Stages

SVG = "{http://www.w3.org/2000/svg}"
DROP = (PlanStep(scale=2, guidance="cond"), PlanStep(scale=3, run="skip"))


@pytest.fixture
def studio(calibrated: Path) -> Studio:
    return Studio(load(calibrated))


def test_pictures_frames_and_times_of_a_wish(studio: Studio) -> None:
    shown = studio.show(Wish("1", 3), DROP)
    model = studio.pipeline
    exact = model.disable().generate(labels=[1], seed=[3])
    fast = model.enable(DROP).generate(labels=[1], seed=[3])
    assert torch.equal(shown.exact.made.images, exact.images)
    assert torch.equal(shown.fast.made.images, fast.images)
    assert list(shown.exact.frames) == [0, 1, 2, 3] and list(shown.fast.frames) == [0, 1, 2]
    assert torch.equal(shown.exact.frames[0], shown.fast.frames[0])
    assert not torch.equal(shown.exact.frames[0], shown.exact.frames[1])
    assert torch.equal(shown.fast.frames[2], fast.images)
    off = (fast.images - exact.images)[0].abs()
    assert torch.equal(shown.difference, (4 * off).clamp(0, 1))
    assert shown.psnr < 100 and shown.ssim < 1 and min(shown.totals()) > 0
    assert len(ET.fromstring(shown.strip).findall(f"{SVG}image")) == 7


def test_exact_pictures_are_kept(studio: Studio) -> None:
    first = studio.show(Wish("1", 3), DROP)
    again = studio.show(Wish("1", 3), DROP[:1])
    assert again.exact is first.exact and again.fast is not first.fast
    assert studio.show(Wish("1", 4), DROP).exact is not first.exact


def test_prompts_are_drawn_too(tmp_path: Path) -> None:
    studio = Studio(load(write_infinity(tmp_path), profile=None), {"guidance": 2.0})
    shown = studio.show(Wish(RED, 3), DROP)
    exact = studio.pipeline.disable().generate(prompts=[RED], seed=[3], guidance=2.0)
    assert torch.equal(shown.exact.made.images, exact.images)
    with pytest.raises(StagevarError, match="knows no word"):
        studio.show(Wish("a zebra"), DROP)
    with pytest.raises(ProfileError, match="no profile"):
        studio.save("mine", DROP)


def test_what_cannot_be_drawn_is_said(studio: Studio) -> None:
    with pytest.raises(StagevarError, match="expected a number"):
        studio.show(Wish("a cube"), DROP)


@pytest.mark.parametrize(
    ("sliders", "steps"),
    [
        (Sliders(4, 4), []),
        (Sliders(4, 2), ["{scale: 2, guidance: cond}"]),
        (Sliders(4, 3, 0.5), ["{scale: 3, guidance: cond, temperature: 0.5}"]),
        (Sliders(4, 4, 0.5, skipped=1), ["{scale: 3, run: skip}"]),
        (
            Sliders(4, 4, keep=0.5, tokens_from=3),
            ["{scale: 3, tokens: {keep: 0.5, select: norm, restore: cache}}"],
        ),
    ],
)
def test_sliders_say_a_plan(studio: Studio, sliders: Sliders, steps: list[str]) -> None:
    lines = studio.yaml(sliders.steps()).splitlines()[1:]
    assert [line.strip().removeprefix("- ") for line in lines if line.strip() != "[]"] == steps


def test_plans_to_choose_from_can_run(studio: Studio) -> None:
    names = studio.plans()
    assert studio.pipeline.profile is not None and names[-1] == OWN and "skip-1" in names
    for name in names[:-1]:
        assert studio.show(Wish("1"), studio.steps(name)).fast.made.images.isfinite().all()
    with pytest.raises(ProfileError):
        studio.steps("no such plan")


def test_a_plan_of_one_s_own_is_saved_as_unproven(studio: Studio, calibrated: Path) -> None:
    before = load_profile(calibrated.with_suffix(".stagevar.yaml"))
    path = studio.save("mine", DROP)
    assert path == calibrated.with_suffix(".stagevar.yaml")
    after = load_profile(path)
    assert after.plans["mine"].unproven and after.plans["mine"].steps == DROP
    assert {k: v for k, v in after.plans.items() if k != "mine"} == before.plans
    assert "unproven: true" in path.read_text(encoding="utf-8") and "mine" in studio.plans()
    studio.save("mine", DROP[:1])  # one's own may be changed
    assert load(calibrated).enable("mine").steps == DROP[:1]
    measured = next(iter(before.plans))
    for name, steps, said in (
        (measured, DROP, "was measured"),
        ("no name", DROP, "expected letters"),
        ("empty", (), "changes nothing"),
    ):
        with pytest.raises(ProfileError, match=said):
            studio.save(name, steps)


def test_the_filmstrip_marks_stages_and_skips() -> None:
    scales = [ScaleSpec(k, n, n, n * n) for k, n in enumerate((1, 2, 4))]
    frame = torch.rand(3, 8, 8)
    rows = [
        Row("exact", dict.fromkeys(range(3), frame), [1.0, 2.0, 3.0]),
        Row("a < b", {0: frame, 2: frame}, [1.0, 0.0, 3.0]),
    ]
    stages = Stages(structure=Boundary(scale=1), refinement=Boundary(scale=2))
    root = ET.fromstring(filmstrip(rows, scales, stages))
    said = [text.text for text in root.iter(f"{SVG}text")]
    assert {"semantic", "structure", "refinement", "4x4", "a < b", "2.0 ms"} <= set(said)
    assert said.count("skipped") == 1
    assert len(root.findall(f"{SVG}image")) == 5 and len(root.findall(f"{SVG}line")) == 2
    assert not ET.fromstring(filmstrip(rows, scales)).findall(f"{SVG}line")
    both = Stages(structure=Boundary(scale=2), refinement=Boundary(scale=2))
    assert boundaries(both) == {0: "semantic", 2: "refinement"} and boundaries(None) == {}


def test_the_report_has_the_filmstrip(calibrated: Path) -> None:
    pipe = load(calibrated)
    profile, model = pipe.profile, pipe.model
    assert profile is not None
    inputs = balanced_labels(model, 5, 0, True)
    (figure,) = story(model, profile, inputs)
    root = ET.fromstring(figure["svg"])
    assert {"exact", "balanced"} <= {text.text for text in root.iter(f"{SVG}text")}
    skipped = sum(step.run == "skip" for step in profile.plan("balanced").steps)
    assert len(root.findall(f"{SVG}image")) == 8 - skipped
    assert f"{inputs.items[0]!r}, seed {inputs.seeds[0]}" in figure["caption"]
    assert story(model, profile, inputs, "no such plan") == []
    report = calibrated.with_suffix(".stagevar.report.html").read_text(encoding="utf-8")
    assert "The picture, scale by scale" in report
