"""Held-out figures of plans beside the exact path.

pytest tests/probe/validate/test_validate.py
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import invoke, some_figures, write_tiny

from stagevar_probe.datasets.inputs import balanced_labels
from stagevar_probe.intervals import Interval
from stagevar_probe.measure.figures import Figures
from stagevar_probe.metrics.classifier import ClassifierConfig, Scorer, SmallClassifier
from stagevar_probe.metrics.quality import Agreement, Likeness
from stagevar_probe.validate.run import validate
from stagevar_runtime.errors import ProfileMismatchError
from stagevar_runtime.families.var import VAR
from stagevar_runtime.loop.engine import generate
from stagevar_runtime.loop.plan import EXACT, compile_plan, plan_for
from stagevar_runtime.model.sampling import Sampling
from stagevar_runtime.profile import PlanStep

SAMPLING = Sampling(guidance=2.0, top_k=20, top_p=0.95)
STEPS = {
    "skip": (PlanStep(scale=2, run="skip"), PlanStep(scale=3, run="skip")),
    EXACT: (),
    "drop": (PlanStep(scale=2, guidance="cond"),),
}


@pytest.fixture(scope="module")
def ran(tiny_var: VAR) -> dict[str, Figures]:
    torch.manual_seed(0)
    ticks: list[int] = []
    side = generate(
        tiny_var, tiny_var.condition(labels=[0]), plan_for(tiny_var, (), SAMPLING), seed=[0]
    ).images.shape[-1]
    model = SmallClassifier(ClassifierConfig(classes=5, side=side, widths=(4, 8), features=12))
    reference = torch.rand(40, 12, generator=torch.Generator().manual_seed(1))
    quality = Agreement(Scorer(model.eval().requires_grad_(False), reference, tuple("abcde"), 0.9))
    plans = {
        name: compile_plan(steps, tiny_var.info, tiny_var.scales(), SAMPLING)
        for name, steps in STEPS.items()
    }
    inputs = balanced_labels(tiny_var, 7, seed=0, held_out=True)
    with torch.inference_mode():
        found = validate(tiny_var, inputs, plans, SAMPLING, quality, 3, ticks.append)
    assert ticks == [3, 3, 1]
    return found


def test_json_ready_and_complete(ran: dict[str, Figures]) -> None:
    for figures in ran.values():
        again = json.loads(json.dumps(figures.dump(), allow_nan=False))
        assert Figures.parse(again) == figures
    assert set(ran) == set(STEPS)
    for figures in ran.values():
        assert (figures.images, figures.batch, figures.metric) == (7, 3, "agreement")
        assert len(figures.scale_ms) == 4
        assert figures.total_ms == figures.loop_ms + figures.decode_ms
        assert figures.exact_loop_ms == ran[EXACT].loop_ms


def test_exact_loses_nothing_to_itself(ran: dict[str, Figures]) -> None:
    exact = ran[EXACT]
    assert exact.loss == exact.smooth_loss == (0, 0, 0) == exact.kid_loss
    assert exact.psnr == (99, 99, 99)
    assert exact.ssim == pytest.approx((1, 1, 1))


def test_losses_are_paired_with_exact(ran: dict[str, Figures]) -> None:
    for name in ("skip", "drop"):
        figures = ran[name]
        assert figures.loss[0] == pytest.approx(ran[EXACT].score[0] - figures.score[0])
        assert figures.loss[1] <= figures.loss[0] <= figures.loss[2]
        assert figures.psnr[0] < 60 and figures.ssim[0] < 1
        assert figures.kid_loss[0] != 0
    assert ran["skip"].ssim[0] < ran["drop"].ssim[0]


def test_work_is_counted(ran: dict[str, Figures]) -> None:
    assert ran["skip"].flops < ran["drop"].flops < ran[EXACT].flops
    assert ran["skip"].scale_ms[3] < ran[EXACT].scale_ms[3]


def test_batches_do_not_change_the_pictures(tiny_var: VAR) -> None:
    plans = {
        name: compile_plan(STEPS[name], tiny_var.info, tiny_var.scales(), SAMPLING)
        for name in (EXACT, "drop")
    }
    inputs = balanced_labels(tiny_var, 4, seed=0)
    one, other = (
        validate(tiny_var, inputs, plans, SAMPLING, Likeness(), batch)["drop"] for batch in (4, 3)
    )
    assert one.loss == pytest.approx(other.loss, abs=1e-3)
    assert one.kid is None and one.batch == 4


@pytest.mark.parametrize(
    ("loss", "kid", "met"),
    [
        (0.009, None, True),
        (0.011, None, False),
        (-0.1, None, True),
        (0.009, [1.0, -0.1, 2.1], True),
        (0.009, [1.0, 0.1, 1.9], False),
        (0.011, [-1.0, -2.0, -0.1], False),
    ],
)
def test_within(loss: float, kid: list[float] | None, met: bool) -> None:
    found = some_figures(
        loss=Interval(loss, loss - 1, loss + 1),
        kid_loss=None if kid is None else Interval(*kid),
    )
    assert found.within(0.01) is met


def test_validate_refuses_another_model(calibrated: Path, tmp_path: Path) -> None:
    other = write_tiny(tmp_path, sides=(1, 2, 3, 4, 5))
    profile = calibrated.with_suffix(".stagevar.yaml")
    error = invoke("validate", profile, "-m", other).exception
    assert isinstance(error, ProfileMismatchError) and error.exit_code == 4
    said = str(error)
    assert "\n" not in said and len(said) < 600
    assert "4 scales (last 4x4), model has 5 (last 5x5)" in said
