"""Checkpoints as people have them: wrappers' names, several state dicts, shards, other weights.

pytest tests/runtime/checkpoint/test_as_people_have_them.py
"""

from __future__ import annotations

import json
import logging
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import infinity_states, var_states, write_tiny
from safetensors.torch import save_file
from torch import Tensor

from stagevar_runtime import load
from stagevar_runtime.checkpoint.reader import open_checkpoint
from stagevar_runtime.errors import CheckpointError, StagevarError

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def state() -> State:
    return var_states()[0]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The tiny model as published: its picture and fingerprint."""
    pipeline = load(write_tiny(tmp_path_factory.mktemp("published")), profile=None)
    return pipeline.generate(labels=[1]).images, pipeline.fingerprint


def beside(tmp_path: Path, content: Any, name: str = "var_x.pth") -> Path:
    torch.save(var_states()[1], tmp_path / "vae_x.pth")
    torch.save(content, tmp_path / name)
    return tmp_path / name


WRAPPED: dict[str, Callable[[str], str]] = {
    "DataParallel": lambda k: "module." + k,
    "compile": lambda k: "_orig_mod." + k,
    "checkpointing": lambda k: k.replace(".attn.", "._checkpoint_wrapped_module.attn."),
    "FSDP": lambda k: "_fsdp_wrapped_module." + k,
    "FSDP inside": lambda k: k.replace("blocks.1.", "blocks.1._fsdp_wrapped_module."),
    "Lightning": lambda k: "model." + k,
    "peft": lambda k: "base_model.model." + k,
    "any": lambda k: "generator." + k,
    "any of two": lambda k: "my.net." + k,
    "nested": lambda k: "module._orig_mod.model._fsdp_wrapped_module." + k,
}


@pytest.mark.parametrize("wrapper", WRAPPED)
def test_wrappers(tmp_path: Path, state: State, expected: Any, wrapper: str) -> None:
    path = beside(tmp_path, {WRAPPED[wrapper](name): t for name, t in state.items()})
    pipeline = load(path, profile=None)
    assert torch.equal(pipeline.generate(labels=[1]).images, expected[0])
    assert pipeline.fingerprint == expected[1]


def test_one_model_has_one_fingerprint(tmp_path: Path, state: State, expected: Any) -> None:
    """Without aliased zeros, without buffers that are not read, as safetensors, in a wrapper."""
    bare = {n: t for n, t in state.items() if "zero_k" not in n or n.startswith("blocks.0.")}
    fewer = {n: t for n, t in state.items() if "zero_k" not in n and "masking" not in n}
    for i, content in enumerate((bare, fewer, {f"module.{n}": t for n, t in bare.items()})):
        (tmp_path / str(i)).mkdir()
        zeros = {n: torch.zeros_like(t) if "zero_k" in n else t for n, t in content.items()}
        pipeline = load(beside(tmp_path / str(i), zeros), profile=None)
        reference = {n: torch.zeros_like(t) if "zero_k" in n else t for n, t in state.items()}
        (tmp_path / f"{i}r").mkdir()
        assert pipeline.fingerprint == load(beside(tmp_path / f"{i}r", reference)).fingerprint
    save_file({n: t.contiguous() for n, t in state.items()}, tmp_path / "var_y.safetensors")
    torch.save(var_states()[1], tmp_path / "vae_y.pth")
    assert load(tmp_path / "var_y.safetensors", profile=None).fingerprint == expected[1]


def test_several_state_dicts(tmp_path: Path, state: State, expected: Any, caplog: Any) -> None:
    ema = {n: t * 1.5 if t.is_floating_point() else t for n, t in state.items()}
    for names in (("model", "ema"), ("raw_state_dict", "ema_state_dict"), ("net", "model_ema")):
        path = beside(tmp_path, dict(zip(names, (state, ema), strict=True)))
        with caplog.at_level(logging.INFO, "stagevar_runtime"):
            pipeline = load(path, profile=None)
        assert torch.equal(pipeline.generate(labels=[1]).images, expected[0])
        assert any(f"took {names[0]}" in note and names[1] in note for note in pipeline.notes)
        assert f"took {names[0]}" in caplog.text
        chosen = load(path, profile=None, select=names[1])
        assert not torch.equal(chosen.generate(labels=[1]).images, expected[0])
    with pytest.raises(CheckpointError, match=r"'net', 'model_ema', expected one of 'b'"):
        load(path, profile=None, select="b")


def test_an_average_of_parameters_takes_its_schedule(
    tmp_path: Path, state: State, expected: Any
) -> None:
    parameters = {n: t for n, t in state.items() if n != "lvl_1L" and "masking" not in n}
    path = beside(tmp_path, {"ema": parameters})
    with pytest.raises(CheckpointError, match="patch_nums"):
        load(path, profile=None)
    for given in ("1_2_3_4", [1, 2, 3, 4], "1,2,3,4"):
        pipeline = load(path, profile=None, options={"patch_nums": given})
        assert torch.equal(pipeline.generate(labels=[1]).images, expected[0])
        assert pipeline.fingerprint == expected[1]
    for wrong in ("1_2_3_5", "1_2", "a", [1.5], 7):
        with pytest.raises(StagevarError, match=r"patch_nums|sides"):
            load(path, profile=None, options={"patch_nums": wrong})


def test_integer_tensors_that_were_cast(tmp_path: Path, state: State, expected: Any) -> None:
    cast = {n: t.float() for n, t in state.items()}
    images = load(beside(tmp_path, cast), profile=None).generate(labels=[1]).images
    assert torch.equal(images, expected[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: {"module": {n: t[:0].flatten()[:0] for n, t in s.items()}}, "zero_to_fp32"),
        (lambda s: {n: t.to(torch.int8) if "fc1.w" in n else t for n, t in s.items()}, "int8"),
        (lambda s: s | {"blocks.0.ffn.fc1.weight.SCB": torch.ones(2)}, "bitsandbytes"),
        (lambda s: s | {"blocks.0.ffn.fc1.lora_A.weight": torch.ones(2)}, "LoRA"),
        (lambda s: s | {"lvl_1L": torch.tensor([[2**33]])}, "lvl_1L"),
        (lambda s: s | {"lvl_1L": torch.tensor([[0, 1, 1]])}, "no square"),
        (lambda s: s | {"blocks.20000.x": torch.ones(1)}, "numbered"),
        (lambda s: s | {"blocks.x.y": torch.ones(1)}, "numbered"),
        (lambda s: s | {"head.weight": torch.zeros(1).expand(2**20, 2**20)}, "more than was saved"),
        (lambda s: s | {"head.weight": torch.eye(4).to_sparse()}, "sparse"),
        (lambda s: s | {"head.weight": torch.empty(2, 2, device="meta")}, "meta"),
        (lambda s: s | {"head.weight": torch.ones(2, 2) * 1j}, "complex"),
        (lambda s: s | {"head.weight": torch.tensor(1.0)}, "var"),
        (lambda s: s | {"word_embed.weight": torch.ones(1, 1, 1)}, "var"),
        (lambda s: s | {"head.bias": torch.full((48,), torch.inf)}, "infinity"),
        (lambda s: s | {"head.bias": torch.full((48,), torch.nan)}, "NaN"),
    ],
)
def test_named_for_what_they_are(
    tmp_path: Path, state: State, change: Callable[[State], Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=f"var_x.*{message}"):
        load(beside(tmp_path, change(dict(state))), profile=None)


def test_weights_that_overflow_in_the_dtype_asked_for(tmp_path: Path, state: State) -> None:
    large = dict(state) | {"blocks.0.ffn.fc1.bias": state["blocks.0.ffn.fc1.bias"] + 1e5}
    with pytest.raises(CheckpointError, match=r"fc1\.bias overflows in float16.*bfloat16"):
        load(beside(tmp_path, large), profile=None, dtype="float16")
    path = beside(tmp_path, state)
    codes = {n: t.clone() for n, t in var_states()[1].items()}
    codes["decoder.conv_in.weight"].view(-1)[0] = 1e5
    torch.save({n: t.half() for n, t in codes.items()}, tmp_path / "vae_x.pth")
    with pytest.raises(CheckpointError, match=r"vae_x\.pth.*conv_in\.weight.*infinity"):
        load(path, profile=None)


def test_folders_of_training(tmp_path: Path, state: State) -> None:
    (tmp_path / ".metadata").touch()
    (tmp_path / "__0_0.distcp").touch()
    for path in (tmp_path, tmp_path / "__0_0.distcp"):
        with pytest.raises(CheckpointError, match="dcp_to_torch"):
            open_checkpoint(path)
    zero = tmp_path / "zero"
    zero.mkdir()
    (zero / "zero_pp_rank_0_mp_rank_00_optim_states.pt").touch()
    with pytest.raises(CheckpointError, match="zero_to_fp32"):
        open_checkpoint(zero)


def test_hidden_files_and_indexes(tmp_path: Path, state: State) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    name = "model.fp16-00001-of-00001.safetensors"
    save_file({n: t.contiguous() for n, t in state.items()}, folder / name)
    index = folder / "model.safetensors.index.fp16.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(state, name)}))
    (folder / ("._" + name)).write_bytes(b"\x00\x05\x16\x07" + b"x" * 60)
    (folder / "._vae_x.pth").write_bytes(b"\x00\x05\x16\x07")
    for path in (folder, index):
        assert open_checkpoint(path).tensors.keys() == state.keys()
    with pytest.raises(CheckpointError, match="macOS"):
        open_checkpoint(folder / ("._" + name))
    torch.save(var_states()[1], folder / "vae_x.pth")
    assert load(index, profile=None).generate(labels=[1]).images.shape[0] == 1


def test_a_file_that_changes_reaches_no_picture(tmp_path: Path, state: State) -> None:
    path = beside(tmp_path, state, "latest.pth")
    pipeline = load(path, profile=None)
    images = pipeline.generate(labels=[1]).images
    torch.save({n: t * 1.1 if "masking" not in n else t for n, t in state.items()}, path)
    assert torch.equal(pipeline.generate(labels=[1]).images, images)
    with pytest.raises(CheckpointError, match="was changed since it was loaded"):
        pipeline.fingerprint  # noqa: B018
    path.write_bytes(b"")
    assert torch.equal(pipeline.generate(labels=[1]).images, images)


def test_records_that_changed_or_are_compressed(tmp_path: Path, state: State) -> None:
    path = beside(tmp_path, state)
    data = bytearray(path.read_bytes())
    where = data.index(state["head.weight"].numpy().tobytes())
    data[where + 7] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="CRC"):
        load(path, profile=None)
    torch.save(state, path)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "b", "w", 8) as new:
        for record in old.infolist():
            new.writestr(record.filename, old.read(record))
    with pytest.raises(CheckpointError, match="compressed"):
        open_checkpoint(tmp_path / "b")


def test_absurd_headers_and_special_files(tmp_path: Path) -> None:
    entry = {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 2**62]}
    header = json.dumps({"a": entry}).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    os.mkfifo(tmp_path / "b.pth")
    (tmp_path / "loop.pth").symlink_to(tmp_path / "loop.pth")
    (tmp_path / "one.pth").write_bytes(b"\x80")
    names = ("a.safetensors", "b.pth", "loop.pth", "one.pth", "a\0b", "x" * 5000)
    for path in (*(tmp_path / name for name in names), Path("/dev/zero")):
        with pytest.raises(CheckpointError):
            open_checkpoint(path)
    model = tmp_path / "model"
    model.mkdir()
    torch.save({"a.b": torch.ones(1)}, model / "pytorch_model.bin")
    for config in ("NaN", '{"a": NaN}', "null", "[", "x" * 10):
        (model / "config.json").write_text(config)
        with pytest.raises(CheckpointError, match=r"config\.json"):
            open_checkpoint(model)
    (model / "config.json").unlink()
    os.mkfifo(model / "config.json")
    with pytest.raises(CheckpointError, match="no plain file"):
        open_checkpoint(model)
    cyclic: dict[str, Any] = {}
    cyclic["model"] = cyclic
    torch.save(cyclic, tmp_path / "cyclic.pth")
    with pytest.raises(CheckpointError, match="nested deeper"):
        open_checkpoint(tmp_path / "cyclic.pth")


@pytest.mark.parametrize(
    "given", ["float16", "fp32", "torch.bfloat16", torch.bfloat16, "half", "BF16"]
)
def test_dtypes(tmp_path: Path, given: Any) -> None:
    assert load(write_tiny(tmp_path), dtype=given, profile=None).model.dtype.is_floating_point


def test_dtypes_devices_and_profiles_that_are_none(tmp_path: Path) -> None:
    path = write_tiny(tmp_path)
    wrong: list[tuple[str, list[Any]]] = [
        ("dtype", [torch.int8, "int8", torch.float64, "x", 3, True, []]),
        ("device", ["mps", "meta", "gpu", "cuda:99", 1.5, True, [], "cpu:x", 7]),
        ("profile", [False, 3, [], b"x", {}]),
    ]
    for name, values in wrong:
        for value in values:
            with pytest.raises(StagevarError, match=name):
                load(path, **{name: value})


def test_sizes_of_infinity_are_no_other_architecture(tmp_path: Path) -> None:
    transformer, tokenizer = infinity_states()
    torch.save(transformer, tmp_path / "infinity_a.pth")
    torch.save({"vae": tokenizer}, tmp_path / "infinity_vae_a.pth")
    found = {
        load(tmp_path / "infinity_a.pth", profile=None, options=options).fingerprint
        for options in ({}, {"size": "0.06M"}, {"size": "0.06M", "aspect_ratio": "16:9"})
    }
    assert len(found) == 1
