"""Run with: pytest tests/probe/observe/test_stages.py"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stagevar_probe.observe.frequency import frequency_change
from stagevar_probe.observe.stages import boundary, find_stages
from stagevar_runtime.errors import CalibrationError


def step(count, at, prompts=20, noise=0.0, seed=0):
    """0 before scale ``at``, 1 from it on."""
    curve = (np.arange(count) >= at).astype(float)
    return curve + noise * np.random.default_rng(seed).normal(size=(prompts, count))


@pytest.mark.parametrize("at", [0, 3, 8, 9])
def test_finds_the_step_up_and_down(at):
    for curves in (step(10, at, noise=0.005), 1 - step(10, at, noise=0.005), -7 * step(10, at)):
        found = boundary(curves, 0.05) if at else boundary(curves, 0.05, relative=False)
        assert (found.scale, found.low, found.high) == (at, at, at)


@given(st.integers(1, 9), st.floats(0.01, 0.4), st.floats(0.1, 100), st.floats(-50, 50))
def test_relative_tolerance_ignores_unit_and_offset(at, tolerance, factor, offset):
    curves = np.linspace(0, 1, 10)[None] ** (1 / at) * np.ones((3, 1))
    plain = boundary(curves, tolerance, resamples=5)
    moved = boundary(curves * factor + offset, tolerance * (1 + 1e-9), resamples=5)
    assert plain.scale == moved.scale


def test_tolerance_decides_on_a_slow_curve():
    curves = np.tile(1 - 0.5 ** np.arange(12), (4, 1))
    absolute = [boundary(curves, t, relative=False).scale for t in (0.3, 0.1, 0.01)]
    assert absolute == [2, 4, 7]  # 1 - 2^-11 is the plateau


def test_a_dip_after_the_plateau_counts():
    curves = np.tile([0, 1, 1, 0.5, 1, 1.0], (5, 1))
    assert boundary(curves, 0.1).scale == 4


def test_never_settling_gives_the_last_scale():
    rise = np.tile(np.arange(8.0), (5, 1))
    assert boundary(rise, 0.01).scale == 7
    assert boundary(rise, 0.0, "tail", relative=False).scale == 7
    peak = np.tile([0, 5, 1, 0, 1, 2.0], (5, 1))
    assert boundary(peak, 0.1, "extreme").scale == 5


def test_plateaus_differ():
    curves = np.tile([0, 0.8, 1.0, 0.9, 0.9, 0.9], (5, 1))
    assert boundary(curves, 0.05, "last", relative=False).scale == 3
    assert boundary(curves, 0.15, "extreme", relative=False).scale == 2
    assert boundary(curves, 0.05, "extreme").plateau == 1.0
    assert boundary(curves, 0.05, "tail").plateau == pytest.approx(0.9)


def test_interval_holds_disagreeing_prompts():
    mixed = np.concatenate([step(10, 3, 30), step(10, 6, 30)])
    found = boundary(mixed, 0.45)
    assert found.low == 3 and found.high == 6 and found.scale in (3, 6)
    assert boundary(mixed, 0.45, seed=1).low == 3


def test_one_scale_and_one_prompt_behave():
    assert boundary([[0.7]]).scale == 0
    assert boundary(np.ones((3, 4))).scale == 0  # settled from the start


def test_stages_of_infinity():
    found = find_stages(step(13, 6, noise=0.002), 1 - step(13, 9, noise=0.002))
    assert (found.structure, found.refinement) == (7, 10)  # METHODS: up to 16x16, then 20, then 40
    assert found.structure_interval == (7, 7) and found.refinement_interval == (10, 10)
    assert "after scale 6 (95 % 6 to 6, 20 prompts)" in found.semantic_evidence
    assert "after scale 9" in found.structural_evidence


def test_structure_that_settles_before_meaning():
    found = find_stages(step(8, 5), step(8, 2))
    assert (found.structure, found.refinement) == (6, 6)
    assert found.refinement_interval == (6, 6)


@given(st.integers(0, 7), st.integers(0, 7))
def test_refinement_never_precedes_structure(a, b):
    noise = 0.3
    found = find_stages(step(8, a, 6, noise, 1), step(8, b, 6, noise, 2))
    assert found.structure <= found.refinement <= 7
    assert found.structure_interval[0] <= found.structure <= found.structure_interval[1]
    assert found.structure_interval[0] <= found.refinement_interval[0]
    assert found.refinement_interval[0] <= found.refinement_interval[1]


def wave(cycles, size=32):
    x = torch.arange(size) / size
    return torch.cos(2 * torch.pi * cycles * x).expand(1, 3, size, size)


def test_frequencies_are_split_and_add_up():
    blank = torch.zeros(1, 3, 32, 32)
    low, high = frequency_change([blank, wave(2), wave(2) + wave(5)])  # cut: 4
    assert low.shape == high.shape == (1, 2)
    assert low[0].tolist() == pytest.approx([0.5, 0], abs=1e-6)
    assert high[0].tolist() == pytest.approx([0, 0.5], abs=1e-6)
    noise = torch.rand(4, 2, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    low, high = frequency_change(noise)
    expected = noise.diff(dim=0).square().mean((2, 3, 4)).T.double()
    assert torch.allclose(low + high, expected, rtol=1e-5)
    assert (low > 0).all() and (high > low).all()


def test_refuses():
    for call in (
        lambda: boundary(np.ones(4)),
        lambda: boundary(np.full((2, 3), np.nan)),
        lambda: boundary(np.ones((2, 3)), -1),
        lambda: boundary(np.ones((2, 3)), 0.1, "middle"),
        lambda: find_stages(np.ones((2, 3)), np.ones((2, 4))),
        lambda: frequency_change([torch.zeros(1, 3, 4, 4)]),
        lambda: frequency_change([torch.zeros(1, 3, 4, 4)] * 2, cut=2),
        lambda: frequency_change([torch.zeros(1, 3, 4, 4), torch.zeros(1, 3, 8, 8)]),
    ):
        with pytest.raises(CalibrationError):
            call()
