"""A pipeline called as those of diffusers are.

pytest tests/runtime/test_diffusers_style.py
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import infinity_states, write_tiny
from PIL import Image
from tiny_files import RED, seeded, write_infinity
from torch import Tensor

from stagevar_runtime import Pipeline, StagevarError, load
from stagevar_runtime.profile import PlanStep
from stagevar_runtime.text import ClipEncoder, QwenEncoder, T5Encoder, TextEncoder

BLUE = "a blue ball"


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_infinity(tmp_path_factory.mktemp("infinity"))


@pytest.fixture
def pipe(path: Path) -> Pipeline:
    return load(path, profile=None)


def drawn(pipe: Pipeline, **how: Any) -> Tensor:
    how = {"prompt": RED, "generator": seeded(7), "output_type": "pt"} | how
    return pipe(**how).images


def alike(a: Tensor, b: Tensor) -> bool:
    """But for the rounding of another batch size; another seed differs far more."""
    return torch.allclose(a, b, atol=1e-4)


def test_a_prompt_gives_pictures(pipe: Pipeline, tmp_path: Path) -> None:
    out = pipe(RED, generator=seeded(7))
    assert isinstance(out.images[0], Image.Image) and out.images[0].size == (8, 8)
    out.images[0].save(tmp_path / "cube.png")
    assert out.made is not None and out.made.images.shape == (1, 3, 8, 8)


def test_kinds_of_output_agree(pipe: Pipeline) -> None:
    kinds = {k: pipe(RED, generator=seeded(7), output_type=k).images for k in ("pil", "pt", "np")}
    array = kinds["np"]
    assert array.shape == (1, 8, 8, 3) and array.dtype == np.float32
    assert torch.equal(torch.from_numpy(array).permute(0, 3, 1, 2), kinds["pt"])
    assert np.abs(np.asarray(kinds["pil"][0]) / 255 - array[0]).max() <= 0.5 / 255 + 1e-6


def test_generators_say_the_seeds(pipe: Pipeline) -> None:
    one = seeded(7)
    first, second = drawn(pipe, generator=one), drawn(pipe, generator=one)
    assert torch.equal(first, drawn(pipe)) and not torch.equal(first, second)
    listed = drawn(pipe, prompt=[RED, BLUE], generator=seeded(7, 8))
    assert alike(listed[:1], first)
    assert alike(listed[1:], drawn(pipe, prompt=BLUE, generator=seeded(8)))
    torch.manual_seed(5)
    free = drawn(pipe, generator=None)
    assert not torch.equal(free, drawn(pipe, generator=None))
    torch.manual_seed(5)
    assert torch.equal(free, drawn(pipe, generator=None))
    assert torch.equal(
        drawn(pipe, generator=None, seed=3), pipe.generate(prompts=[RED], seed=3).images
    )


def test_several_pictures_of_a_prompt(pipe: Pipeline) -> None:
    four = drawn(pipe, prompt=[RED, BLUE], num_images_per_prompt=2, generator=seeded(1, 2, 3, 4))
    assert alike(four[2:3], drawn(pipe, prompt=BLUE, generator=seeded(3)))
    assert alike(four[1:2], drawn(pipe, generator=seeded(2)))


def test_a_negative_prompt_is_the_null_branch(pipe: Pipeline) -> None:
    plain, led = drawn(pipe), drawn(pipe, negative_prompt="blurry")
    assert not torch.equal(plain, led)
    null = {f"null_{name}": t for name, t in pipe.read(["blurry"]).items()}
    seed = int(torch.randint(2**63 - 1, (1,), generator=seeded(7)))
    assert torch.equal(led, pipe.generate(prompts=[RED], seed=[seed], **null).images)
    both = {"prompt": [RED, BLUE], "negative_prompt": ["blurry", "a"], "generator": seeded(7, 8)}
    assert alike(drawn(pipe, **both)[:1], led)
    off = {"guidance_scale": 1.0}
    assert torch.equal(drawn(pipe, **off), drawn(pipe, negative_prompt="blurry", **off))


def test_a_family_with_its_own_null_branch_refuses(pipe: Pipeline) -> None:
    pipe.model.info = replace(pipe.model.info, optional_inputs=())  # as HART's
    with pytest.raises(StagevarError, match="null branch of its own"):
        drawn(pipe, negative_prompt="blurry")


def test_labels_are_drawn_too(tmp_path: Path) -> None:
    pipe = load(write_tiny(tmp_path), profile=None)
    out = pipe(labels=[1, 2], num_images_per_prompt=2, seed=[1, 2, 3, 4], output_type="pt")
    assert torch.equal(out.images, pipe.generate(labels=[1, 1, 2, 2], seed=[1, 2, 3, 4]).images)
    with pytest.raises(StagevarError, match="draws from labels"):
        pipe(RED)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"output_type": "jpeg"}, "expected pil, pt or np"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt"),
        ({"generator": seeded(1, 2)}, "2 generators, expected 1"),
        ({"seed": 1}, "generator and seed"),
        ({"prompt": None, "negative_prompt": "a"}, "expected a prompt"),
        ({"negative_prompt": ["a", "red", "ball"]}, "3 negative prompts"),
        ({"height": 64, "width": 64}, "height"),
    ],
)
def test_what_does_not_fit_is_said(pipe: Pipeline, wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(StagevarError, match=said):
        drawn(pipe, **wrong)


def test_a_callback_sees_every_scale_that_ran(pipe: Pipeline) -> None:
    pipe.enable([PlanStep(scale=2, run="skip")])
    seen = []

    def callback(p: Any, index: int, scale: Any, values: dict[str, Any]) -> None:
        assert p is pipe
        seen.append((index, scale.grid, values["canvas"].clone(), values["preview"]()))

    images = drawn(pipe, callback_on_step_end=callback)
    assert [index for index, *_ in seen] == [0, 1, 3]
    assert [grid for _, grid, *_ in seen] == [(1, 1), (2, 2), (4, 4)]
    assert torch.equal(seen[-1][3], images) and not torch.equal(seen[0][3], images)
    assert torch.equal(images, drawn(pipe))
    with pytest.raises(StagevarError, match="observer"):
        drawn(pipe, callback_on_step_end=callback, observer=object())


def test_a_callback_stops_the_generation(pipe: Pipeline) -> None:
    previews = []

    def stop(p: Any, index: int, scale: Any, values: dict[str, Any]) -> None:
        previews.append(values["preview"]())
        p._interrupt = index == 1

    out = pipe(RED, generator=seeded(7), output_type="pt", callback_on_step_end=stop)
    assert len(previews) == 2 and out.made is None
    assert torch.equal(out.images, previews[1])
    whole = pipe(RED, generator=seeded(7), output_type="pt")
    assert whole.made is not None and not torch.equal(whole.images, out.images)


def test_a_bar_moves_with_the_scales(
    pipe: Pipeline, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn(pipe)
    assert capsys.readouterr().err == ""
    pipe.set_progress_bar_config(disable=False)
    drawn(pipe)
    assert capsys.readouterr().err.endswith("scale 4/4 [" + "#" * 24 + "]\n")
    pipe.set_progress_bar_config(disable=None)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    drawn(pipe)
    assert "scale 1/4" in capsys.readouterr().err


def test_save_and_load_again(pipe: Pipeline, tmp_path: Path) -> None:
    saved = pipe.save_pretrained(tmp_path / "saved")
    assert saved.parent == tmp_path / "saved"
    for name in (tmp_path / "saved", saved):
        again = Pipeline.from_pretrained(name, torch_dtype=torch.float32)
        assert torch.equal(drawn(again), drawn(pipe))
        assert again.fingerprint == pipe.fingerprint
    with pytest.raises(StagevarError, match="not empty"):
        pipe.save_pretrained(tmp_path / "saved")


def test_a_profile_and_its_bases_are_saved_along(calibrated: Path, tmp_path: Path) -> None:
    pipe = load(calibrated)
    again = Pipeline.from_pretrained(pipe.save_pretrained(tmp_path / "saved").parent)
    assert again.profile == pipe.profile and again.plan_name == pipe.plan_name
    assert torch.equal(
        again(labels=[1], seed=3, output_type="pt").images,
        pipe(labels=[1], seed=3, output_type="pt").images,
    )


def test_options_and_a_tokenizer_of_any_name_are_saved(tmp_path: Path) -> None:
    transformer, tokenizer = infinity_states()
    torch.save(transformer, tmp_path / "m.pth")
    torch.save(tokenizer, tmp_path / "codes.pth")
    options = {"schedule": "1x1 2x2", "rope": 1}
    pipe = load(tmp_path / "m.pth", tmp_path / "codes.pth", profile=None, options=options)
    saved = pipe.save_pretrained(tmp_path / "saved").parent
    again = Pipeline.from_pretrained(saved, profile=None)
    assert (saved / "infinity_vae_tokenizer.pth").is_file()
    assert again.source.options == options
    assert again.fingerprint == pipe.fingerprint
    assert (
        len(Pipeline.from_pretrained(saved, profile=None, options={"rope": 2}).model.scales()) == 2
    )


def test_to_another_dtype_and_back(pipe: Pipeline) -> None:
    pipe.enable([PlanStep(scale=3, guidance="cond")])
    before = drawn(pipe)
    assert pipe.to(torch.bfloat16) is pipe and pipe.model.dtype == torch.bfloat16
    assert torch.bfloat16 in {t.dtype for t in pipe.model.transformer.parameters()}  # type: ignore[attr-defined]
    drawn(pipe)
    summary = pipe.summary()
    assert (summary.dtype, summary.plan) == ("bfloat16", "custom")
    assert torch.equal(drawn(pipe.to("cpu", torch.float32)), before)
    model = pipe.model
    assert pipe.to("cpu").model is model
    with pytest.raises(StagevarError, match="device 'nowhere'"):
        pipe.to("nowhere")


class Moving(torch.nn.Module):
    """Says where it was moved."""

    def __init__(self) -> None:
        super().__init__()
        self.moves: list[str] = []

    def to(self, device: Any) -> Moving:  # type: ignore[override]
        self.moves.append(str(device))
        return self


def test_the_text_encoder_stays_on_the_cpu_between_prompts(pipe: Pipeline) -> None:
    assert isinstance(pipe.encode, TextEncoder)
    moves: list[str] = []
    pipe.encode = TextEncoder(pipe.encode.encode, lambda device: moves.append(device.type))
    before = drawn(pipe)
    pipe.enable_model_cpu_offload()
    assert moves == ["cpu"]
    assert torch.equal(drawn(pipe), before) and len(moves) == 3
    pipe.encode = dict
    with pytest.raises(StagevarError, match="can be moved"):
        pipe.enable_model_cpu_offload()


@pytest.mark.parametrize("kind", ["t5", "clip", "qwen"])
def test_encoders_move_what_they_loaded(kind: str) -> None:
    moving = Moving()
    encoder: Any = {
        "t5": lambda: T5Encoder(device="cpu", load=lambda: (None, moving)),
        "clip": lambda: ClipEncoder(["x"], device="cpu", load=lambda source: (None, moving)),
        "qwen": lambda: QwenEncoder("", device="cpu", load=lambda: (None, moving)),
    }[kind]()
    encoder.to(torch.device("meta"))
    assert moving.moves == []  # nothing was loaded yet
    encoder._parts = [(None, moving)] if kind == "clip" else (None, moving)
    encoder.to(torch.device("cpu"))
    assert moving.moves == ["cpu"] and encoder.device.type == "cpu"
