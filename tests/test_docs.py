"""The code in docs/ runs as it stands, and names what there is.

pytest tests/test_docs.py
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from stagevar_runtime.options import restorers, selectors
from stagevar_runtime.profile import PlanEntry, PlanStep, presets
from stagevar_runtime.profile.strict_yaml import read_yaml

ROOT = Path(__file__).resolve().parents[1]
CODE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
REGISTRIES = (selectors.SELECTORS, restorers.RESTORERS, presets.PRESETS)


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def test_the_method_of_the_page_runs(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    before = [set(registry) for registry in REGISTRIES]
    monkeypatch.chdir(ROOT)
    space: dict[str, Any] = {}
    try:
        for block in CODE.findall(page("extending.md").split("## A method")[1]):
            exec(compile(block, "extending.md", "exec"), space)
        added = [set(r) - b for r, b in zip(REGISTRIES, before, strict=True)]
        assert added == [{"checkerboard"}, {"mean-update"}, {"half-and-half"}]
        assert "checkerboard + mean-update" in capsys.readouterr().out
        made, pipeline = space["made"], space["pipeline"]
        tokens = made.plan[-1].groups[0].tokens
        assert tokens.select == "checkerboard" and tokens.keep == made.plan[-1].scale.tokens // 2
        assert torch.isfinite(made.images).all() and made.images.shape[0] == 2
        again = pipeline.generate(labels=[1, 1], seed=[8, 8])
        assert [len(step.branches) for step in again.plan[-3:]] == [2, 1, 1]
        pipeline.enable([PlanStep(scale=space["last"], tokens=space["option"])])
        alone = pipeline.generate(labels=[1], seed=[8])
        torch.testing.assert_close(alone.images[0], made.images[1], atol=1e-4, rtol=0)
    finally:
        for registry, names in zip(REGISTRIES, before, strict=True):
            for name in set(registry) - names:  # leave them as they were
                del registry[name]  # type: ignore[attr-defined]


def test_options_names_everything_there_is() -> None:
    text = page("options.md")
    for registry in REGISTRIES:
        for name in registry:
            assert f"`{name}`" in text, name


def test_options_example_is_a_plan() -> None:
    (example,) = re.findall(r"^```yaml\n(.*?)^```", page("options.md"), re.MULTILINE | re.DOTALL)
    plan = PlanEntry.model_validate({"steps": tuple(read_yaml(example, "options.md"))})
    assert [step.scale for step in plan.steps] == [8, 9]
