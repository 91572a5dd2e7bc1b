"""What was measured survives the file, damage is told.

pytest tests/probe/measure/test_measurements.py
"""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import some_figures
from hypothesis import given, settings
from hypothesis import strategies as st
from small_measurements import JOB

from stagevar_probe.datasets.inputs import balanced_labels
from stagevar_probe.measure.chunk import measure_chunk
from stagevar_probe.measure.costs import Costs
from stagevar_probe.measure.interventions import (
    Intervention,
    SearchSpace,
    default_interventions,
    default_space,
)
from stagevar_probe.measure.measurements import Measurements, load_measurements, write_json
from stagevar_probe.measure.per_image import PerImage, parse_tables
from stagevar_probe.measure.validation import Validation
from stagevar_probe.metrics.quality import Likeness
from stagevar_probe.observe.rank import RankKey
from stagevar_runtime.errors import CalibrationError
from stagevar_runtime.families.var import VAR
from stagevar_runtime.model.sampling import Sampling
from stagevar_runtime.profile import TokenOption

SAMPLING = Sampling(guidance=2.0, top_k=20, top_p=0.95)
ROOT = Path(__file__).resolve().parents[3]
SHIPPED = [p for d in ("tests/data", "checkpoints") for p in (ROOT / d).rglob("*measurements.json")]
numbers = st.floats(-1e6, 1e6, allow_nan=False).map(lambda x: float(f"{x:.6g}"))
columns = st.dictionaries(st.text(max_size=8), st.lists(numbers, max_size=4), max_size=3)


@st.composite
def measured(draw: Any) -> Measurements:
    cells = draw(
        st.dictionaries(
            st.tuples(st.integers(0, 9), st.integers(1, 2), st.text(max_size=6)), numbers
        )
    )
    option = TokenOption(
        keep=draw(st.sampled_from([0.5, (0.5, 0.25)])), select="norm", restore="cache"
    )
    return Measurements(
        job=replace(
            JOB,
            checkpoint=draw(st.text(max_size=5)),
            min_speedup=draw(st.none() | st.just(1.5)),
            sampling=Sampling(
                draw(st.sampled_from([2.0, (1.0, 2.0)])), top_k=draw(st.just((3, 4)))
            ),
            beside=draw(st.sampled_from([(), ({"metric": "x", "max_loss": 0.5},)])),
        ),
        space=SearchSpace(
            draw(st.dictionaries(st.text(max_size=6), st.none() | numbers)),
            {"cond@0.6": ("cond", draw(st.none() | numbers)), "null": ("null", None)},
            {draw(st.text(max_size=6)): option},
        ),
        interventions=[
            Intervention(draw(st.text()), 3, "published", "cond"),
            Intervention("skip", 1, skip=True),
        ],
        smooth=draw(columns) | {"exact": [draw(numbers)]},
        score=draw(columns),
        psnr=draw(columns),
        sensitivity=draw(st.dictionaries(st.integers(0, 12), columns, max_size=2)),
        ranks={RankKey(0, 1, "cond", "pca"): draw(columns)},
        semantic=draw(st.lists(st.lists(numbers, max_size=3), max_size=2)),
        costs=draw(st.none() | st.just(Costs(cells, dict(cells), 1.5, 4, 3))),
        validation=Validation({"balanced": some_figures(flops=draw(numbers))}),
    )


@settings(max_examples=50, deadline=None)
@given(measured())
def test_dump_and_parse_round_trip(made: Measurements) -> None:
    text = json.dumps(made.dump(), allow_nan=False)
    assert Measurements.parse(json.loads(text), "here") == made


def test_six_digits_are_kept() -> None:
    made = Measurements(
        job=JOB, space=SearchSpace({}, {}, {}), interventions=[], smooth={"exact": [1 / 3]}
    )
    assert made.dump()["smooth"]["exact"] == [0.333333]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_files_on_disk_are_written_as_they_were_read(path: Path) -> None:
    """But for what version 1 did not know at first."""
    held, made = json.loads(path.read_text()), load_measurements(path).dump()
    for key in held.keys() - {"menu", "arms", "validation"}:
        assert made[key] == held[key], key
    assert made["menu"] | held["menu"] == made["menu"]
    for arm, before in zip(made["arms"], held["arms"], strict=True):
        assert arm | before == arm
    assert json.loads(json.dumps(Measurements.parse(made, path).dump())) == made


@pytest.fixture(scope="module")
def good(tiny_var: VAR) -> dict[str, Any]:
    space = SearchSpace(
        {"published": None}, {}, {"t": TokenOption(keep=0.5, select="norm", restore="none")}
    )
    tried = [Intervention("t at 3", 3, tokens="t")]
    made = Measurements(job=JOB, space=space, interventions=tried, smooth={"exact": [1.0]})
    return made.dump()


def damage(good: dict[str, Any], tmp_path: Path, key: str, value: Any) -> str:
    data = copy.deepcopy(good)
    *path, last = key.split(".")
    place = data
    for part in path:
        place = place[part]
    if value is KeyError:
        del place[last]
    else:
        place[last] = value
    file = tmp_path / "m.json"
    write_json(file, data)
    with pytest.raises(CalibrationError) as caught:
        load_measurements(file)
    said = str(caught.value)
    assert str(file) in said and "\n" not in said
    return said


@pytest.mark.parametrize("key", ["job", "menu", "arms", "smooth", "costs", "ranks", "validation"])
@pytest.mark.parametrize("value", [KeyError, 7])
def test_damaged_parts_are_named(good, tmp_path: Path, key: str, value: Any) -> None:
    if value == 7 and key == "validation":
        value = KeyError
    assert "damaged measurements" in damage(good, tmp_path, key, value)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("kind", "stagevar-profile", "expected stagevar-measurements version 1"),
        ("version", 2, "version 2, expected"),
        ("job.weights", KeyError, "nothing about weights"),
        ("smooth", {}, "nothing about the exact path"),
        ("menu.tokens", [], "damaged"),
        ("menu.tokens.t.keep", 3, "keep"),
        ("arms", [{"surprise": 1}], "surprise"),
    ],
)
def test_errors_say_what_is_wrong(good, tmp_path: Path, key, value, expected) -> None:
    assert expected in damage(good, tmp_path, key, value)


@pytest.mark.parametrize("content", ["", "{", "[]", "3", '"text"', "\xff"])
def test_files_that_hold_something_else(tmp_path: Path, content: str) -> None:
    file = tmp_path / "m.json"
    file.write_bytes(content.encode("latin-1"))
    with pytest.raises(CalibrationError, match=r"m\.json"):
        load_measurements(file)
    with pytest.raises(CalibrationError, match="cannot be read"):
        load_measurements(tmp_path / "none.json")


def test_chunks_add_up(tiny_var: VAR) -> None:
    """Two chunks give, image by image, what one chunk of all images gives."""
    space = default_space(tiny_var.info, SAMPLING)
    interventions = [
        intervention
        for intervention in default_interventions(space, tiny_var.scales())
        if not intervention.features
    ][::5]
    inputs = balanced_labels(tiny_var, 4, seed=3)

    def collect(*parts: tuple[int, int, int]) -> PerImage:
        made = PerImage()
        for start, size, ranked in parts:
            chunk = inputs.chunk(start, size)
            made.add(
                measure_chunk(tiny_var, chunk, space, interventions, SAMPLING, Likeness(), ranked)
            )
        return made

    whole, parts = collect((0, 4, 3)), collect((0, 2, 2), (2, 2, 1))
    assert whole.smooth.keys() == parts.smooth.keys() >= {"exact", *(a.name for a in interventions)}
    for table in ("smooth", "score", "psnr"):
        for name, values in getattr(whole, table).items():
            np.testing.assert_allclose(getattr(parts, table)[name], values, atol=1e-3, rtol=1e-3)
    for k, names in whole.sensitivity.items():
        for name, values in names.items():
            np.testing.assert_allclose(parts.sensitivity[k][name], values, atol=1e-4)
    for curve in ("semantic", "structural", "low", "high"):
        np.testing.assert_allclose(getattr(parts, curve), getattr(whole, curve), atol=1e-4)
    assert list(parts.ranks) == list(whole.ranks)
    for key, theirs in whole.ranks.items():
        for name, values in theirs.items():
            assert len(values) == 3
            np.testing.assert_allclose(parts.ranks[key][name], values, rtol=1e-3)


def test_losses_are_exact_minus_arm_of_the_images_both_have() -> None:
    made = PerImage({"exact": [1.0, 0.5, 0.25], "arm": [0.75, 0.75]})
    assert made.losses("arm").tolist() == [0.25, -0.25]


def test_measured_chunk_has_every_part(tiny_var: VAR) -> None:
    space = default_space(tiny_var.info, SAMPLING)
    intervention = Intervention("cond from 2", 2, "published", "cond")
    inputs = balanced_labels(tiny_var, 2, seed=0)
    chunk = measure_chunk(tiny_var, inputs, space, [intervention], SAMPLING, Likeness(), 0)
    written = json.loads(json.dumps(chunk.tables(), allow_nan=False))
    assert PerImage(**parse_tables(written)) == chunk
    assert chunk.ranks == {}  # no image was to be ranked
    assert chunk.smooth["exact"] == [1.0, 1.0] and "exact" not in chunk.psnr
    assert max(chunk.smooth["cond from 2"]) < 1
    assert set(chunk.sensitivity) == {0, 1, 2, 3}
    semantic, structural = torch.tensor(chunk.semantic), torch.tensor(chunk.structural)
    assert semantic.shape == structural.shape == (2, 4)
    torch.testing.assert_close(structural[:, -1], torch.ones(2))
