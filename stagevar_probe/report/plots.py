"""The report's figures, each an SVG string that fits light and dark pages, and picture pairs.

Colours are Okabe and Ito's, told apart by marker too. Ink is ``currentColor``, so the page decides.
No global state: figures are built without pyplot and drawn without a display.
"""

from __future__ import annotations

import base64
import io
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from PIL import Image
from torch import Tensor
from torch.nn.functional import interpolate

from stagevar_runtime.errors import CalibrationError

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = "osD^vP"
INK, FAINT = "#0a0b0c", "#0d0e0f"  # stand-ins, replaced by CSS in the SVG text
SETTINGS: Any = {  # any: the key type of newer matplotlib stubs is unknown to older ones
    "svg.fonttype": "none",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": FAINT,
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


class Band(NamedTuple):
    """A curve over scales with its interval, three sequences of K numbers."""

    mean: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


class Point(NamedTuple):
    """A plan on the frontier: milliseconds per image, loss with its interval, and a name or ''."""

    ms: float
    loss: float
    low: float
    high: float
    name: str = ""


def _svg(figure: Figure, name: str, label: str) -> str:
    """Inline SVG: no prolog, no fixed size, no ids that could meet another figure's."""
    buffer = io.StringIO()
    with mpl.rc_context({**SETTINGS, "svg.hashsalt": name}):
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    prefix = f"{name}-{zlib.crc32(text.encode()):08x}-"  # two figures of one kind differ too
    text = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{prefix}", text)
    safe = label.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    text = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r'<svg \1 NS role="img">', text, count=1)
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    text = text.replace("NS", f'{spaces} aria-label="{safe}"', 1)
    return text.replace(INK, "currentColor").replace(FAINT, "var(--line, #999)").strip()


def _figure(width: float, height: float, rows: int = 1, cols: int = 1) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), layout="constrained")
    grid = figure.subplots(rows, cols, squeeze=False)
    return figure, list(grid.flat)


def _scale_axis(axes: Axes, scales: Sequence[str]) -> None:
    axes.set_xticks(range(len(scales)), scales, rotation=45 if len(scales) > 8 else 0)
    axes.set_xlabel("scale")
    axes.grid(axis="y", alpha=0.4)


def _check(count: int, name: str, *lengths: int) -> None:
    if any(length != count for length in lengths):
        raise CalibrationError(f"{name} has {lengths} values for {count} scales")


def _band(axes: Axes, i: int, name: str, band: Band, count: int) -> None:
    _check(count, name, *(len(part) for part in band))
    colour, x = COLOURS[i % len(COLOURS)], range(count)
    marker = MARKERS[i % len(MARKERS)]
    axes.fill_between(x, band.low, band.high, color=colour, alpha=0.18, linewidth=0)
    axes.plot(x, band.mean, color=colour, marker=marker, markersize=4, linewidth=1.6, label=name)


def curves(scales: Sequence[str], series: Mapping[str, Band], unit: str, label: str) -> str:
    """Lines over scales with their intervals. ``scales``: their names; ``label``: what the figure
    shows, for those who do not see it."""
    with mpl.rc_context(SETTINGS):
        figure, (axes,) = _figure(6.4, 3.2)
        for i, (name, band) in enumerate(series.items()):
            _band(axes, i, name, band, len(scales))
        _scale_axis(axes, scales)
        axes.set_ylabel(unit)
        axes.set_ylim(bottom=min(0.0, *(min(band.low) for band in series.values())))
        axes.legend()
        return _svg(figure, "curves", f"{label} by scale: {', '.join(series)}")


def ranks(scales: Sequence[str], panels: Mapping[str, ArrayLike], measure: str = "r / n") -> str:
    """Rank by scale and group: one heat map ``(groups, scales)`` a centring."""
    with mpl.rc_context(SETTINGS):
        tables = {name: np.asarray(table, dtype=float) for name, table in panels.items()}
        groups = max(len(table) for table in tables.values())
        height = len(tables) * (0.9 + 0.34 * groups)
        figure, grid = _figure(6.4, height, rows=len(tables))
        top = max(1.0, *(float(table.max()) for table in tables.values()))
        for axes, (name, table) in zip(grid, tables.items(), strict=True):
            _check(len(scales), name, table.shape[1])
            axes.pcolormesh(table, cmap="cividis", vmin=0, vmax=top, edgecolors="none")
            for (g, k), value in np.ndenumerate(table):
                ink = "#ffffff" if value < 0.55 * top else "#000000"
                text = f"{value:.2f}".removeprefix("0") if value < 10 else f"{value:.0f}"
                axes.text(k + 0.5, g + 0.5, text, ha="center", va="center", color=ink, size=8)
            axes.set_xticks(np.arange(len(scales)) + 0.5, scales)
            axes.tick_params(axis="x", rotation=45 if len(scales) > 8 else 0, length=0)
            axes.set_yticks(np.arange(len(table)) + 0.5, [f"group {g}" for g in range(len(table))])
            axes.tick_params(axis="y", length=0)
            axes.invert_yaxis()
            axes.set_title(f"{name}, {measure}")
            axes.spines[:].set_visible(False)
        grid[-1].set_xlabel("scale")
        return _svg(figure, "rank", f"Feature rank by scale and group, {measure}")


def stages(
    scales: Sequence[str],
    series: Mapping[str, Band],
    structure: int,
    refinement: int,
    structure_interval: tuple[int, int] | None = None,
    refinement_interval: tuple[int, int] | None = None,
) -> str:
    """Curves after each scale, the first scales of both later stages, and their intervals."""
    with mpl.rc_context(SETTINGS):
        figure, (axes,) = _figure(6.4, 3.4)
        edges = (-0.5, structure - 0.5, refinement - 0.5, len(scales) - 0.5)
        for i, name in enumerate(("semantic", "structure", "refinement")):
            if edges[i + 1] <= edges[i]:
                continue
            axes.axvspan(edges[i], edges[i + 1], color=COLOURS[5], alpha=0.05 + 0.08 * i, lw=0)
            middle = (edges[i] + edges[i + 1]) / 2
            axes.text(middle, 1.01, name, transform=axes.get_xaxis_transform(), ha="center", size=9)
        for start, interval in (
            (structure, structure_interval),
            (refinement, refinement_interval),
        ):
            axes.axvline(start - 0.5, color=INK, linewidth=1, linestyle="--")
            if interval is not None and interval[1] > interval[0]:
                low, high = interval[0] - 0.5, interval[1] - 0.5
                axes.axvspan(
                    low, high, facecolor="none", edgecolor=INK, hatch="//", lw=0, alpha=0.4
                )
        for i, (name, band) in enumerate(series.items()):
            _band(axes, i, name, band, len(scales))
        _scale_axis(axes, scales)
        axes.set_xlim(edges[0], edges[-1])
        axes.set_xlabel("canvas decoded after scale")
        axes.legend()
        return _svg(figure, "stages", "Similarity to the final image after each scale, and stages")


def time_bars(
    scales: Sequence[str],
    plans: Mapping[str, Sequence[float]],
    other: Mapping[str, Mapping[str, float]] | None = None,
) -> str:
    """Milliseconds by scale of every plan, side by side, and the total stacked with the rest.

    ``plans``: milliseconds of each scale by plan, the exact path first. ``other``: what comes on
    top, by plan and part (``decode``, ``text``).
    """
    rest = other or {}
    with mpl.rc_context(SETTINGS):
        figure, (top, bottom) = _figure(6.4, 3.6 + 0.42 * len(plans), rows=2)
        width = 0.8 / len(plans)
        parts = list(dict.fromkeys(part for name in plans for part in rest.get(name, {})))
        longest = max(sum(ms) + sum(rest.get(name, {}).values()) for name, ms in plans.items())
        for i, (name, ms) in enumerate(plans.items()):
            _check(len(scales), name, len(ms))
            x = np.arange(len(scales)) - 0.4 + width * (i + 0.5)
            top.bar(x, ms, width * 0.92, color=COLOURS[i % len(COLOURS)], label=name)
            left = sum(ms)
            bottom.barh(name, left, color=COLOURS[i % len(COLOURS)], height=0.62)
            for j, part in enumerate(parts):
                extra = rest.get(name, {}).get(part, 0.0)
                grey = str(0.45 + 0.25 * (j % 2))
                bottom.barh(name, extra, left=left, color=grey, height=0.62)
                if extra > 0.12 * longest:
                    middle = left + extra / 2
                    bottom.text(middle, i, part, ha="center", va="center", color="#000000", size=8)
                left += extra
            bottom.text(left + 0.01 * longest, i, f"{left:.3g} ms", va="center", size=9)
        _scale_axis(top, scales)
        top.set_ylabel("ms")
        top.legend()
        bottom.set_xlim(0, longest * 1.14)
        bottom.set_xlabel("ms per image" + (f" (grey: {', '.join(parts)})" if parts else ""))
        bottom.invert_yaxis()
        bottom.grid(axis="x", alpha=0.4)
        return _svg(figure, "time", f"Milliseconds by scale and in all: {', '.join(plans)}")


def frontier(
    points: Sequence[Point],
    budget: float | None = None,
    loss_name: str = "loss",
    others: Sequence[Point] = (),
) -> str:
    """Loss against time, slow to fast, with intervals; named points are labelled.

    ``others`` are not joined: what was tried and is beaten.
    """
    with mpl.rc_context(SETTINGS):
        figure, (axes,) = _figure(6.4, 3.2)
        for colour, line, part in ((COLOURS[5], "none", others), (COLOURS[0], "-", points)):
            ordered = sorted(part, key=lambda p: p.ms)
            ms, loss = [p.ms for p in ordered], [p.loss for p in ordered]
            low = [max(0.0, p.loss - p.low) for p in ordered]
            high = [max(0.0, p.high - p.loss) for p in ordered]
            faint = {"alpha": 0.6, "markersize": 3.5} if line == "none" else {"markersize": 5}
            style: Any = {"marker": "o", "capsize": 0 if line == "none" else 3, "lw": 1.4, **faint}
            if ordered:
                axes.errorbar(ms, loss, [low, high], color=colour, linestyle=line, **style)
            for p in ordered:
                if p.name:
                    at = (p.ms, p.loss)
                    axes.annotate(p.name, at, (6, 6), textcoords="offset points", size=9)
        if budget is not None:
            axes.axhline(budget, color=COLOURS[1], linestyle="--", linewidth=1)
            right = axes.get_yaxis_transform()
            axes.text(1, budget, "budget ", transform=right, ha="right", va="bottom", size=9)
        axes.set_xlabel("ms per image")
        axes.set_ylabel(loss_name)
        axes.margins(0.1)
        axes.grid(alpha=0.4)
        return _svg(figure, "frontier", f"{loss_name} against milliseconds per image")


def picture_row(images: Tensor, side: int = 128, gap: int = 2) -> str:
    """Pictures ``(n, 3, H, W)`` in [0, 1] beside each other, at most ``side`` pixels high."""
    height = images.shape[-2]
    small = images.detach().float().cpu().clamp(0, 1)
    if height > side:
        small = interpolate(small, scale_factor=side / height, mode="area")
    _, _, height, width = small.shape
    canvas = Image.new("RGBA", (len(small) * (width + gap) - gap, height), (0, 0, 0, 0))
    for i, picture in enumerate((small * 255).round().byte()):
        canvas.paste(Image.fromarray(picture.permute(1, 2, 0).numpy()), (i * (width + gap), 0))
    return _uri(canvas)


def picture_pair(exact: Tensor, fast: Tensor, gap: int = 2) -> str:
    """Exact and fast picture ``(3, H, W)`` in [0, 1] side by side, as a PNG data URI."""
    if exact.shape != fast.shape or exact.ndim != 3 or exact.shape[0] != 3:
        raise CalibrationError(f"pictures are {tuple(exact.shape)} and {tuple(fast.shape)}")
    _, height, width = exact.shape
    canvas = Image.new("RGBA", (2 * width + gap, height), (0, 0, 0, 0))
    for i, picture in enumerate((exact, fast)):
        pixels = (picture.detach().float().cpu().clamp(0, 1) * 255).round().byte()
        canvas.paste(Image.fromarray(pixels.permute(1, 2, 0).numpy()), (i * (width + gap), 0))
    return _uri(canvas)


def _uri(canvas: Image.Image) -> str:
    buffer = io.BytesIO()
    canvas.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
