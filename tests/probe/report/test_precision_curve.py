"""The report's answer to where precision stops being free.

pytest tests/probe/report/test_precision_curve.py
"""

from __future__ import annotations

from dataclasses import replace

from small_measurements import ARMS, MENU, measured

from stagevar_probe.measure.interventions import Intervention
from stagevar_probe.measure.measurements import Measurements
from stagevar_probe.report.precision import losses_by_start, precision_figure, where_it_is_free

NAMES = ["1x1", "2x2", "3x3", "4x4"]
WOBBLE = (0.01, -0.01) * 32


def in_8_bits(**losses: float) -> Measurements:
    """64 images; ``from_2=0.1``: what is lost where int8 begins at scale 2."""
    made = measured(exact=[1.0] * 64)
    made.space = replace(MENU, precision="int8")
    for name, loss in losses.items():
        k = int(name.removeprefix("from_"))
        made.interventions = [*made.interventions, Intervention(name, k, precision="int8")]
        made.smooth[name] = [1.0 - loss + x for x in WOBBLE]
    return made


def test_free_from_the_earliest_start_without_a_significant_loss() -> None:
    made = in_8_bits(from_3=0.0, from_2=0.001, from_1=0.05, from_0=0.0)
    assert list(losses_by_start(made)) == [0, 1, 2, 3]
    said = where_it_is_free(made, NAMES)
    assert "free from scale 2 (3x3)" in said and "no longer from scale 1 (2x2) on +0.0500" in said
    figure = precision_figure(made, NAMES)
    assert figure is not None and figure["caption"] == said and "<svg" in figure["svg"]


def test_free_everywhere_and_nowhere() -> None:
    assert "wherever they begin, from scale 1" in where_it_is_free(
        in_8_bits(from_2=0.0, from_1=0.0), NAMES
    )
    assert "nowhere free, from scale 3" in where_it_is_free(
        in_8_bits(from_3=0.1, from_2=0.2), NAMES
    )


def test_given_up_or_never_measured() -> None:
    made = in_8_bits(from_3=0.0, from_2=0.0)
    made.smooth["from_2"] = made.smooth["from_2"][:8]
    assert list(losses_by_start(made)) == [3]
    assert where_it_is_free(measured(), NAMES) == "" and precision_figure(measured(), NAMES) is None
    assert all(not arm.precision for arm in ARMS)
