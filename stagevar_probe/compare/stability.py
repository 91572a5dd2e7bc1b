"""Are boundaries and ranks properties of the model, or of the images and the guidance?"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..measure.per_image import PerImage
from ..observe.rank import ALPHA, ratio_name
from ..observe.stages import StageEstimates, find_stages
from .paired import EVEN, ODD, Array, Finding, PairedRows

LEAST = 4  # images, below which halves say nothing
Curve = tuple[StageEstimates, Array]  # boundaries, and ranks by (scale, group)


def about_stability(paired: PairedRows) -> Finding | None:
    """Boundaries and ranks on two halves of the images, and under another guidance."""
    measured = paired.found.curves
    if not measured or min(len(m.semantic) for m in measured.values()) < LEAST:
        return None
    curves = {
        f"{name} guidance, {half} images": _curve(found, part)
        for name, found in measured.items()
        for half, part in (("even", EVEN), ("odd", ODD))
    }
    first, second, third, *_ = curves.values()
    numbers: dict[str, Any] = {
        name: {"structure": s.structure, "refinement": s.refinement}
        for name, (s, _) in curves.items()
    }
    parts = []
    for what, other in (("two halves of the images", second), ("two guidance scales", third)):
        numbers[what] = case = _moved(first, other)
        parts.append(
            f"between {what} the boundaries move by {case['structure_moves']} and "
            f"{case['refinement_moves']} scales and the rank (as a share of the tokens) by "
            f"{case['rank_mean_difference']:.3f} on average, correlation "
            f"{case['rank_correlation']:.3f}"
        )
    images = len(list(measured.values())[-1].semantic)
    sentence = f"With {images} images: {'; '.join(parts)}."
    question = "How stable are boundaries and ranks?"
    return Finding(question, sentence, numbers, _table(curves))


def _curve(measured: PerImage, part: slice) -> Curve:
    """Of a part of the images."""
    semantic, structural = np.asarray(measured.semantic), np.asarray(measured.structural)
    return find_stages(semantic[part], structural[part]), _ranks(measured, part)


def _moved(a: Curve, b: Curve) -> dict[str, float]:
    """How far boundaries and ranks are apart."""
    (s, r), (t, u) = a, b
    alike = float(np.corrcoef(r.ravel(), u.ravel())[0, 1]) if r.std() and u.std() else 1.0
    return {
        "structure_moves": abs(s.structure - t.structure),
        "refinement_moves": abs(s.refinement - t.refinement),
        "rank_mean_difference": float(np.abs(r - u).mean()),
        "rank_correlation": alike,
    }


def _table(curves: dict[str, Curve]) -> list[list[str]]:
    table = [["images", "structure from", "refinement from", "mean rank / n"]]
    for name, (s, r) in curves.items():
        spans = (s.structure_interval, s.refinement_interval)
        first, second = (f"{low} to {high}" for low, high in spans)
        table.append(
            [name, f"{s.structure} ({first})", f"{s.refinement} ({second})", f"{r.mean():.3f}"]
        )
    return table


def _ranks(measured: PerImage, part: slice) -> Array:
    """Mean centred rank of the cond branch over some images, by (scale, group); scale 0 says
    nothing."""
    kind = ("cond", "pca")
    keys = sorted(k for k in measured.ranks if k.scale > 0 and (k.branch, k.centring) == kind)
    return np.array([np.mean(measured.ranks[k][ratio_name(ALPHA)][part]) for k in keys])
