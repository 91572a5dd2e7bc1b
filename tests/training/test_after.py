"""What follows the training, without its work: pytest tests/training/test_after.py"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from training import after
from training.data import DataError
from training.gpu.muon import Muon, orthogonal

SCENES = {
    "rows": [
        {"name": "exact", "passed": [0.93, 0.91, 0.95]},
        {"name": "no guidance", "passed_loss": [0.08, 0.06, 0.1]},
        {
            "name": "balanced",
            "passed_loss": [0.004, -0.01, 0.02],
            "speedup_loop": [3.6, 3.5, 3.7],
        },
    ]
}
EMOJI = {"rows": [{"name": "exact", "kinds": {"train": [0.6, 0.5, 0.7]}}]}


def test_the_page_holds_figures_against_bars() -> None:
    found = after.bars(SCENES, EMOJI)
    lines = {bar.name: bar.line() for bar in found}
    assert lines["scenes passed"].endswith("0.930 [0.910, 0.950] | met |")
    assert lines["emoji R@1, held-out pairs"].endswith("0.000 [0.000, 0.000] | missed |")
    assert "0.080 [0.060, 0.100] | missed" in lines["guidance is worth"]
    assert "| met |" in lines["balanced, loop only"]
    assert "-0.004 [-0.020, 0.010] | met" in lines["balanced, passed that is left"]
    job = {"checkpoint": "p.safetensors", "weights": "sha256:1", "dtype": "float32"}
    job |= {"hardware": {"device": "a CPU"}, "features": "pixels"}
    text = after.page(found, job, {"calibrate": 61.4})
    assert "# p.safetensors, measured" in text and "calibrate 61 s" in text
    assert len(after.bars({"rows": SCENES["rows"][:2]}, EMOJI)) == 4  # no plan was found


def test_the_demo_is_pointed_at_the_checkpoint_once(tmp_path: Path) -> None:
    makefile = tmp_path / "Makefile"
    makefile.write_text("A := 1\nT2I := old/old\nall:\n\techo $(T2I)\n")
    checkpoint = Path("checkpoints/new/pictures.safetensors")
    assert after.switch_demo(makefile, checkpoint)
    assert makefile.read_text() == "A := 1\nT2I := new/pictures\nall:\n\techo $(T2I)\n"
    assert not after.switch_demo(makefile, checkpoint)
    assert "\nT2I := " in after.MAKEFILE.read_text()


def test_a_verb_that_fails_ends_it_and_a_missed_target_does_not(monkeypatch) -> None:
    def ends(code: int):
        return lambda command: type("Done", (), {"returncode": code})

    monkeypatch.setattr(after.subprocess, "run", ends(5))
    assert after.probe("calibrate", "x", missed=True) >= 0
    with pytest.raises(DataError, match="ended with 5"):
        after.probe("evaluate", "x")


def test_losses_are_drawn_by_scale(tmp_path: Path) -> None:
    steps = [{"images": 10 * i, "by_scale": [0.6, 0.5][: 1 + i % 2]} for i in range(4)]
    after.draw_losses({"logs": {"transformer": [{"sheet": 2}, *steps]}}, tmp_path / "l.svg")
    assert (tmp_path / "l.svg").read_text().count('id="line2d_') > 4


@pytest.mark.parametrize("shape", [(3, 8, 24), (2, 24, 8)])
def test_orthogonal_matrices_have_singular_values_near_one(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonal(torch.randn(shape)))
    assert values.min() > 0.5 and values.max() < 1.3


def test_muon_steps_each_matrix_of_a_stack_by_itself() -> None:
    torch.manual_seed(0)
    start = [torch.randn(6, 4), torch.randn(6, 4), torch.randn(4, 4)]
    gradients = [torch.randn_like(t) for t in start]
    made = []
    for groups in ([[0, 1, 2]], [[0], [1], [2]]):
        own = [torch.nn.Parameter(t.clone()) for t in start]
        for parameter, gradient in zip(own, gradients, strict=True):
            parameter.grad = gradient
        for group in groups:
            Muon([own[i] for i in group], decay=0.1).step(0.02)
        made.append([p.detach() for p in own])
    for one, other, before in zip(*made, start, strict=True):
        assert torch.allclose(one, other, atol=1e-6)
        moved = one - before * (1 - 0.02 * 0.1)
        rms = 0.02 * 0.2 * max(before.shape) ** 0.5 * min(before.shape) ** 0.5
        assert moved.norm() == pytest.approx(rms, rel=0.3)
