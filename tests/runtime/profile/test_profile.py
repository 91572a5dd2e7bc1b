"""Profiles: schema, YAML, discovery, matching. Run: pytest tests/runtime/profile/test_profile.py"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from stagevar_runtime.errors import ProfileError, ProfileMismatchError
from stagevar_runtime.profile import (
    Calibration,
    Estimate,
    Expected,
    PlanEntry,
    PlanStep,
    Profile,
    ScaleMeasurement,
    TokenOption,
    dump_profile,
    json_schema,
    load_profile,
    parse_profile,
    write_profile,
)
from stagevar_runtime.profile import files as module
from stagevar_runtime.profile.discovery import check_match, find_profile, shipped_folder
from stagevar_runtime.profile.fingerprint import Fingerprint

ARCHITECTURE, WEIGHTS, OTHER = ("sha256:" + digit * 64 for digit in "abc")
PRINT = Fingerprint(ARCHITECTURE, WEIGHTS)

TEXT = f"""\
schema_version: 2
kind: stagevar-profile
created_by: {{tool: stagevar-probe, version: 0.1.0, at: 2026-11-22T22:37:00Z}}
model:
  family: infinity
  architecture: {ARCHITECTURE}
  weights: {WEIGHTS}
  schedules: {{"1:1@1M": [[1, 1], [2, 2], [4, 4], [64, 64]]}}
provenance: measured
calibration:
  prompts: {{name: builtin-64, count: 64, held_out: 64}}
  seeds: [0]
  dtype: bfloat16
  guidance: 3
  sampling: {{top_k: 900, top_p: 0.97}}
  hardware: {{gpu: H200, count: 1, tf32: false}}
stages:
  structure: {{scale: 1, ci95: [1, 2], evidence: drift}}
target: {{metric: alignment, max_loss: 0.01, satisfied: true}}
plans:
  balanced:
    steps:
      - {{scale: 1, guidance: cond}}
      - {{scale: 2, tokens: {{keep: [0.18, 0.25], select: leverage, restore: lift}}}}
      - {{scale: 3, run: skip}}
    expected:
      {{metric: alignment, loss: 0.004, loss_ci95: [0.001, 0.007], ms_loop: [9, 20], batch: [1, 8]}}
measurements:
  - {{scale: 0, tokens: 1, cfg_sensitivity: {{value: 0.5, ci95: [0.4, 0.6]}}, rank_pca: [1, 0.5]}}
"""


def profile(**change: Any) -> Profile:
    return parse_profile(TEXT).model_copy(update=change)


def refuse(text: str) -> str:
    with pytest.raises(ProfileError) as caught:
        parse_profile(text, "p.yaml")
    message = str(caught.value)
    assert message.startswith("p.yaml: ") and "\n" not in message and "pydantic" not in message
    return message.removeprefix("p.yaml: ")


def edited(old: str, new: str) -> str:
    assert TEXT.count(old) == 1, old
    return TEXT.replace(old, new)


def test_reads_what_it_says() -> None:
    read = parse_profile(TEXT)
    assert read.created_by.at == "2026-11-22T22:37:00Z"
    assert read.model.schedules == {"1:1@1M": ((1, 1), (2, 2), (4, 4), (64, 64))}
    steps = read.plan().steps
    assert steps[0] == PlanStep(scale=1, guidance="cond")
    assert steps[1].tokens == TokenOption(keep=(0.18, 0.25), select="leverage", restore="lift")
    assert steps[2].run == "skip"
    assert read.calibration is not None and read.calibration.hardware["tf32"] is False
    assert read.calibration.sampling_settings() == {
        **{"guidance": 3.0, "temperature": None},
        **{"top_k": 900, "top_p": 0.97},
    }
    assert read.plans["balanced"].expected == Expected(
        metric="alignment", loss=0.004, loss_ci95=(0.001, 0.007), ms_loop=(9, 20), batch=(1, 8)
    )


def test_plan_by_name() -> None:
    assert profile().plan("balanced") is not None
    with pytest.raises(ProfileError, match=r"no plan 'fast', it has 'balanced'"):
        profile().plan("fast")
    with pytest.raises(ProfileError, match="it has no plan at all"):
        profile(plans={}).plan()


def test_canonical_text_has_one_line_a_step() -> None:
    lines = dump_profile(profile()).splitlines()
    assert "      - {scale: 1, guidance: cond}" in lines
    tokens = "{keep: [0.18, 0.25], select: leverage, restore: lift}"
    assert f"      - {{scale: 2, tokens: {tokens}}}" in lines
    assert "      - {scale: 3, run: skip}" in lines
    assert [line.split(":")[0] for line in lines if line[0] not in " -"] == [
        *("schema_version", "kind", "created_by", "model", "provenance", "calibration"),
        *("stages", "target", "default_plan", "plans", "measurements"),
    ]


ratio = st.floats(0, 1, exclude_min=True)
number = st.floats(-1e30, 1e30)
positive = st.floats(1e-300, 1e30)
bounded = st.floats(-1e6, 1e6)
names = st.text(min_size=1, max_size=20).filter(lambda n: n.isprintable() and bool(n.strip()))
token_options = st.builds(
    TokenOption,
    keep=st.one_of(ratio, st.lists(ratio, min_size=1, max_size=8).map(tuple)),
    select=st.sampled_from(["projection", "norm", "deviation", "leverage"]),
    restore=st.sampled_from(["cache", "delta-cache", "lift", "none"]),
)
BRANCHES: list[Literal["cond", "null"] | None] = [None, "cond", "null"]
branches = st.sampled_from(BRANCHES)


@st.composite
def plans(draw: st.DrawFn) -> PlanEntry:
    steps = []
    for scale in sorted(draw(st.sets(st.integers(0, 3)))):
        if draw(st.booleans()):
            steps.append(PlanStep(scale=scale, run="skip"))
            continue
        steps.append(
            PlanStep(
                scale=scale,
                guidance=draw(branches),
                temperature=draw(st.none() | st.floats(1e-6, 1e6)),
                tokens=draw(st.none() | token_options),
            )
        )
    low, loss, high = sorted(draw(st.tuples(number, number, number)))
    expected = Expected(
        metric=draw(st.none() | st.text()),
        loss=draw(st.none() | st.just(loss)),
        loss_ci95=draw(st.none() | st.just((low, high))),
        speedup_loop=draw(st.none() | positive | st.lists(positive, min_size=1).map(tuple)),
    )
    return PlanEntry(steps=tuple(steps), expected=draw(st.sampled_from([None, expected])))


scalars = st.text() | st.integers(-(10**15), 10**15) | number | st.booleans()


@st.composite
def profiles(draw: st.DrawFn) -> Profile:
    base = parse_profile(TEXT)
    assert base.calibration is not None
    named = draw(st.dictionaries(names, plans(), min_size=1, max_size=3))
    calibration = base.calibration.model_copy(
        update={
            "hardware": draw(st.dictionaries(st.text(), scalars, max_size=4)),
            "dtype": draw(names),
            "guidance": draw(bounded | st.lists(bounded, min_size=1, max_size=3).map(tuple)),
        }
    )
    rows = tuple(
        ScaleMeasurement(
            scale=k, tokens=k + 1, ms=draw(st.none() | st.builds(Estimate, value=number))
        )
        for k in range(draw(st.integers(0, 4)))
    )
    return base.model_copy(
        update={
            **{"plans": named, "default_plan": min(named), "measurements": rows},
            "calibration": draw(st.sampled_from([None, calibration])),
        }
    )


def rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    return tuple(map(rounded, value)) if isinstance(value, tuple) else value


@settings(max_examples=60, deadline=None)
@given(profiles())
def test_dump_and_load_round_trip(made: Profile) -> None:
    text = dump_profile(made)
    again = parse_profile(text)
    assert again.model_dump() == rounded(made.model_dump())
    assert dump_profile(again) == text


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet=st.sampled_from("0123456789.eE+-_:~<=#&*!|>%@ yntrufalsoNULxob\n\t'\"")))
def test_text_stays_text(text: str) -> None:
    base = parse_profile(TEXT)
    made = base.model_copy(
        update={"target": base.target and base.target.model_copy(update={"metric": text})}
    )
    assert parse_profile(dump_profile(made)).target == made.target


def test_order_of_free_keys_does_not_matter() -> None:
    one, other = TEXT, edited("{gpu: H200, count: 1,", "{count: 1, gpu: H200,")
    assert dump_profile(parse_profile(one)) == dump_profile(parse_profile(other))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("keep: [0.18, 0.25]", "keep: 1.4", "steps[1].tokens.keep is 1.4, expected less than or"),
        (
            *("keep: [0.18, 0.25]", "keep: [0.5, 0]"),
            "plans.balanced.steps[1].tokens.keep[1] is 0, expected greater than 0",
        ),
        ("keep: [0.18, 0.25]", "keep: []", "steps[1].tokens.keep is []"),
        ("keep: [0.18, 0.25]", "keep: true", "keep is True, expected a valid number"),
        ("restore: lift", "restore: lft", "steps[1].tokens.restore is 'lft', expected 'cache',"),
        ("select: leverage, ", "", "steps[1].tokens.select is missing, expected it"),
        (
            *("guidance: cond", "guidence: cond"),
            "plans.balanced.steps[0]: got the unknown key 'guidence', expected scale, run,",
        ),
        ("guidance: cond", "guidance: no", "steps[0].guidance is 'no', expected 'full', 'cond'"),
        ("guidance: cond", "guidance: null", "expected 'null' in quotes for the null branch"),
        (
            *("run: skip", "run: skip, temperature: 1.0"),
            "plans.balanced.steps[2]: got temperature at skipped scale 3, expected run: skip alone",
        ),
        (
            *("scale: 3, run", "scale: 2, run"),
            "plans.balanced: got scale 2 after 2, expected increasing scales",
        ),
        ("scale: 3, run", "scale: 4, run", "got scale 4 in plan 'balanced', expected 0 to 3"),
        ("scale: 3, run", "scale: -1, run", "steps[2].scale is -1, expected greater than or"),
        ("scale: 3, run: skip", "scale: '3'", "steps[2].scale is '3', expected a valid integer"),
        (
            *("scale: 3, run: skip", "scale: 3, guidance_scale: 2"),
            "got a guidance_scale at scale 3, expected none where guidance is cond",
        ),
        (
            *("restore: lift", "restore: lift, span: all"),
            "got 2 ratios in keep, expected one with span: all",
        ),
        ("[0.001, 0.007]", "[0.2, 0.1]", "loss_ci95: got [0.2, 0.1], expected the lower end"),
        ("[0.001, 0.007]", "[0.2]", "loss_ci95[1] is missing"),
        ("ci95: [1, 2]", "ci95: [1.5, 2]", "stages.structure.ci95[0] is 1.5, expected a valid"),
        ("max_loss: 0.01", "max_loss: .inf", "target.max_loss is '.inf', expected a valid number"),
        ("max_loss: 0.01", "max_loss: 1e999", "target.max_loss is inf, expected a finite number"),
        ("satisfied: true", "satisfied: yes", "target.satisfied is 'yes', expected a valid bool"),
        (ARCHITECTURE, "sha256:12", "model.architecture is 'sha256:12', expected string should"),
        (f"  weights: {WEIGHTS}\n", "", "got no model.weights, expected their hash"),
        ("provenance: measured", "provenance: guessed", "provenance is 'guessed', expected 'meas"),
        ("  balanced:", "  fast:", "got default_plan 'balanced', expected one of fast"),
        ("schema_version: 2", "schema_version: 3", "written by a newer stagevar (schema_version 3"),
        ("schema_version: 2", "schema_version: 0", "schema_version 0 is not supported, expected 2"),
        ("schema_version: 2", "schema_version: one", "schema_version is 'one', expected a number"),
        ("schema_version: 2", "schema_version: true", "schema_version is True, expected a number"),
        ("kind: stagevar-profile", "kind: other", "kind is 'other', expected 'stagevar-profile'"),
        ("seeds: [0]", "seeds: [0]\n  seeds: [1]", "line 13 has the key 'seeds' a second time"),
        ("seeds: [0]", "seeds: &a [0]\n  extra: *a", "line 13 has the alias *a, expected"),
        ("dtype: bfloat16", "dtype: !!python/name:os.system ''", "line 13 has the tag tag:yaml"),
        ("dtype: bfloat16", "? [a]\n  : b", "has a list, mapping or alias as a key"),
        ("seeds: [0]", "seeds: [0", "not valid YAML at line 13"),
        ("seeds: [0]", "seeds: " + "[" * 50 + "]" * 50, "line 12 is nested more than 32 deep"),
        ("seeds: [0]", "seeds: [1.5]", "calibration.seeds[0] is 1.5, expected a valid integer"),
        ("provenance: measured", "---\na: 1", "holds several YAML documents, expected one"),
    ],
)
def test_errors_name_field_got_and_expected(old: str, new: str, message: str) -> None:
    assert message in refuse(edited(old, new))


STEP = "{scale: 1, guidance: cond}"
HARDWARE = "hardware: {gpu: H200, count: 1, tf32: false}"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (STEP, "{scale: 1, guidance_scale: 1e308}", "guidance_scale is 1e+308, expected"),
        (STEP, "{scale: 1, guidance_scale: -1e7}", "guidance_scale is -10000000.0, expected"),
        (STEP, "{scale: 1, temperature: 5e-324}", "temperature is 5e-324, expected"),
        (STEP, "{scale: 1, temperature: 1e308}", "temperature is 1e+308, expected"),
        (
            STEP,
            f"{{scale: 1, features: {{rank: 2, basis: random, seed: {2**63}}}}}",
            f"features.seed is {2**63}, expected",
        ),
        ("seeds: [0]", f"seeds: [{2**64}]", f"calibration.seeds[0] is {2**64}, expected"),
        ("guidance: 3", "guidance: []", "calibration.guidance"),
        ("guidance: 3", "guidance: 1e308", "calibration.guidance"),
        ("top_k: 900", "top_k: []", "calibration.sampling.top_k"),
        ("top_k: 900", f"top_k: {2**40}", "calibration.sampling.top_k"),
        ("  balanced:", "  exact:", "got a plan called 'exact'"),
        ("  balanced:", '  "a\\nb":', "expected text of one line"),
        ("  balanced:", '  "\\e[31m":', "expected text of one line"),
        ("  balanced:", '  "":', "expected text of one line"),
        ("family: infinity", 'family: "\\e[31m"', "model.family"),
        ("loss: 0.004", "loss: 0.4", "got loss 0.4, expected it in its interval [0.001, 0.007]"),
        ("value: 0.5", "value: 7", "got value 7, expected it in its interval [0.4, 0.6]"),
        ("max_loss: 0.01", "max_loss: -0.01", "target.max_loss is -0.01, expected"),
        ("max_loss: 0.01", "max_loss: .nan", "target.max_loss is '.nan', expected"),
        ("rank_pca: [1, 0.5]", "rank_pca: [5, 5]", "rank_pca[0] is 5, expected"),
        ("rank_pca: [1, 0.5]", "rank_pca: []", "rank_pca"),
        ("ms_loop: [9, 20]", "ms_loop: []", "ms_loop"),
    ],
)
def test_what_could_not_be_run_or_meant_is_refused(old: str, new: str, message: str) -> None:
    assert message in refuse(edited(old, new))


def test_figures_at_the_ends_of_their_intervals_are_inside() -> None:
    for loss in ("0.001", "0.007", "0.00700000001"):
        parse_profile(edited("loss: 0.004", f"loss: {loss}"))


def test_several_errors_are_counted() -> None:
    text = edited("select: leverage", "select: x").replace("max_loss: 0.01", "max_loss: x")
    assert refuse(text).endswith("(and 1 more)")


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "the file is empty"), ("- 1", "holds a list"), ("# only\n", "the file is empty")],
)
def test_not_a_mapping(text: str, message: str) -> None:
    assert message in refuse(text)


@settings(max_examples=100, deadline=None)
@given(st.text())
def test_any_text_gives_one_clear_error(text: str) -> None:
    with pytest.raises(ProfileError) as caught:
        parse_profile(text, "p.yaml")
    assert str(caught.value).startswith("p.yaml: ")


def test_unreadable_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ProfileError, match=r"none\.yaml: cannot be read \(No such file"):
        load_profile(tmp_path / "none.yaml")
    (tmp_path / "p.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ProfileError, match="not UTF-8 text"):
        load_profile(tmp_path / "p.yaml")
    monkeypatch.setattr(module, "MAX_BYTES", 10)
    (tmp_path / "p.yaml").write_text(TEXT)
    with pytest.raises(ProfileError, match="larger than"):
        load_profile(tmp_path / "p.yaml")


def test_migration_runs_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    def from_minus_one(data: dict[str, Any]) -> dict[str, Any]:
        return data | {"origin": data.pop("source")}

    def from_zero(data: dict[str, Any]) -> dict[str, Any]:
        return data | {"provenance": data.pop("origin")}

    monkeypatch.setattr(module, "MIGRATIONS", {0: from_minus_one, 1: from_zero})
    old = edited("provenance: ", "source: ").replace("schema_version: 2", "schema_version: 0")
    assert parse_profile(old) == parse_profile(TEXT)


@pytest.mark.parametrize(
    ("target", "interval", "satisfied"),
    [
        ("max_loss: 0.01, satisfied: true", "[0.001, 0.02]", True),
        ("max_loss: 0.01, satisfied: true", "[0.001, 0.021]", "unproven"),
        ("max_loss: 0.002, satisfied: true", "[0.001, 0.0041]", "unproven"),
        ("max_loss: 0.01, satisfied: false", "[0.001, 0.03]", False),
        ("max_loss: 0.01, min_speedup: 2, satisfied: true", "[0.0, 0.5]", True),
    ],
)
def test_version_1_called_met_what_was_not_proved(
    target: str, interval: str, satisfied: bool | str
) -> None:
    old = edited("schema_version: 2", "schema_version: 1")
    old = old.replace("max_loss: 0.01, satisfied: true", target)
    read = parse_profile(old.replace("loss_ci95: [0.001, 0.007]", f"loss_ci95: {interval}")).target
    assert read is not None and read.satisfied == satisfied
    assert (read.doubt is None) == (satisfied is True)


def test_programs_may_build_with_lists_but_not_change() -> None:
    plan = PlanEntry.model_validate({"steps": [{"scale": 1, "guidance": "cond"}]})
    assert plan.steps == (PlanStep(scale=1, guidance="cond"),)
    with pytest.raises(ValidationError):
        plan.steps[0].scale = 2
    with pytest.raises(ValidationError, match="got the unknown key 'typo'"):
        Calibration.model_validate({"typo": 1})


def test_write_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "var.stagevar.yaml"
    write_profile(profile(), path)
    assert load_profile(path) == profile()
    before = path.read_text()

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(ProfileError, match=r"cannot be written \(No space left on device\)"):
        write_profile(profile(default_plan="other"), path)
    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(ProfileError, match="cannot be written"):
        write_profile(profile(), path / "below.yaml")


def test_json_schema() -> None:
    schema = json.loads(json.dumps(json_schema()))
    assert schema["additionalProperties"] is False
    assert set(schema["required"]) == {"created_by", "model", "provenance"}
    assert schema["$defs"]["PlanStep"]["properties"]["run"]["enum"] == ["full", "skip"]


def named(path: Path, name: str, **change: Any) -> Path:
    base = profile()
    created = base.created_by.model_copy(update={"tool": name})
    write_profile(base.model_copy(update={"created_by": created, **change}), path)
    return path


def test_discovery_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = tmp_path / "shipped"
    shipped.mkdir()
    monkeypatch.setattr("stagevar_runtime.profile.discovery.shipped_folder", lambda: shipped)
    checkpoint = tmp_path / "models" / "var.d30.pth"
    checkpoint.parent.mkdir()
    checkpoint.touch()

    def found(explicit: str | Path | None = "auto", **environ: str) -> tuple[str, str] | None:
        result = find_profile(checkpoint, PRINT, explicit, environ)
        return (result.profile.created_by.tool, result.how) if result else None

    assert found() is None
    base = profile().model
    other = base.model_copy(update={"architecture": OTHER})
    named(shipped / "a.yaml", "not this model's", model=other)
    assert found() is None
    unmeasured = base.model_copy(update={"weights": None})
    named(shipped / "b.yaml", "paper", model=unmeasured, provenance="published")
    assert found() == ("paper", "shipped")
    named(shipped / "c.yaml", "ours")
    assert found() == ("ours", "shipped")
    named(checkpoint.with_name("stagevar.yaml"), "folder")
    assert found() == ("folder", "beside the checkpoint")
    named(checkpoint.with_name("var.d30.stagevar.yaml"), "beside")
    assert found() == ("beside", "beside the checkpoint")
    assert found(STAGEVAR_PROFILE="") == ("beside", "beside the checkpoint")
    variable = named(tmp_path / "variable.yaml", "variable")
    assert found(STAGEVAR_PROFILE=str(variable)) == ("variable", "STAGEVAR_PROFILE")
    given_ = named(tmp_path / "given.yaml", "given")
    assert found(str(given_), STAGEVAR_PROFILE=str(variable)) == ("given", "argument")
    assert found(checkpoint.parent) == ("folder", "argument")
    assert found(None, STAGEVAR_PROFILE=str(variable)) is None
    with pytest.raises(ProfileError, match=r"gone\.yaml: cannot be read .*\(STAGEVAR_PROFILE\)"):
        found(STAGEVAR_PROFILE=str(tmp_path / "gone.yaml"))
    inside = find_profile(checkpoint.parent, PRINT, "auto", {})
    assert inside is not None and inside.path == checkpoint.with_name("stagevar.yaml")


def test_shipped_profiles_are_valid() -> None:
    folder = shipped_folder()
    assert folder is not None and folder.name == "profiles"
    for path in folder.glob("*.yaml"):
        shipped = load_profile(path)
        assert path.read_text() == dump_profile(shipped), f"{path}: not canonical"


SCHEDULE = [(1, 1), (2, 2), (4, 4), (64, 64)]
REPAIR = "stagevar-probe calibrate var_d30.pth"


def test_match() -> None:
    assert check_match(profile(), PRINT, SCHEDULE, repair=REPAIR, family="infinity") == []


@pytest.mark.parametrize(
    ("fingerprint", "schedule", "family", "field", "message"),
    [
        (PRINT, SCHEDULE, "var", "family", "calibrated for family infinity, model is var."),
        (
            *(PRINT, [*SCHEDULE[:2], (16, 16)], None, "schedules"),
            "profile was calibrated for 4 scales (last 64x64), model has 3 (last 16x16).",
        ),
        (
            *(Fingerprint(OTHER, WEIGHTS, classes=10), SCHEDULE, None, "architecture"),
            "for architecture sha256:aaaaaaaa (scales 1 2 4 64), model is sha256:cccccccc (10 "
            "classes, scales 1 2 4 64).",
        ),
    ],
)
def test_mismatch_says_how_to_repair(
    fingerprint: Fingerprint,
    schedule: list[tuple[int, int]],
    family: str | None,
    field: str,
    message: str,
) -> None:
    with pytest.raises(ProfileMismatchError) as caught:
        check_match(profile(), fingerprint, schedule, repair=REPAIR, family=family)
    assert message in str(caught.value)
    assert str(caught.value).endswith(f"Recalibrate: {REPAIR}")
    assert caught.value.field == field
    assert caught.value.expected != caught.value.found
    assert caught.value.exit_code == 4


def test_other_weights_warn_or_raise() -> None:
    other = Fingerprint(ARCHITECTURE, OTHER)
    (warning,) = check_match(profile(), other, SCHEDULE, repair=REPAIR)
    assert "calibrated for weights sha256:bbbbbbbb, model has weights sha256:cccccccc" in warning
    with pytest.raises(ProfileMismatchError, match="weights sha256:bbb") as caught:
        check_match(profile(), other, SCHEDULE, repair=REPAIR, strict=True)
    assert (caught.value.expected, caught.value.found) == (WEIGHTS, OTHER)


def test_another_number_of_classes_is_named() -> None:
    model = profile().model.model_copy(update={"classes": 10})
    here = Fingerprint(ARCHITECTURE, WEIGHTS, classes=4)
    with pytest.raises(ProfileMismatchError, match="for 10 classes, model has 4") as caught:
        check_match(profile(model=model), here, SCHEDULE, repair=REPAIR)
    assert (caught.value.field, caught.value.expected, caught.value.found) == ("classes", 10, 4)
    ten = Fingerprint(ARCHITECTURE, WEIGHTS, classes=10)
    assert check_match(profile(model=model), ten, SCHEDULE, repair=REPAIR) == []


def test_another_tokenizer_warns_or_raises() -> None:
    model = profile().model.model_copy(update={"tokenizer": OTHER})
    here = Fingerprint(ARCHITECTURE, WEIGHTS, tokenizer=WEIGHTS)
    (warning,) = check_match(profile(model=model), here, SCHEDULE, repair=REPAIR)
    assert "for the image tokenizer sha256:cccccccc, model has the image tokenizer " in warning
    both = Fingerprint(ARCHITECTURE, OTHER, tokenizer=WEIGHTS)
    (warning,) = check_match(profile(model=model), both, SCHEDULE, repair=REPAIR)
    assert "for weights sha256:bbbbbbbb and the image tokenizer sha256:cccccccc, model" in warning
    with pytest.raises(ProfileMismatchError, match="the image tokenizer") as caught:
        check_match(profile(model=model), here, SCHEDULE, repair=REPAIR, strict=True)
    assert (caught.value.field, caught.value.expected) == ("tokenizer", OTHER)
    for known in (Fingerprint(ARCHITECTURE, WEIGHTS, tokenizer=OTHER), PRINT):
        assert check_match(profile(model=model), known, SCHEDULE, repair=REPAIR, strict=True) == []
    assert check_match(profile(), here, SCHEDULE, repair=REPAIR, strict=True) == []


def test_published_profile_fits_any_weights() -> None:
    model = profile().model.model_copy(update={"weights": None})
    published = profile(model=model, provenance="published")
    (warning,) = check_match(published, PRINT, SCHEDULE, repair=REPAIR, strict=True)
    assert "is published, never measured on these weights" in warning
