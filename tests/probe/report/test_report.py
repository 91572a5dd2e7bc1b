"""Run with: pytest tests/probe/report/test_report.py"""

from __future__ import annotations

import base64
import functools
import io
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import jinja2
import numpy as np
import pytest
import torch
from PIL import Image

from stagevar_probe.report import plots
from stagevar_probe.report.html import ReportData, render
from stagevar_probe.report.plots import Band, Point
from stagevar_runtime.errors import CalibrationError

SCALES = [f"{n}x{n}" for n in (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)]
K = len(SCALES)
NAMESPACE = "{http://www.w3.org/2000/svg}"


def band(start, stop, spread=0.03, power=1.0):
    mean = start + (stop - start) * np.linspace(0, 1, K) ** power
    return Band(mean.tolist(), (mean - spread).tolist(), (mean + spread).tolist())


def draw():
    """One of each figure, by name."""
    rng = np.random.default_rng(0)
    exact = [1, 1, 1.2, 1.4, 2, 2.5, 4, 6, 10, 15]
    rank = np.linspace(1, 0.2, K) * np.linspace(0.7, 1, 4)[:, None]
    return {
        "curves": plots.curves(
            SCALES, {"cond": band(0.3, 0.05), "null": band(0.45, 0.12), "delta": band(0.2, 0.02)},
            "divergence (nats)", "Guidance sensitivity",
        ),
        "rank": plots.ranks(
            SCALES, {"centred (pca)": rank, "plain (svd)": rank * 0.8 + 0.01 * rng.random((4, K))}
        ),
        "stages": plots.stages(
            SCALES,
            {"semantic": band(0.2, 1, power=0.3), "structural": band(0.1, 1, power=0.8)},
            5, 8, (4, 6), (8, 8),
        ),
        "time": plots.time_bars(
            SCALES,
            {"exact": exact, "balanced": [*exact[:7], 3, 5, 7.5], "fast": [*exact[:7], 3, 3, 0]},
            {n: {"decode": 12.0, "text": 3.0} for n in ("exact", "balanced", "fast")},
        ),
        "frontier": plots.frontier(
            [Point(60, 0.0, -0.002, 0.002), Point(45, 0.004, 0, 0.008, "balanced"),
             Point(33, 0.02, 0.012, 0.028, "fast")],
            budget=0.01, loss_name="alignment loss",
        ),
    }  # fmt: skip


drawn = functools.cache(draw)


def sample() -> ReportData:
    """A whole report with made-up numbers."""
    pictures = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    pairs = [plots.picture_pair(a, a.flip(-1)) for a in pictures]
    return {
        "title": "var-tiny",
        "subtitle": "Acceleration profile, measured on 64 + 64 prompts",
        "satisfied": True,
        "verdict": "The balanced plan loses 0.004 alignment (limit 0.010).",
        "headlines": [
            {"value": "2.10x", "label": "faster end to end", "detail": "62.1 to 29.6 ms"},
            {"value": "0.004", "label": "alignment lost", "detail": "95 %: 0.000 to 0.008"},
            {"value": "scale 8", "label": "refinement begins", "detail": "95 %: 8 to 8"},
        ],
        "facts": [("family", "var"), ("hardware", "2 CPU cores, float32")],
        "loss_name": "alignment loss",
        "plans": [
            {
                "name": name, "ms": ms, "speedup": 62.1 / ms, "loss": loss, "low": loss - 0.004,
                "high": loss + 0.004, "satisfied": loss < 0.01,
                "summary": "cond branch alone from scale 7, temperature 0.6",
                "steps": ["full", "full", "cond branch, 40 % of tokens by deviation"],
            }
            for name, ms, loss in (("balanced", 29.6, 0.004), ("fast", 21.0, 0.02))
        ],
        "figures": [
            {"title": f"Figure {name}", "svg": svg, "caption": "Mean over prompts; 95 % interval."}
            for name, svg in drawn().items()
        ],
        "pictures": [{"uri": uri, "caption": f"class {i}"} for i, uri in enumerate(pairs)],
        "pictures_title": "",
        "pictures_caption": "Same seeds. The balanced plan.",
        "tables": [
            {"title": "Comparison", "header": ["method", "ms"], "rows": [["fastvar", "31"]],
             "caption": "one machine"}
        ],
        "notes": ["Text encoder time is not included.", "A <b>tag</b> & an ampersand."],
        "provenance": [("weights", "sha256:" + "0123456789abcdef" * 4)],
        "command": "stagevar-probe calibrate var-tiny.safetensors --seed 0",
    }  # fmt: skip


def texts(svg):
    return ["".join(t.itertext()) for t in ET.fromstring(svg).iter(f"{NAMESPACE}text")]


@pytest.mark.parametrize("name", ["curves", "rank", "stages", "time", "frontier"])
def test_figures_are_inline_svg_that_follow_the_page(name):
    svg = drawn()[name]
    root = ET.fromstring(svg)
    assert root.tag == f"{NAMESPACE}svg" and root.get("viewBox") and root.get("width") is None
    assert root.get("role") == "img" and root.get("aria-label")
    assert "currentColor" in svg and plots.INK not in svg and plots.FAINT not in svg
    ids = [e.get("id") for e in root.iter() if e.get("id")]
    assert len(ids) == len(set(ids)) and all(i.startswith(f"{name}-") for i in ids)
    used = re.findall(r'(?:url\(|href=")#([^)"]+)', svg)
    assert used and set(used) <= set(ids)


def test_figures_are_the_same_every_time():
    assert draw() == drawn()


def test_two_figures_of_one_kind_share_no_id():
    drawings = (plots.curves(SCALES, {"cond": band(0, end)}, "loss", "Loss") for end in (1, 2))
    found = [set(re.findall(r'id="([^"]+)"', svg)) for svg in drawings]
    assert found[0] and not found[0] & found[1]


def test_figures_say_what_they_show():
    assert {"cond", "null", "delta", "16x16", "divergence (nats)"} <= set(texts(drawn()["curves"]))
    assert {"group 0", "group 3", ".70", ".20", "1.00"} <= set(texts(drawn()["rank"]))
    assert {"semantic", "structure", "refinement"} <= set(texts(drawn()["stages"]))
    assert {"exact", "balanced", "59.1 ms", "decode"} <= set(texts(drawn()["time"]))
    assert {"balanced", "fast", "budget", "alignment loss"} <= {
        t.strip() for t in texts(drawn()["frontier"])
    }


def test_ranks_above_one_are_written_whole():
    assert "123" in texts(plots.ranks(SCALES, {"svd": np.full((1, K), 123.4)}, "effective rank"))


def test_lengths_are_checked():
    with pytest.raises(CalibrationError, match="scales"):
        plots.curves(SCALES[:-1], {"cond": band(0, 1)}, "loss", "Loss")
    with pytest.raises(CalibrationError, match="scales"):
        plots.time_bars(SCALES, {"exact": [1.0]})
    with pytest.raises(CalibrationError, match="scales"):
        plots.ranks(SCALES, {"pca": np.ones((2, 3))})


def test_single_scale_and_collapsed_stages_can_be_drawn():
    one = Band([1.0], [0.9], [1.1])
    assert plots.stages(["1x1"], {"a": one}, 0, 0, (0, 0), (0, 0)).startswith("<svg")
    assert plots.time_bars(["1x1"], {"exact": [1.0]}).startswith("<svg")
    assert plots.frontier([Point(1, 0, 0, 0)]).startswith("<svg")


def test_picture_pair_holds_both_pictures():
    exact, fast = torch.zeros(3, 5, 4), torch.ones(3, 5, 4)
    fast[0] = 0.5
    uri = plots.picture_pair(exact, fast, gap=3)
    assert uri.startswith("data:image/png;base64,")
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))))
    assert image.shape == (5, 11, 4)
    assert (image[:, :4] == (0, 0, 0, 255)).all() and (image[:, 4:7, 3] == 0).all()
    assert (image[:, 7:] == (128, 255, 255, 255)).all()
    with pytest.raises(CalibrationError):
        plots.picture_pair(exact, fast[:, :2])


class Outline(HTMLParser):
    """Collects tags, checks that they close, and every address."""

    void = frozenset({"meta", "img", "br", "link"})

    def __init__(self) -> None:
        super().__init__()
        self.open, self.tags, self.addresses = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [v for k, v in attrs if k in ("src", "href", "xlink:href", "action")]
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in self.void:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_report_is_one_file_that_asks_for_nothing():
    page = render(sample())
    outline = Outline()
    outline.feed(page)
    assert outline.open == []
    assert "script" not in outline.tags and "link" not in outline.tags
    assert outline.addresses and all(a.startswith(("data:", "#")) for a in outline.addresses)
    assert "@import" not in page and not re.search(r"url\((?!#)", page)
    assert outline.tags.count("svg") == 5 and outline.tags.count("img") == 4
    assert outline.tags.count("h1") == 1


def test_report_says_everything_and_escapes():
    page = render(sample())
    for text in ("var-tiny", "Target met.", "29.6", "2.10x", "0.0040", "fastvar", "class 3",
                 "stagevar-probe calibrate", "Text encoder time is not included."):  # fmt: skip
        assert text in page
    assert "A &lt;b&gt;tag&lt;/b&gt; &amp; an ampersand." in page
    assert page.count(">met<") == 1 and page.count(">missed<") == 1


def test_report_without_the_optional_parts():
    data = sample()
    data.update(figures=[], pictures=[], tables=[], plans=[], notes=[], headlines=[], command="")
    data["satisfied"] = False
    page = render(data)
    assert "Target not met." in page
    for gone in ("<h2>Plans", "<h2>Pictures", "<h2>Measurements", "Read this first", "<pre>"):
        assert gone not in page


def test_a_missing_key_is_an_error():
    data = dict(sample())
    del data["verdict"]
    with pytest.raises(jinja2.UndefinedError, match="verdict"):
        render(data)
