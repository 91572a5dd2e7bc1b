"""Where precision stops being free: loss by the first scale whose products run in 8 bits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from stagevar_runtime.loop.plan import EXACT

from ..intervals import Interval, mean_interval
from ..measure.measurements import Measurements
from . import plots
from .html import FigureData


def losses_by_start(measured: Measurements) -> dict[int, Interval]:
    """Loss and its 95 % interval by the scale from which products run in fewer bits, of those that
    were measured on all images."""
    images = len(measured.smooth[EXACT])
    return {
        a.scale: mean_interval(measured.losses(a.name))
        for a in sorted(measured.interventions, key=lambda a: a.scale)
        if a.precision and len(measured.smooth.get(a.name, ())) == images
    }


def where_it_is_free(measured: Measurements, names: Sequence[str]) -> str:
    """One sentence: the earliest start from which on no loss is significant; empty where nothing
    was measured."""
    found = losses_by_start(measured)
    if not found:
        return ""
    kind = measured.space.precision
    free: int | None = None
    for k in sorted(found, reverse=True):
        if found[k].low > 0:
            break
        free = k

    def said(k: int) -> str:
        x = found[k]
        return f"scale {k} ({names[k]}) on {x.mean:+.4f} [{x.low:+.4f}, {x.high:+.4f}]"

    images = len(measured.smooth[EXACT])
    begin = f"Products in {kind}, on {images} images:"
    if free is None:
        return f"{begin} nowhere free, from {said(max(found))} is lost."
    if free == min(found):
        return f"{begin} nothing significant is lost wherever they begin, from {said(free)}."
    before = max(k for k in found if k < free)
    return f"{begin} free from {said(free)}, no longer from {said(before)}."


def precision_figure(measured: Measurements, names: Sequence[str]) -> FigureData | None:
    """The curve, with its sentence; None where no precision was measured."""
    found = losses_by_start(measured)
    if not found:
        return None
    values = np.array([found[k] for k in found])
    band = plots.Band(*(column.tolist() for column in values.T))
    return FigureData(
        title="Where precision stops being free",
        svg=plots.curves(
            [names[k] for k in found],
            {str(measured.space.precision): band},
            f"{measured.job.metric} lost",
            "Loss when products run in fewer bits",
        ),
        caption=where_it_is_free(measured, names),
    )
