"""The calibration report: one HTML file that needs nothing else, from one plain dictionary."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..files import write_whole

TEMPLATE = "template.html.j2"


class Headline(TypedDict):
    """One large figure at the top: ``value`` "2.1x", ``label`` "faster end to end", a detail."""

    value: str
    label: str
    detail: str


class PlanRow(TypedDict):
    """One plan. ``loss`` and its interval are held-out; ``steps`` says what each scale does."""

    name: str
    ms: float
    speedup: float
    loss: float
    low: float
    high: float
    satisfied: bool | str
    summary: str
    steps: list[str]


class FigureData(TypedDict):
    """A figure: ``svg`` from :mod:`.plots` (trusted, inlined as it is), its title and caption."""

    title: str
    svg: str
    caption: str


class PictureData(TypedDict):
    """A pair of pictures: a data URI from :func:`.plots.picture_pair` and what was asked."""

    uri: str
    caption: str


class TableData(TypedDict):
    """Any further table, cells already formatted."""

    title: str
    header: list[str]
    rows: list[list[str]]
    caption: str


class ReportData(TypedDict):
    """Everything a report shows. Lists may be empty: their section is then left out.

    ``verdict`` is one sentence; ``satisfied`` colours it: true, false or ``unproven``, None where
    nothing was asked.
    ``pictures_title``: empty for pairs of exact and fast. ``notes`` are the honest ones: what was
    not measured, what the intervals mean, where the budget was missed. ``facts`` and
    ``provenance`` are (name, value) pairs. ``command`` reproduces the calibration.
    """

    title: str
    subtitle: str
    satisfied: bool | str | None
    verdict: str
    headlines: list[Headline]
    facts: list[tuple[str, str]]
    loss_name: str
    plans: list[PlanRow]
    figures: list[FigureData]
    pictures: list[PictureData]
    pictures_title: str
    pictures_caption: str
    tables: list[TableData]
    notes: list[str]
    provenance: list[tuple[str, str]]
    command: str


def render(data: ReportData) -> str:
    """The report as one HTML document: inline styles and images, no script, no request.

    Everything but ``svg`` is escaped. Raises ``jinja2.UndefinedError`` when a key is missing.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(TEMPLATE).render(data)


def write_report(data: ReportData, path: Path) -> None:
    """Write the report whole or not at all."""
    write_whole(path, render(data).encode())
