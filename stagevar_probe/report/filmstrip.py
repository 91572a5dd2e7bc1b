"""A filmstrip: the canvas after every scale, a row a plan, with the stages' boundaries drawn in."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from PIL import Image
from torch import Tensor

from stagevar_runtime.loop.engine import generate
from stagevar_runtime.loop.plan import plan_for
from stagevar_runtime.model.protocol import ScaleModel, ScaleSpec
from stagevar_runtime.model.sampling import Sampling
from stagevar_runtime.pipeline import Pipeline
from stagevar_runtime.profile import Profile, Stages

from ..datasets.inputs import Inputs
from ..observe.film import Film, Filming
from .html import FigureData

GAP, TOP, LEFT, UNDER = 6, 34, 92, 18  # pixels around the frames
STAGES = ("semantic", "structure", "refinement")
INK, FAINT, EDGE = "#1f2430", "#8a90a0", "#c2410c"


@dataclass(frozen=True)
class Row:
    """One plan's frames by scale, and its milliseconds a scale."""

    name: str
    frames: Mapping[int, Tensor]
    ms: Sequence[float] = ()


def film(pipeline: Pipeline, seed: int | Sequence[int], **inputs: Any) -> Film:
    """One generation of the pipeline's plan, watched."""
    watching = Filming()
    made = pipeline.generate(seed=seed, observer=watching, **inputs)
    return watching.film(pipeline.model, made)


def row(name: str, filmed: Film, image: int = 0) -> Row:
    """One picture's row of a film."""
    frames = {k: frame[image] for k, frame in filmed.frames.items()}
    return Row(name, frames, filmed.made.scale_ms)


def boundaries(stages: Stages | None) -> dict[int, str]:
    """The first scale of each stage that begins somewhere, with its name."""
    if stages is None:
        return {}
    found = {0: STAGES[0]}
    for name in STAGES[1:]:
        boundary = getattr(stages, name)
        if boundary is not None:  # two that begin at once: the later stage
            found[boundary.scale] = name
    return found


def filmstrip(
    rows: Sequence[Row],
    scales: Sequence[ScaleSpec],
    stages: Stages | None = None,
    side: int = 88,
) -> str:
    """An SVG that needs nothing else: frames of ``side`` pixels, ``skipped`` where none was made.

    ``stages``: the profile's; their boundaries are drawn as dashed lines.
    """
    step = side + GAP
    width = LEFT + len(scales) * step
    height = TOP + len(rows) * (step + UNDER)
    parts = [_column(i, scale, step) for i, scale in enumerate(scales)]
    for n, line in enumerate(rows):
        y = TOP + n * (step + UNDER)
        parts.append(
            f'<text x="0" y="{y + side / 2}" font-size="13" fill="{INK}">{escape(line.name)}</text>'
        )
        parts += [_frame(line, i, LEFT + i * step, y, side) for i in range(len(scales))]
    parts += [_boundary(i, name, step, height) for i, name in boundaries(stages).items()]
    said = f"The canvas after every scale: {', '.join(line.name for line in rows)}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img" aria-label="{escape(said)}" '
        f'font-family="system-ui, sans-serif"><rect width="100%" height="100%" fill="#fff"/>'
        f"{''.join(parts)}</svg>"
    )


def _column(i: int, scale: ScaleSpec, step: int) -> str:
    x = LEFT + i * step
    return (
        f'<text x="{x}" y="{TOP - 6}" font-size="11" fill="{FAINT}">'
        f"{scale.height}x{scale.width}</text>"
    )


def _frame(line: Row, i: int, x: float, y: float, side: int) -> str:
    ms = line.ms[i] if i < len(line.ms) else 0.0
    if i not in line.frames:
        return (
            f'<rect x="{x}" y="{y}" width="{side}" height="{side}" fill="#f1f2f5" '
            f'stroke="{FAINT}" stroke-dasharray="3 3"/><text x="{x + side / 2}" '
            f'y="{y + side / 2}" font-size="11" fill="{FAINT}" text-anchor="middle">skipped</text>'
        )
    said = f"{ms:.1f} ms" if ms else ""
    return (
        f'<image x="{x}" y="{y}" width="{side}" height="{side}" '
        f'href="{data_uri(line.frames[i], 2 * side)}"/>'
        f'<text x="{x}" y="{y + side + 13}" font-size="10" fill="{FAINT}">{said}</text>'
    )


def _boundary(i: int, name: str, step: int, height: int) -> str:
    x = LEFT + i * step - GAP / 2
    line = (
        f'<line x1="{x}" y1="4" x2="{x}" y2="{height}" stroke="{EDGE}" stroke-dasharray="5 4"/>'
        if i
        else ""
    )
    return f'{line}<text x="{x + 4}" y="13" font-size="12" fill="{EDGE}">{name}</text>'


def data_uri(image: Tensor, most: int | None = None) -> str:
    """``(3, H, W)`` in [0, 1] as a PNG in an address, no side longer than ``most`` pixels."""
    pixels = (image.float().cpu().clamp(0, 1).permute(1, 2, 0) * 255).round().byte().numpy()
    picture, buffer = Image.fromarray(pixels), io.BytesIO()
    if most is not None:
        picture.thumbnail((most, most))
    picture.save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def story(
    model: ScaleModel, profile: Profile, inputs: Inputs, name: str = "balanced"
) -> list[FigureData]:
    """The figure of a report: the first of ``inputs``, exact above and a plan of the profile below.

    Nothing where the profile does not say how it was sampled, or has no such plan.
    """
    if profile.calibration is None or name not in profile.plans:
        return []
    one = inputs.chunk(0, 1)
    sampling = Sampling(**profile.calibration.sampling_settings())
    rows = []
    for title, steps in (("exact", ()), (name, profile.plan(name).steps)):
        watching, plan = Filming(), plan_for(model, steps, sampling)
        made = generate(model, one.condition(model), plan, seed=list(one.seeds), observer=watching)
        rows.append(row(title, watching.film(model, made)))
    return [
        {
            "title": "The picture, scale by scale",
            "svg": filmstrip(rows, model.scales(), profile.stages),
            "caption": f"The canvas after every scale, {one.items[0]!r}, seed {one.seeds[0]}: "
            f"exact above, {name} below. Dashed: where the profile's stages begin. Milliseconds "
            "are of this one run at batch 1.",
        }
    ]
