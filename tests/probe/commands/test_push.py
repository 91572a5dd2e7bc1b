"""Pushing a profile to the Hub, against a small one on a loopback port.

pytest tests/probe/commands/test_push.py
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from conftest import invoke
from hub_server import Hub

from stagevar_probe.report.card import BEGIN, END, TAGS, section, with_metadata, with_section
from stagevar_runtime import Pipeline, StagevarError, load, load_profile

ABOUT = "---\nlicense: mit  # as it was\ntags:\n- images\n---\n# A model\n\nWhat it is.\n"


@pytest.fixture(autouse=True)
def logged_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_not_a_real_one")


def weights(calibrated: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in calibrated.parent.glob("*.pth")}


def drawn(pipe: Pipeline) -> torch.Tensor:
    return pipe(labels=[1, 2], seed=[1, 2], output_type="pt").images


def test_pushed_and_loaded_elsewhere(hub: Hub, calibrated: Path) -> None:
    hub.add("owner/name", weights(calibrated) | {"README.md": ABOUT.encode()})
    profile = calibrated.with_suffix(".stagevar.yaml")
    done = invoke("push", profile, "owner/name", "--json")
    assert done.exception is None, done
    said = json.loads(done.output)
    assert said["pull_request"] and said["url"].endswith("/owner/name/discussions/1")
    repo = hub.repos["owner/name"]
    assert "README.md" in repo.revisions["main"] and len(repo.revisions["main"]) == 3
    pushed = repo.pulls[0]
    endings = {name.partition(".")[2] for name in pushed}
    assert {"stagevar.yaml", "stagevar.measurements.json", "stagevar.report.html"} <= endings
    assert pushed[profile.name] == profile.read_bytes()
    card = pushed["README.md"].decode()
    assert card.startswith("---\nlicense: mit  # as it was\n") and "# A model\n\nWhat" in card
    for plan in load_profile(profile).plans:
        assert f"| {plan} |" in card or f"| **{plan}** |" in card
    repo.revisions["main"] = pushed  # merged
    elsewhere, here = load("owner/name"), load(calibrated)
    assert elsewhere.profile == here.profile and elsewhere.plan_name == here.plan_name
    assert torch.equal(drawn(elsewhere), drawn(here))


def test_one_s_own_repository_is_made_and_committed_to(hub: Hub, calibrated: Path) -> None:
    profile = calibrated.with_suffix(".stagevar.yaml")
    done = invoke("push", profile, "me/profiles", "--base-model", "owner/name")
    assert done.exception is None and 'profile="me/profiles"' in done.output
    files = hub.repos["me/profiles"].revisions["main"]
    card = files["README.md"].decode()
    front = yaml.safe_load(card.split("---")[1])
    assert front == {"library_name": "stagevar", "base_model": "owner/name", "tags": list(TAGS)}
    assert 'load("owner/name", profile="me/profiles")' in card
    assert load(calibrated, profile="me/profiles").profile == load_profile(profile)
    assert invoke("push", profile, "me/profiles", "--base-model", "owner/name").exception is None
    again = hub.repos["me/profiles"].revisions["main"]["README.md"].decode()
    assert again == card and hub.repos["me/profiles"].pulls == []
    assert invoke("push", profile, "me/profiles", "--pull-request", "-q").exception is None
    assert len(hub.repos["me/profiles"].pulls) == 1


@pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the library's own
def test_bases_go_along(hub: Hub, calibrated: Path) -> None:
    bases = calibrated.with_suffix(".stagevar.safetensors")
    bases.write_bytes(b"large")
    assert invoke("push", calibrated.with_suffix(".stagevar.yaml"), "me/p").exception is None
    assert hub.repos["me/p"].revisions["main"][bases.name] == b"large"


def test_a_dry_run_sends_nothing(hub: Hub, calibrated: Path) -> None:
    profile = calibrated.with_suffix(".stagevar.yaml")
    hub.add("owner/name", weights(calibrated) | {"README.md": ABOUT.encode()})
    for name in ("owner/name", "me/not-there-yet"):
        done = invoke("push", profile, name, "--dry-run")
        assert done.exception is None and profile.name in done.output and BEGIN in done.output
    assert not any(line.startswith(("POST", "PUT")) for line in hub.asked)


def test_what_cannot_be_pushed_is_said(hub: Hub, calibrated: Path) -> None:
    profile = calibrated.with_suffix(".stagevar.yaml")
    for name in ("owner/name:file.yaml", "owner"):
        error = invoke("push", profile, name).exception
        assert isinstance(error, StagevarError) and "expected OWNER/NAME" in str(error)
    error = invoke("push", profile, "owner/missing").exception
    assert isinstance(error, StagevarError) and "no such repository" in str(error)


def test_a_profile_of_another_name_is_told_of(hub: Hub, calibrated: Path) -> None:
    hub.add("me/model", weights(calibrated))
    profile = calibrated.with_suffix(".stagevar.yaml")
    other = profile.rename(profile.with_name("else.stagevar.yaml"))
    assert "no checkpoint there is called else" in invoke("push", other, "me/model").output


def test_the_section_replaces_itself_and_nothing_else(calibrated: Path) -> None:
    profile = load_profile(calibrated.with_suffix(".stagevar.yaml"))
    made = section(profile, "a/b", "a/b", ["x.stagevar.yaml"])
    card = with_section(ABOUT, made)
    assert card.startswith(ABOUT) and card.count(BEGIN) == card.count(END) == 1
    more = card + "\n## After\n"
    other = section(profile, "a/b", "c/d", ["y.yaml"])
    replaced = with_section(more, other)
    assert replaced == more.replace(made, other) and replaced != more
    assert with_section("", made) == made + "\n"


@pytest.mark.parametrize(
    "front",
    [
        "license: mit\n",
        "tags:\n  - a\n  - b\nlicense: mit # why\n",
        "tags: [a, b]\nlibrary_name: other\n",
        "tags:\n",
        "base_model: x/y\ntags:\n- stagevar\n",
    ],
)
def test_metadata_is_added_to(front: str) -> None:
    card = with_metadata(f"---\n{front}---\ntext\n", "owner/name")
    before, after = yaml.safe_load(front), yaml.safe_load(card.split("---\n")[1])
    kept = {k: v for k, v in before.items() if k != "tags"}
    assert kept.items() <= after.items() and card.endswith("---\ntext\n")
    assert {*TAGS, *(before.get("tags") or ())} == {*after["tags"]}
    assert after["library_name"] == before.get("library_name", "stagevar")
    assert after["base_model"] == before.get("base_model", "owner/name")
    assert with_metadata(card, "owner/name") == card
    if "# why" in front:
        assert "license: mit # why\n" in card
