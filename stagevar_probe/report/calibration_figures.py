"""The figures of a calibration's report: each a function, with its title and caption."""

from __future__ import annotations

from typing import Any

import numpy as np

from stagevar_runtime.loop.plan import EXACT
from stagevar_runtime.profile import Profile

from ..intervals import bootstrap_mean
from ..measure.figures import Figures
from ..measure.interventions import PUBLISHED, Intervention
from ..measure.measurements import Measurements
from ..observe.rank import ALPHA, ratio_name
from . import plots
from .html import FigureData
from .precision import precision_figure


def figures(measured: Measurements, profile: Profile) -> list[FigureData]:
    """Every figure that was measured for, in the order of the page."""
    drawn = (
        _sensitivity(measured),
        _dropped(measured),
        precision_figure(measured, measured.job.scale_names),
        _ranks(measured),
        _stages(measured, profile),
        _frequency(measured),
        _time(measured, profile),
        _frontier(measured, profile),
    )
    return [figure for figure in drawn if figure is not None]


def band(values: Any) -> plots.Band:
    """Mean and interval over images of values (N,) or (N, K)."""
    mean, low, high = bootstrap_mean(np.asarray(values))
    return plots.Band(*(list(np.atleast_1d(x)) for x in (mean, low, high)))


def _sensitivity(measured: Measurements) -> FigureData | None:
    scales = sorted(measured.sensitivity)
    if not scales:
        return None
    title, names = "Guidance sensitivity", measured.job.scale_names
    series = {
        f"{branch} alone": band(np.array([measured.sensitivity[k][branch] for k in scales]).T)
        for branch in ("cond", "null")
    }
    return FigureData(
        title=title,
        svg=plots.curves([names[k] for k in scales], series, "divergence (nats)", title),
        caption="Jensen-Shannon divergence between guided and one-branch token distributions.",
    )


def _dropped(measured: Measurements) -> FigureData | None:
    """Only variants that ran on all images, where all of them have been measured: a variant may
    begin later than another."""
    images, names = len(measured.smooth[EXACT]), measured.job.scale_names
    whole: dict[str, dict[int, Intervention]] = {}
    for variant in measured.space.variants:
        own = [a for a in measured.interventions if (a.variant, a.schedule) == (variant, PUBLISHED)]
        if own and all(len(measured.smooth.get(a.name, ())) == images for a in own):
            whole[variant] = {a.scale: a for a in own}
    shared = sorted(set.intersection(*map(set, whole.values()))) if whole else []
    if not shared:
        return None
    series = {
        variant: band(np.array([measured.losses(own[k].name) for k in shared]).T)
        for variant, own in whole.items()
    }
    unit = f"{measured.job.metric} lost"
    at = [names[k] for k in shared]
    return FigureData(
        title="What dropping guidance costs",
        svg=plots.curves(at, series, unit, "Loss when guidance is dropped"),
        caption="Interventional: guidance dropped from this scale on, the rest run again.",
    )


def _ranks(measured: Measurements) -> FigureData:
    names, measure = measured.job.scale_names, ratio_name(ALPHA)
    panels = {
        label: np.array([measured.group_means(k, centring, measure) for k in range(len(names))]).T
        for label, centring in (("centred (pca)", "pca"), ("plain (svd)", "svd"))
    }
    return FigureData(
        title="Feature rank",
        svg=plots.ranks(names, panels),
        caption=f"Smallest rank with {ALPHA:.0%} of the energy, over the tokens, by group of "
        "blocks.",
    )


def _stages(measured: Measurements, profile: Profile) -> FigureData:
    assert profile.stages and profile.stages.structure and profile.stages.refinement
    structure, refinement = profile.stages.structure, profile.stages.refinement
    job = measured.job
    svg = plots.stages(
        measured.job.scale_names,
        {"semantic": band(measured.semantic), "structural": band(measured.structural)},
        structure.scale,
        refinement.scale,
        structure.ci95,
        refinement.ci95,
    )
    return FigureData(
        title="Stages",
        svg=svg,
        caption="Likeness of the picture after each scale to the final one: cosine of features "
        f"({job.features or 'of the metric'}), {job.likeness or 'SSIM'}.",
    )


def _frequency(measured: Measurements) -> FigureData:
    title = "Frequency change"
    change = {"low": band(_shares(measured.low)), "high": band(_shares(measured.high))}
    return FigureData(
        title=title,
        svg=plots.curves(measured.job.scale_names[1:], change, "share of all its change", title),
        caption="Of all that the low (below a quarter of Nyquist) and the high spatial frequencies "
        "of the decoded picture change, how much changes at each scale (mean squares).",
    )


def _shares(values: Any) -> Any:
    array = np.asarray(values)
    return array / np.maximum(array.sum(1, keepdims=True), 1e-12)


def _time(measured: Measurements, profile: Profile) -> FigureData:
    assert measured.costs
    ran, batch = _ran(measured, profile), measured.costs.batch
    svg = plots.time_bars(
        measured.job.scale_names,
        {name: [ms / batch for ms in f.scale_ms] for name, f in ran.items()},
        {name: {"decode": f.decode_ms / batch} for name, f in ran.items()},
    )
    return FigureData(
        title="Where the time goes",
        svg=svg,
        caption=f"Milliseconds per image, in batches of {batch}, on the held-out inputs.",
    )


def _frontier(measured: Measurements, profile: Profile) -> FigureData:
    assert measured.costs and profile.target
    batch, decode = measured.costs.batch, measured.costs.decode_ms
    points = [
        plots.Point((point.ms + decode) / batch, point.loss, point.loss, point.loss)
        for point in measured.validation.frontier
    ]
    points += [
        plots.Point(f.total_ms / f.batch, *f.loss, name)
        for name, f in _ran(measured, profile).items()
    ]
    unit = f"{measured.job.metric} lost"
    return FigureData(
        title="Frontier",
        svg=plots.frontier(points, profile.target.max_loss, unit),
        caption="Named: held out, 95 %. Others: predicted.",
    )


def _ran(measured: Measurements, profile: Profile) -> dict[str, Figures]:
    found = measured.validation.plans
    return {name: found[name] for name in (EXACT, *profile.plans) if name in found}
