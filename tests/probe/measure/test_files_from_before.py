"""Files that an earlier version wrote: read, solved again, written again.

pytest tests/probe/measure/test_files_from_before.py
"""

from __future__ import annotations

import json
from pathlib import Path

from conftest import invoke

from stagevar_probe.measure.measurements import Measurements, load_measurements
from stagevar_probe.solve.build import problem_from
from stagevar_probe.solve.milp import solve
from stagevar_runtime.profile import dump_profile, load_profile, parse_profile

DATA = Path(__file__).resolve().parents[2] / "data"
MEASURED = DATA / "version_1.measurements.json"
PROFILE = DATA / "version_1.stagevar.yaml"


def test_measurements_from_before_are_read_whole() -> None:
    found = load_measurements(MEASURED)
    assert len(found.smooth["exact"]) == 2 and found.costs is not None
    assert set(found.validation.plans) == {"exact", "quality", "balanced", "fast"}
    assert len(found.validation.attempts) == 2 and len(found.validation.frontier) == 3
    assert found.validation.trials is not None
    assert not found.validation.evidence and not found.validation.seconds
    assert found.validation.plans["exact"].loss.mean == 0
    again = Measurements.parse(json.loads(json.dumps(found.dump())), "again")
    assert again == found


def test_measurements_from_before_are_solved_again(tmp_path: Path) -> None:
    found = load_measurements(MEASURED)
    assert solve(problem_from(found, 0.05)).feasible
    output = tmp_path / "p.yaml"
    result = invoke("solve", MEASURED, "--max-loss", 0.05, "-o", output, "--json")
    assert result.exception is None, result.exception
    made = load_profile(output)
    assert made.target is not None and made.target.satisfied == "unproven"


def test_a_profile_from_before_is_read_and_not_believed_more_than_it_shows() -> None:
    assert PROFILE.read_text().startswith("schema_version: 1\n")
    found = load_profile(PROFILE)
    assert found.schema_version == 2 and found.target is not None
    expected = found.plan("balanced").expected
    if found.plan("balanced").steps:
        assert expected is not None and expected.loss_ci95 is not None
        shown = expected.loss_ci95[1] <= 2 * found.target.max_loss
        assert found.target.satisfied is (True if shown else "unproven") or not shown
    assert parse_profile(dump_profile(found)) == found
