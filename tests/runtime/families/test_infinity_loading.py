"""Files, options, sizes, bad input, memory.

pytest tests/runtime/families/test_infinity_loading.py
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import infinity_states, prompts, tiny_infinity, var_states
from safetensors.torch import save_file

from stagevar_runtime import load
from stagevar_runtime.errors import CheckpointError, StagevarError
from stagevar_runtime.families.infinity.blocks import InfinityConfig, Transformer
from stagevar_runtime.families.infinity.model import Infinity
from stagevar_runtime.families.infinity.options import InfinityOptions
from stagevar_runtime.families.infinity.schedules import COUNTS, SCHEDULES, full_extent
from stagevar_runtime.families.infinity.sizes import SIZES, preset, without_weights
from stagevar_runtime.loop import engine
from stagevar_runtime.loop.plan import plan_for

CPU = torch.device("cpu")


def write(folder: Path, transformer: dict, tokenizer: dict, name: str = "infinity_x.pth") -> Path:
    torch.save(transformer, folder / name)
    torch.save({"vae": tokenizer}, folder / "infinity_vae_d4.pth")
    return folder / name


def shards(folder: Path, tensors: dict[str, torch.Tensor]) -> Path:
    """The layout of ``infinity_8b_weights/``."""
    folder.mkdir()
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, own in parts.items():
        save_file({n: tensors[n].contiguous() for n in own}, str(folder / file))
    index = {"weight_map": {n: file for file, own in parts.items() for n in own}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def plain_blocks(tensors: dict[str, torch.Tensor], per_chunk: int = 2) -> dict[str, torch.Tensor]:
    out = {}
    for name, tensor in tensors.items():
        if name.startswith("block_chunks."):
            _, i, _, j, rest = name.split(".", 4)
            name = f"blocks.{int(i) * per_chunk + int(j)}.{rest}"
        out[name] = tensor
    return out


def logits(model: Infinity) -> torch.Tensor:
    scales = model.scales(size="0.06M")[:3]
    ids = [torch.ones(1, s.tokens, model.info.bits, dtype=torch.long) for s in scales]
    return engine.replay(
        model, model.condition(**prompts((4,))), ids, plan_for(model, scales=scales)
    ).logits[-1]


def test_every_published_layout_holds_the_same_model(tmp_path: Path) -> None:
    transformer, tokenizer = infinity_states()
    want = logits(tiny_infinity())
    flash = {  # trained with the publisher's own kernel
        n: t.transpose(1, 2) if n.endswith("scale_mul_1H11") else t for n, t in transformer.items()
    }
    training = {
        "epoch": 3,
        "trainer": {
            "gpt_fsdp": {f"module.{n}": t for n, t in transformer.items()},
            "gpt_ema_fsdp": {n: t + 1 for n, t in transformer.items()},
        },
    }
    for i, content in enumerate([transformer, plain_blocks(transformer), flash, training]):
        folder = tmp_path / str(i)
        folder.mkdir()
        model = load(write(folder, content, tokenizer), profile=None, device="cpu").model
        torch.testing.assert_close(logits(model), want, atol=1e-5, rtol=0)
        groups = [(0, 2), (2, 4)] if i != 1 else [(0, 1), (1, 2), (2, 3), (3, 4)]
        assert [(g.start, g.stop) for g in model.info.groups] == groups
    write(tmp_path, {}, {"x": torch.zeros(1)})
    torch.save({"vae": tokenizer, "ema": {}}, tmp_path / "infinity_vae_d4.pth")
    folder = shards(tmp_path / "infinity_x_weights", transformer)
    model = load(folder, profile=None, device="cpu").model  # the tokenizer lies beside the folder
    torch.testing.assert_close(logits(model), want, atol=1e-5, rtol=0)


def test_a_folder_of_512_weights_defaults_to_that_size(tmp_path: Path) -> None:
    transformer, tokenizer = infinity_states()
    write(tmp_path, {}, tokenizer)
    folder = shards(tmp_path / "infinity_8b_512x512_weights", transformer)
    assert len(load(folder, profile=None, device="cpu").model.scales()) == 10
    bigger = load(folder, profile=None, device="cpu", options={"size": "0.60M"}).model
    assert len(bigger.scales()) == 12


@pytest.mark.parametrize("name", list(SIZES))
def test_presets_are_read_off_shapes(name: str) -> None:
    model, tensors = without_weights(name)
    assert InfinityConfig.from_tensors(tensors) == preset(name)[0]
    parameters = sum(t.numel() for t in tensors.values()) / 1e9
    assert round(parameters, 2) == {"2b": 2.20, "8b": 8.38}.get(name, round(parameters, 2))
    depth, chunks, _, _ = SIZES[name]
    assert [len(group) for group in model.info.groups] == [depth // chunks] * chunks


def test_published_sizes() -> None:
    model = tiny_infinity()
    assert len(SCHEDULES) == 15 and all(len(s) == 13 for s in SCHEDULES.values())
    for ratio, schedule in SCHEDULES.items():
        for size, count in COUNTS.items():
            scales = model.scales(aspect_ratio=ratio, size=size)
            assert tuple((s.height, s.width) for s in scales) == schedule[:count]
            assert abs(scales[-1].height / scales[-1].width - ratio) < 0.01
            assert full_extent(schedule[:count]) == schedule[-1]
            assert (
                model.scales(height=16 * scales[-1].height, width=16 * scales[-1].width) == scales
            )
    totals = [sum(s.tokens for s in model.scales(size=size)) for size in COUNTS]
    assert totals == [521, 2521, 6425, 10521]
    assert model.scales() == model.scales(aspect_ratio=1.0, size="0.06M")
    assert tiny_infinity({"size": "1M", "aspect_ratio": 1.5}).scales()[-1].height == 78


@pytest.mark.parametrize(
    ("asked", "last"),
    [
        ({"aspect_ratio": 9 / 16, "size": "1M"}, (48, 84)),  # nearest published: 0.571
        ({"aspect_ratio": 1, "size": "0.25M"}, (32, 32)),
        ({"height": 1000, "width": 1000}, (64, 64)),
        ({"height": 300, "width": 250, "size": "0.06M"}, (20, 16)),
    ],
)
def test_nearest_size(asked: dict, last: tuple[int, int]) -> None:
    scale = tiny_infinity().scales(**asked)[-1]
    assert (scale.height, scale.width) == last


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"size": "2M"}, "size is '2M', expected one of 0.06M, 0.25M, 0.60M, 1M"),
        ({"aspect_ratio": 5.0}, "aspect_ratio is 5 .*0.333, 0.4"),
        ({"aspect_ratio": 0.0}, "aspect_ratio is 0.0, expected height over width"),
        ({"aspect_ratio": "square"}, "aspect_ratio is 'square', expected height over width"),
        ({"aspect_ratio": float("nan")}, "aspect_ratio is nan"),
        ({"height": 512}, "height 512, width None.*expected height and width"),
        ({"height": 512, "width": 512, "aspect_ratio": 1.0}, "or aspect_ratio"),
        ({"height": 640, "width": 640}, "640 x 640 pixels.*nearest is"),
        ({"height": 1080, "width": 1920}, "1080 x 1920.*nearest is 768 x 1344"),
        ({"height": 0, "width": 640}, "height in pixels is 0, expected"),
    ],
)
def test_unknown_sizes_are_named(asked: dict, message: str) -> None:
    with pytest.raises(StagevarError, match=message):
        tiny_infinity().scales(**asked)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": "3M"}, "size is '3M'"),
        ({"aspect_ratio": 9.0}, "aspect_ratio is 9"),
        ({"rope": 3}, "rope is 3, expected one of 0, 1, 2"),
        ({"level": "twice"}, "level is 'twice', expected 'once' or 'chunk'"),
        ({"guidance_layer": 2}, "guidance_layer is 2, expected 0 .logits. or -1 to -3"),
        ({"guidance_layer": -4}, "guidance_layer is -4"),
        ({"guidance_layer": []}, r"guidance_layer is \[\]"),
        ({"tau": 1}, r"no option \['tau'\], expected size, aspect_ratio, rope, level"),
    ],
)
def test_options_out_of_range_are_named(options: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(StagevarError, match=message):
        tiny_infinity(options)
    path = write(tmp_path, *infinity_states())
    with pytest.raises(StagevarError, match=message):
        load(path, profile=None, device="cpu", options=options)


def test_the_publishers_own_option_names_are_taken() -> None:
    published = {
        "pn": "0.25M",
        "h_div_w_template": 1.333,
        "rope2d_normalized_by_hw": 1,
        "add_lvl_embeding_only_first_block": 0,
        "cfg_insertion_layer": [-2, 0],
    }
    ours = InfinityOptions("0.25M", 1.333, 1, "chunk", (-2, 0))
    assert InfinityOptions.parse(published, 4, "1M") == ours
    assert InfinityOptions.parse({"add_lvl_embeding_only_first_block": 1}, 4, "1M").level == "once"
    with pytest.raises(StagevarError, match="'rope' under two names"):
        InfinityOptions.parse({"rope": 2, "rope2d_normalized_by_hw": 2}, 4, "1M")


def test_options_that_change_results_change_the_fingerprint(tmp_path: Path) -> None:
    path = write(tmp_path, *infinity_states())

    def hashed(**options: object) -> str:
        made = load(path, profile=None, device="cpu", options={"size": "0.06M"} | options)
        return made.fingerprint.architecture

    assert len({hashed(), hashed(rope=0), hashed(level="chunk"), hashed(guidance_layer=-1)}) == 4
    assert hashed(size="0.25M") == hashed(aspect_ratio="16:9") == hashed()  # no other architecture
    assert hashed(schedule="1x1 2x2 3x3") != hashed()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": torch.zeros(2, 3, 25)}, "features of width 25, expected 24"),
        ({"text": torch.zeros(2, 24)}, r"text is torch.float32 of shape \(2, 24\), expected"),
        ({"text": torch.zeros(2, 3, 24, dtype=torch.long)}, "text is torch.int64"),
        ({"text": torch.zeros(0, 3, 24), "mask": torch.ones(0, 3)}, r"shape \(0, 3, 24\)"),
        ({"mask": torch.ones(2, 4)}, r"mask has shape \(2, 4\), expected \(2, 3\) as text"),
        ({"mask": torch.tensor([[1, 1, 0], [0, 0, 0]])}, "mask row 1 is empty"),
        (
            {"text": torch.zeros(1, 13, 24), "mask": torch.ones(1, 13)},
            "prompt 0 of text has 13 tokens, expected at most 12",
        ),
        ({"null_text": torch.zeros(1, 3, 24)}, "null_text alone, expected null_text and null_mask"),
        (
            {"null_text": torch.zeros(3, 3, 24), "null_mask": torch.ones(3, 3)},
            "null_text has 3 prompts, expected 1 or 2",
        ),
        (
            {"null_text": torch.zeros(1, 3, 20), "null_mask": torch.ones(1, 3)},
            "null_text has features of width 20",
        ),
    ],
)
def test_bad_text_is_named(change: dict, message: str) -> None:
    good = {"text": torch.zeros(2, 3, 24), "mask": torch.ones(2, 3)}
    with pytest.raises(StagevarError, match=message):
        tiny_infinity().condition(**(good | change))


def test_padding_beyond_the_text_length_is_no_prompt() -> None:
    text, mask = torch.zeros(1, 512, 24), torch.arange(512)[None] < 5
    assert tiny_infinity().condition(text=text, mask=mask).cond["text"].shape == (1, 5, 24)


def test_wrong_files_are_named(tmp_path: Path) -> None:
    transformer, tokenizer = infinity_states()
    with pytest.raises(CheckpointError, match=r"8 bits a cell.*expects 4 .or 1 in patches"):
        Infinity.from_tensors(transformer, infinity_states(bits=8)[1], CPU, torch.float32)
    with pytest.raises(CheckpointError, match="VQVAE with a codebook"):
        Infinity.from_tensors(transformer, var_states()[1], CPU, torch.float32)
    for gone in ("block_chunks.1.module.0.ca.proj.bias", "head.weight", "lvl_embed.weight"):
        broken = {n: t for n, t in transformer.items() if n != gone}
        with pytest.raises(CheckpointError, match=gone):
            Infinity.from_tensors(broken, tokenizer, CPU, torch.float32)
    with pytest.raises(CheckpointError, match="head has 6 outputs, expected 8"):
        Infinity.from_tensors(
            transformer | {"head.weight": torch.zeros(6, 32)}, tokenizer, CPU, torch.float32
        )
    write(tmp_path, {}, tokenizer)
    folder = shards(tmp_path / "infinity_x_weights", transformer)
    (folder / "b.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"b.safetensors: shard is missing"):
        load(folder, profile=None, device="cpu")


def test_ids_of_the_wrong_width_are_named() -> None:
    model = tiny_infinity()
    ids = [torch.zeros(1, s.tokens, 5, dtype=torch.long) for s in model.scales()]
    with pytest.raises(StagevarError, match=r"\(1, 1, 5\), expected \(1, 1, 4\)"):
        engine.replay(model, model.condition(**prompts((2,))), ids)


MEASURE = """
import sys, torch
import stagevar_runtime
import stagevar_runtime.families
def peak():
    for line in open("/proc/self/status"):
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
stagevar_runtime.load(sys.argv[1], profile=None, device="cpu")  # what any load needs once
before = peak()
stagevar_runtime.load(sys.argv[2], profile=None, device="cpu")
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("layout", ["file", "shards"])
def test_loading_never_holds_two_copies(layout: str, tmp_path: Path) -> None:
    """Peak memory above that of loading a tiny model is at most 1.2 times the file."""
    transformer, tokenizer = infinity_states()
    tiny = write(tmp_path, transformer, tokenizer)
    config = InfinityConfig(
        *(4, (2, 2), 1024, 8, 4096, 4, 256, 12, 2, 15, True, False),
    )
    with torch.device("meta"):
        shapes = Transformer(config).state_dict()
    large = {name: torch.ones(t.shape) for name, t in shapes.items()}
    if layout == "shards":
        path = shards(tmp_path / "weights", large)
    else:
        path = write(tmp_path, large, tokenizer, "infinity_large.pth")
    size = sum(t.nbytes for t in large.values())
    del large
    assert size > 200e6
    command = [sys.executable, "-c", MEASURE, str(tiny), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) <= 1.2 * size, f"{int(done.stdout) / size:.2f} times the file"
