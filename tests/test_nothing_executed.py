"""Nothing that a file says is imported or run: every key of every kind of file names a function.

pytest tests/test_nothing_executed.py
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import CODE, infinity_states, invoke, var_states, write_tiny
from mutations import EVIL
from safetensors.torch import save_file

from stagevar_probe.metrics.quality import BUILT_IN, named_by_file
from stagevar_runtime import load
from stagevar_runtime.errors import CalibrationError, StagevarError

SETTINGS = ("metric", "schedule", "guidance", "temperature", "top_p", "text_encoder", "features")


def everywhere(value: Any, said: str) -> list[Any]:
    """``value`` once for every leaf and every key in it, with ``said`` in that leaf's place."""
    if isinstance(value, dict):
        made = [{**value, key: new} for key in value for new in everywhere(value[key], said)]
        return [*made, *({**value, said: item} for item in list(value.values())[:1])]
    if isinstance(value, list) and value:
        return [[new, *value[1:]] for new in everywhere(value[0], said)]
    return [said]


def attempt(*arguments: object) -> None:
    """Run a command: it may do its work or refuse in our own words."""
    result = invoke(*arguments)
    known = (StagevarError, SystemExit)
    assert result.exception is None or isinstance(result.exception, known), result


def safetensors_with(folder: Path, metadata: dict[str, str]) -> Path:
    transformer, tokenizer = var_states()
    path = folder / "var_tiny.safetensors"
    save_file({n: t.contiguous() for n, t in transformer.items()}, path, metadata)
    torch.save(tokenizer, folder / "vae_tiny.pth")
    return path


@pytest.mark.parametrize("prefix", ["", "stagevar."])
def test_metadata_of_a_header(tmp_path: Path, owned: Path, prefix: str) -> None:
    path = safetensors_with(tmp_path, {prefix + name: EVIL for name in SETTINGS})
    attempt("calibrate", path, "--dry-run", "--count", 2, "--held-out", 2)
    attempt("inspect", path)
    attempt("generate", path, "--labels", "1", "-o", tmp_path / "a.png")
    assert not owned.exists() and "evil_module" not in sys.modules


def test_only_metrics_that_come_with_us_may_be_named_by_a_file(tmp_path: Path, owned: Path) -> None:
    path = safetensors_with(tmp_path, {"stagevar.metric": "ssim-to-exact"})
    assert load(path, profile=None).settings == {"metric": "ssim-to-exact"}
    assert invoke("calibrate", path, "--dry-run", "--count", 2, "--held-out", 2).exception is None
    for name in BUILT_IN:
        assert named_by_file(name, path) == name
    for name in (EVIL, "clip-score=repo/name", f"retrieval={tmp_path}", "clip-score=/etc"):
        with pytest.raises(CalibrationError, match="Pass --metric yourself"):
            named_by_file(name, path)


def test_a_score_called_metric_is_nobodys_business(tmp_path: Path, owned: Path) -> None:
    transformer, tokenizer = var_states()
    values = {name: EVIL for name in SETTINGS}
    torch.save({"state_dict": transformer, "metric": 71.25} | {"args": values}, "var_m.pth")
    torch.save(tokenizer, "vae_m.pth")
    assert load("var_m.pth", profile=None).settings == {}
    result = invoke("calibrate", "var_m.pth", "--dry-run", "--count", 2, "--held-out", 2)
    assert result.exception is None and not owned.exists()


def test_values_of_a_training_checkpoint_are_no_settings(tmp_path: Path) -> None:
    transformer, tokenizer = infinity_states()
    torch.save({"vae": tokenizer, "trainer": {}}, tmp_path / "infinity_vae_a.pth")
    own = {"schedule": "cosine", "temperature": 0.07, "guidance": "cfg", "top_p": "x"}
    torch.save({"model": transformer, **own}, tmp_path / "infinity_a.pth")
    sampling = load(tmp_path / "infinity_a.pth", profile=None).model.default_sampling
    assert (sampling.guidance, sampling.temperature, sampling.top_p) == (3.0, 0.5, 0.97)


def test_a_config_beside_the_weights(tmp_path: Path, owned: Path) -> None:
    names = (*SETTINGS, "auto_map", "architectures", "model_type", "_class_name")
    model = tmp_path / "model"
    model.mkdir()
    transformer, _ = var_states()
    torch.save(transformer, model / "pytorch_model.bin")
    (model / "config.json").write_text(json.dumps({n: EVIL for n in names}))
    shutil.move(write_tiny(tmp_path).with_name("vae_tiny.pth"), model / "vae_tiny.pth")
    attempt("inspect", model / "pytorch_model.bin")
    attempt("inspect", model)
    assert not owned.exists()


def test_every_key_of_profile_and_measurements(calibrated: Path, owned: Path) -> None:
    profile = calibrated.with_name("var_tiny.stagevar.yaml")
    told = yaml.safe_load(profile.read_text())
    # what any profile may hold; one leaf of every key
    variants = everywhere(told, EVIL)
    assert len(variants) > 40
    pipeline = load(calibrated, profile=None)
    for variant in variants:
        profile.write_text(json.dumps(variant))  # which is YAML too, and written faster
        with contextlib.suppress(StagevarError):
            pipeline.use_profile("auto")
    measured = calibrated.with_name("var_tiny.stagevar.measurements.json")
    content = json.loads(measured.read_text())
    job = everywhere(content["job"], EVIL)
    for i, variant in enumerate([{**content, "job": j} for j in job] + everywhere(content, EVIL)):
        measured.write_text(json.dumps(variant))
        invoke("inspect", measured)
        if i % 8 == 0:
            invoke("solve", measured, "--max-loss", "0.5")
    assert not owned.exists() and "evil_module" not in sys.modules


def test_prompts_and_partial_state(calibrated: Path, owned: Path) -> None:
    prompts = calibrated.with_name("p.jsonl")
    prompts.write_text(json.dumps({n: EVIL for n in ("prompt", "label", "metric", "encoder")}))
    attempt("calibrate", calibrated, "--prompts", prompts, "--dry-run", "--count", 2)
    partial = calibrated.with_name(".var_tiny.stagevar.yaml.partial")
    partial.mkdir()
    (partial / "job.json").write_text(json.dumps({"job": EVIL, "metric": EVIL}))
    (partial / "chunk-00000.json").write_text(json.dumps({EVIL: EVIL}))
    attempt("calibrate", calibrated, "--count", 2, "--held-out", 2, "-q")
    assert not owned.exists() and "evil_module" not in sys.modules


def test_the_command_line_may_name_a_function_in_the_current_folder(tmp_path: Path) -> None:
    """And only then is that folder searched: ``stagevar-probe`` begins elsewhere."""
    write_tiny(tmp_path)
    (tmp_path / "own.py").write_text(CODE.format(str(tmp_path / "RAN")))
    start = "import sys; sys.path.remove(''); from stagevar_probe.__main__ import main; main()"
    root = str(Path(__file__).resolve().parents[1])
    env = {**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    arguments = ("calibrate", "var_tiny.pth", "--dry-run", "--count", "2", "--held-out", "2")
    ran = subprocess.run(
        [sys.executable, "-c", start, *arguments, "--metric", "own:score"],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "RAN").exists()
