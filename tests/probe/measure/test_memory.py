"""Memory counted before anything runs, against what a generation then holds.

pytest tests/probe/measure/test_memory.py
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import write_tiny
from tiny_files import write_infinity

from stagevar_probe.measure.memory import LiveBytes, default_batch, fitting, plan_memory, text_mb
from stagevar_runtime import load
from stagevar_runtime.loop.plan import plan_for
from stagevar_runtime.profile import PlanStep, TokenOption

PLANS = {
    "exact": [],
    "guidance dropped": [PlanStep(scale=2, guidance="cond")],
    "skipped": [PlanStep(scale=2, guidance="cond"), PlanStep(scale=3, run="skip")],
    "guided in part": [PlanStep(scale=2, null_keep=0.5), PlanStep(scale=3, null_keep=0.2)],
    "tokens": [PlanStep(scale=3, tokens=TokenOption(keep=0.5, select="norm", restore="cache"))],
}


@pytest.fixture(scope="module", params=["var", "infinity"])
def checkpoint(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    return write_tiny(folder) if request.param == "var" else write_infinity(folder)


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("batch", [1, 3])
def test_what_is_counted_is_what_is_held(checkpoint: Path, name: str, batch: int) -> None:
    blank = load(checkpoint, device=torch.device("meta"), profile=None).model
    pipe = load(checkpoint, profile=None)
    if PLANS[name]:
        pipe.enable(PLANS[name])
    counted = plan_memory(blank, plan_for(blank, PLANS[name]), batch)
    classes = pipe.model.info.classes
    made = pipe.generate(
        **({"labels": [1] * batch} if classes else {"prompts": ["a cube"] * batch})
    )
    assert counted.cache == pytest.approx(max(made.cache_bytes) / 1e6)
    state = SimpleNamespace(canvas=made.canvas, batch=batch, extra={})
    with torch.inference_mode(), LiveBytes() as live:
        pipe.model.decode(state)  # type: ignore[arg-type]
    assert counted.decoder == pytest.approx(live.peak / 1e6)
    modules = (pipe.model.transformer, pipe.model.tokenizer)  # type: ignore[attr-defined]
    numbers = sum(p.numel() for module in modules for p in module.parameters())
    assert counted.weights >= 4 * numbers / 1e6 > 0
    assert counted.total >= counted.weights + counted.cache


def test_live_bytes_come_and_go() -> None:
    with LiveBytes() as live:
        a = torch.zeros(1000)
        b = a.view(10, 100)[2:]  # shares
        c = a + 1
        assert live.live == 8000
        del a, b
        assert live.live == 4000
        del c
        d = torch.zeros(500)
        assert (live.live, live.peak) == (2000, 8000)
        d.add_(1)
        assert live.live == 2000


def test_text_encoders_are_counted_or_known(checkpoint: Path) -> None:
    pipe = load(checkpoint, profile=None)
    found = text_mb(pipe.model, pipe.encode, "cpu")
    if pipe.model.info.classes:
        assert found == 0
        return
    assert 0 < found < 1  # the words beside it
    published = text_mb(pipe.model, None, "cuda")
    assert published == 2440 and text_mb(pipe.model, None, "cpu") == 2 * published


def test_batches_fill_half_of_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = load(write_tiny(tmp_path), profile=None, device="cpu").model
    assert default_batch(model) == 16
    assert [fitting(room, 1e9) for room in (35.4e9, 64e9, 1e12, 1e8)] == [32, 64, 128, 1]
    monkeypatch.setattr(model, "device", torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (80_000_000, 80_000_000))
    small = default_batch(model)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (320_000_000, 320_000_000))
    assert default_batch(model) == min(128, 4 * small) and small > 1
