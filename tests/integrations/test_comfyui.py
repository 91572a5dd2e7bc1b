"""The ComfyUI nodes: called as ComfyUI calls them, and in a real ComfyUI where one is at hand.

pytest tests/integrations/test_comfyui.py
COMFYUI=/path/to/ComfyUI COMFYUI_PYTHON=/path/to/its/python pytest -m slow tests/integrations
"""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from conftest import write_tiny
from tiny_files import RED, write_infinity

from stagevar_runtime import StagevarError, load

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "integrations/comfyui"
SCENES = ROOT / "checkpoints/scenes/scenes.safetensors"


@pytest.fixture(scope="module")
def nodes() -> ModuleType:
    """The folder, imported as ComfyUI imports what lies in custom_nodes."""
    spec = importlib.util.spec_from_file_location(
        "comfyui_stagevar", FOLDER / "__init__.py", submodule_search_locations=[str(FOLDER)]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def call(nodes: ModuleType) -> Callable[..., Any]:
    def run(kind: str, **inputs: Any) -> Any:
        made = nodes.NODE_CLASS_MAPPINGS[kind]()
        known = {name for group in made.INPUT_TYPES().values() for name in group}
        assert inputs.keys() <= known
        return getattr(made, made.FUNCTION)(**inputs)

    return run


def test_a_prompt_becomes_an_image_and_a_summary(call, tmp_path: Path) -> None:
    path = write_infinity(tmp_path)
    (pipe,) = call("StageVARLoad", checkpoint=str(path), profile="none", plan="skip-1")
    how = {"prompt": RED, "negative": "blurry", "seed": 7, "batch": 2, "guidance": 2.0}
    images, summary = call("StageVARGenerate", pipeline=pipe, **how)
    assert images.shape == (2, 8, 8, 3) and images.dtype == torch.float32
    null = {f"null_{name}": t for name, t in pipe.read(["blurry"]).items()}
    plain = load(path, profile=None).enable("skip-1")
    wanted = plain.generate(prompts=[RED] * 2, seed=[7, 8], guidance=2.0, **null).images
    assert torch.equal(images, wanted.permute(0, 2, 3, 1))
    assert "plan skip-1" in summary and "last call: 2 images" in summary
    shown = call("StageVARSummary", summary=summary)
    assert shown["ui"]["text"] == [summary] and shown["result"] == (summary,)


def test_a_model_of_classes_takes_numbers(call, tmp_path: Path) -> None:
    (pipe,) = call("StageVARLoad", checkpoint=str(write_tiny(tmp_path)), plan="exact")
    images, _ = call("StageVARGenerate", pipeline=pipe, prompt="1, 2", seed=3, batch=2)
    wanted = pipe.generate(labels=[1, 1, 2, 2], seed=[3, 4, 5, 6]).images
    assert torch.equal(images, wanted.permute(0, 2, 3, 1))
    with pytest.raises(StagevarError, match="expected numbers"):
        call("StageVARGenerate", pipeline=pipe, prompt="a cube")
    with pytest.raises(StagevarError, match="no checkpoint"):
        call("StageVARLoad", checkpoint=" ")


def test_the_workflows_fit_the_nodes(nodes: ModuleType) -> None:
    api = json.loads((FOLDER / "workflow_api.json").read_text(encoding="utf-8"))
    page = json.loads((FOLDER / "workflow.json").read_text(encoding="utf-8"))
    drawn = {str(node["id"]): node for node in page["nodes"]}
    assert {k: node["type"] for k, node in drawn.items()} == {
        k: node["class_type"] for k, node in api.items()
    }
    for key, node in api.items():
        kind = nodes.NODE_CLASS_MAPPINGS.get(node["class_type"])
        if kind is not None:
            types = kind.INPUT_TYPES()
            assert node["inputs"].keys() == {n for group in types.values() for n in group}, key
    for number, source, slot, target, at, kind in page["links"]:
        output = drawn[str(source)]["outputs"][slot]
        assert number in output["links"] and output["type"] == kind
        assert drawn[str(target)]["inputs"][at]["link"] == number
        name = drawn[str(target)]["inputs"][at]["name"]
        assert api[str(target)]["inputs"][name] == [str(source), slot]


@pytest.fixture(scope="module")
def comfy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real ComfyUI on a CPU, with the nodes in it and folders of its own."""
    home = os.environ.get("COMFYUI")
    if not home:
        pytest.skip("needs a ComfyUI: set COMFYUI to its folder, COMFYUI_PYTHON to its python")
    base = tmp_path_factory.mktemp("comfy")
    (base / "custom_nodes").mkdir()
    (base / "custom_nodes/stagevar").symlink_to(FOLDER)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    command = [python, str(Path(home) / "main.py"), "--cpu", "--listen", "127.0.0.1"]
    command += ["--port", str(port), "--base-directory", str(base), "--disable-auto-launch"]
    clean = os.environ | {"PYTHONPATH": str(ROOT)}
    with (base / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=home, env=clean, stdout=log, stderr=log)
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
        process.terminate()
        process.wait(20)


def ask(address: str, data: Any = None) -> bytes:
    body = None if data is None else json.dumps(data).encode()
    request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return bytes(answer.read())


@pytest.mark.slow
def test_a_real_comfyui_draws(comfy: str, tmp_path: Path) -> None:
    workflow = json.loads((FOLDER / "workflow_api.json").read_text(encoding="utf-8"))
    workflow["1"]["inputs"] |= {"checkpoint": str(SCENES), "profile": "none", "plan": "skip-1"}
    workflow["2"]["inputs"] |= {"seed": 7, "batch": 2, "guidance": 2.0}
    number = json.loads(ask(f"{comfy}/prompt", {"prompt": workflow}))["prompt_id"]
    done: dict[str, Any] = {}
    deadline = time.monotonic() + 60
    while not done and time.monotonic() < deadline:
        time.sleep(0.2)
        done = json.loads(ask(f"{comfy}/history/{number}")).get(number, {})
    assert done["status"]["status_str"] == "success", done["status"]
    assert "plan skip-1" in done["outputs"]["4"]["text"][0]
    images = done["outputs"]["3"]["images"]
    assert len(images) == 2
    from PIL import Image

    first = images[0]
    address = f"{comfy}/view?filename={first['filename']}&type=output"
    (tmp_path / "got.png").write_bytes(ask(f"{address}&subfolder={first['subfolder']}"))
    pipe = load(SCENES, profile=None).enable("skip-1")
    wanted = pipe("a red circle", seed=[7, 8], num_images_per_prompt=2, guidance_scale=2.0)
    got = torch.tensor(list(Image.open(tmp_path / "got.png").convert("RGB").tobytes()))
    near = torch.tensor(list(wanted.images[0].tobytes()))
    assert (got - near).abs().max() <= 2  # of 255: it cuts where we round
