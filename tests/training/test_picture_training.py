"""The run that fits its time, at its least size: pytest tests/training/test_picture_training.py"""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from shard_fixtures import write_shard
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from stagevar_probe.datasets.scenes.render import SIDE, paint, training_scene
from stagevar_probe.datasets.scenes.render import lay_out as laid_out
from stagevar_runtime.loading import load
from training import carry, join
from training.data import DataError
from training.data.layouts import draw_layouts
from training.data.shard import read_shard
from training.gpu import compiled, outputs, run
from training.gpu.__main__ import main
from training.gpu.cache import Features
from training.gpu.clock import Clock
from training.gpu.estimate import forward_operations, table
from training.gpu.fit import Batch, Store, Training, batch_losses, build_model
from training.gpu.paint import Painter, moved
from training.gpu.pictures import read_emoji
from training.gpu.precision import Precision
from training.gpu.sample import sample, sheet, stacked
from training.gpu.settings import BITS, SIZES
from training.scenes.transformer import run_block
from training.state import Interrupted

LEAST = SIZES["least"]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shard(tmp_path_factory.mktemp("shard") / "pictures.zip")


def command(shard: Path, out: Path, *more: str) -> list[str]:
    """A run of few seconds."""
    options = ["--minutes", "0.1", "--size", "least", "--device", "cpu"]
    return ["--shard", str(shard), "--out", str(out), *options, *more]


@pytest.fixture(scope="module")
def trained(shard: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run leaves."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.gpu.__main__.STARTED", Clock(1).start)
        out = tmp_path_factory.mktemp("run") / "out"
        assert main(command(shard, out)) == 0
    return out


def test_a_run_leaves_few_files_that_say_what_happened(trained: Path) -> None:
    kinds = sorted(path.name.split(".")[0] for path in trained.iterdir())
    assert kinds in (["progress", "result", "state"], ["progress", "result", "sheets", "state"])
    record = json.loads((trained / "progress.json").read_text())
    assert record["stage"] == "transformer" and record["progress"] >= 0
    steps = [r for r in record["logs"]["transformer"] if "loss" in r]
    assert all(len(r["by_scale"]) == r["scales"] for r in steps)
    assert any("measured" in r for r in record["logs"]["transformer"])
    assert "parameters" in record["table"][1] and record["logs"]["tokenizer"]


def test_the_next_run_goes_on_and_what_it_leaves_draws(
    trained: Path, shard: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.setattr("training.gpu.__main__.STARTED", Clock(1).start)
    before = outputs.read_payload(trained, "state")
    out = tmp_path / "out"
    assert main(command(shard, out, "--resume", str(trained))) == 0
    said = capsys.readouterr().out
    assert f"goes on from step {before['step']}" in said
    after = outputs.read_payload(out, "state")
    assert after["step"] > before["step"] and after["spent"] > before["spent"]
    tokens = before["tokenizer"]["decoder.conv_in.weight"]
    assert torch.equal(after["tokenizer"]["decoder.conv_in.weight"], tokens)
    assert join.main([str(out), "--output", str(tmp_path / "made")]) == 0
    pipeline = load(tmp_path / "made/pictures.safetensors", device="cpu", profile=None)
    assert [s.height for s in pipeline.model.scales()] == list(LEAST.sides)
    images = pipeline.generate(prompts=["a red circle", "red apple, noto style"], seed=0).images
    assert images.shape == (2, 3, 64, 64) and images.isfinite().all()
    assert json.loads((tmp_path / "made/pictures.training.json").read_text())["logs"]


def test_another_size_does_not_go_on(trained: Path, shard: Path, tmp_path: Path, capsys) -> None:
    asked = command(shard, tmp_path / "o", "--resume", str(trained), "--size", "tiny")
    assert main(asked) == 1
    assert "a run of size least" in capsys.readouterr().err
    assert main(command(shard, tmp_path / "o", "--resume")) == 1
    assert "no state of a run" in capsys.readouterr().err
    assert main(command(tmp_path / "none.zip", tmp_path / "o")) == 1
    assert "python -m training.data.shard" in capsys.readouterr().err


def test_what_hangs_is_ended(shard: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("training.gpu.__main__.STARTED", Clock(1).start - 100)  # long over
    ended = threading.Event()
    monkeypatch.setattr(run.Run, "perform", lambda self: ended.wait(10))
    assert main(command(shard, tmp_path / "o"), late=ended.set) == 0 and ended.is_set()


def test_asked_to_stop_it_saves(shard: Path, tmp_path: Path) -> None:
    asked = run.Asked(1, shard, tmp_path / "o", "cpu", "least", None, False, tmp_path / "w")
    with pytest.raises(Interrupted):
        run.Run(asked, Clock(1), stop=lambda: True).perform()
    state = outputs.read_payload(tmp_path / "o", "state")
    assert state["tokenizer_progress"] < 1 and "model" not in state


def test_a_run_that_is_killed_while_it_saves_leaves_the_checkpoint_before(
    tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(outputs, "PART", 1000)
    made = outputs.Outputs(tmp_path)
    made.save({"state": {"a": torch.arange(999)}}, {"n": 1})
    made.save({"state": {"a": torch.arange(500)}}, {"n": 2})
    assert len(list(tmp_path.glob("state.*"))) == 5 + 1  # of 1,000 bytes, the old ones gone

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(outputs, "save_json", die)
    with pytest.raises(KeyboardInterrupt):
        made.save({"state": {"a": torch.zeros(700)}}, {"n": 3})
    assert torch.equal(outputs.read_payload(tmp_path, "state")["a"], torch.arange(500))
    monkeypatch.undo()
    part = tmp_path / outputs.Outputs(tmp_path).record["parts"]["state"]["files"][0]
    part.write_bytes(b"x" + part.read_bytes()[1:])
    with pytest.raises(DataError, match="are not those that"):
        outputs.read_payload(tmp_path, "state")


def test_scenes_are_painted_as_they_are_rendered() -> None:
    import random

    rng, pixels = random.Random(1000), 128
    layouts, painter = draw_layouts(12), Painter(draw_layouts(12), pixels, "cpu")
    made = painter(torch.arange(12)).permute(0, 2, 3, 1)
    for i in range(12):
        _, decided = training_scene(rng)
        picture = torch.from_numpy(paint(laid_out(decided, rng), SIDE)).float()
        off = (made[i] - picture).abs()
        assert off.mean() < 4.0 and (off.amax(-1) > 60).float().mean() < 0.02, i
        assert layouts.captions[layouts.caption[i]].startswith(
            ("a ", "an ", "two", "three", "four")
        )
    assert not torch.equal(painter(torch.arange(1)), painter(torch.arange(1)))  # fresh grain


def test_emoji_are_decoded_in_order_with_what_they_show(shard: Path) -> None:
    pixels, index = read_emoji(read_shard(shard), 32)
    assert pixels.shape == (8, 3, 32, 32) and "held_out_pair" not in {p.split for p in index}
    for picture, of in zip(pixels, index, strict=True):
        red, green, blue = picture[:, 16, 16].tolist()
        wanted = {"red apple": red, "green apple": green, "blue hat": blue}[of.label]
        assert wanted > 150 and sum((red, green, blue)) < 330, of
    assert len(read_emoji(read_shard(shard), 32, lambda: True)[0]) == 8  # one chunk at least
    moves = moved(torch.full((4, 3, 32, 32), 240.0))
    assert torch.allclose(moves, torch.full_like(moves, 240.0))


def store(count: int = 12) -> Store:
    """Noise to train on."""
    torch.manual_seed(0)
    kind = Features(torch.randn(count, BITS, 8, 8).half(), torch.arange(count) % 4)
    return Store(kind, kind, torch.arange(4)[:, None], torch.ones(4, 1, dtype=torch.bool))


def training(log: list[dict[str, object]]) -> Training:
    """A model of the least size about to be trained on noise."""
    model, vae = build_model(LEAST, list("abcd"), "cpu")
    return Training(LEAST, model, vae, store(), "cpu", Precision("cpu"), log.append)


def test_memory_that_is_full_halves_the_batch_and_drops_what_was_compiled() -> None:
    log: list[dict[str, object]] = []
    made, prefix = training(log), LEAST.prefixes[-1]
    made.batches[prefix.scales] = 4
    made.model.run_block = lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("full"))
    assert made.timed(prefix, Clock(1))[0] > 0
    assert made.batches[prefix.scales] == 2 and made.model.run_block is run_block
    made.model.run_block = lambda *_: (_ for _ in ()).throw(ValueError("a compiler's fault"))
    made.timed(prefix, Clock(1))
    assert made.batches[prefix.scales] == 2 and log[-1]["compiled"] is False
    with pytest.raises(ZeroDivisionError):  # nothing that was compiled is to blame
        made.update = lambda prefix: 1 / 0  # type: ignore[assignment, method-assign]
        made.timed(prefix, Clock(1))


@pytest.mark.parametrize("says", [None, False, True])
def test_blocks_are_compiled_once_a_child_has_proved_them(
    shard: Path, tmp_path: Path, monkeypatch, says: bool | None
) -> None:
    monkeypatch.setattr(
        compiled.sys,
        "executable",
        "/bin/echo" if says is None else f"{tmp_path}/child",
    )
    (tmp_path / "child").write_text(
        f'#!/bin/sh\necho \'{{"compiled": {str(says).lower()}, "why": ""}}\' > $5\n'
    )
    (tmp_path / "child").chmod(0o755)
    monkeypatch.setattr(run, "compile_block", lambda model: setattr(model, "run_block", "fast"))
    monkeypatch.setenv(compiled.CACHE, "elsewhere")
    asked = run.Asked(1, shard, tmp_path / "o", "cpu", "least", None, True, tmp_path)
    made, log = run.Run(asked, Clock(1), stop=lambda: False), []
    made.compiler = compiled.Compiler(LEAST, "cpu", tmp_path)
    made.compiler.child.wait(10)
    trained = training(log)
    trained.batches = {prefix.scales: prefix.batch for prefix in LEAST.prefixes}
    made.switch(trained)
    assert (trained.model.run_block == "fast") == (says is True)
    found = made.logs["transformer"][-1]
    assert found["compiled"] is (says is True)
    if says is None:
        assert "the child ended with 0: -m training.gpu.compiled least cpu" in found["why"]
    made.switch(trained)
    assert len(made.logs["transformer"]) == 1  # said once


def test_what_is_no_number_goes_back_to_what_was_right() -> None:
    log: list[dict[str, object]] = []
    made, prefix = training(log), LEAST.prefixes[0]
    made.keep()
    with torch.no_grad():
        made.model.transformer.head.weight.fill_(torch.nan)
    made.keep()  # not this
    losses, norm = made.update(prefix)
    made.tell(prefix, losses, norm, 1.0)
    assert made.slower == 0.5 and "back" in str(log[-1]["why"])
    for model in (made.model, made.average):
        assert all(bool(p.isfinite().all()) for p in model.parameters())
    assert made.update(prefix)[0].isfinite().all()


def test_batches_grow_to_what_the_time_allows() -> None:
    log: list[dict[str, object]] = []
    made = training(log)
    made.timed = lambda prefix, clock: (  # type: ignore[assignment, method-assign]
        0.01 * made.batches[prefix.scales], torch.zeros(1), torch.zeros(1))  # fmt: skip
    clock = Clock(10)
    made.measure(clock, clock.now + 60.0)  # 0.1 s a step is what 600 steps allow
    assert made.batches == {3: 8, 4: 4}
    made.batches = {3: 1, 4: 1}
    made.measure(clock, clock.now + 18.0)
    assert made.batches == {3: 2, 4: 2}
    assert log[-1]["steps_expected"] == 900


def test_pictures_drawn_in_training_are_those_of_the_runtime(
    trained: Path, tmp_path: Path, monkeypatch
) -> None:
    assert join.main([str(trained), "--output", str(tmp_path)]) == 0
    result = outputs.read_payload(trained, "result")
    model, vae = build_model(LEAST, result["vocabulary"], "cpu")
    model.load_state_dict(result["model"])
    vae.load_state_dict(result["tokenizer"])
    monkeypatch.setattr("training.products.rounded", lambda: torch.float32)
    monkeypatch.setattr(torch, "rand_like", lambda x: torch.full_like(x, 0.5))  # the likelier bit
    prompts = ["a red circle", "green apple, 3d style"]
    ours = sample(model.eval(), vae, prompts, guidance=2.5)
    pipeline = load(tmp_path / "pictures.safetensors", device="cpu", profile=None)
    theirs = pipeline.generate(prompts=prompts, seed=0, guidance=2.5, top_k=1).images
    assert (ours - theirs).abs().max() < 1e-3
    page = sheet(ours, prompts, "two")
    assert page.width == 6 * 64 and stacked([page, page]).height == 2 * page.height


def test_operations_are_those_that_are_counted(monkeypatch) -> None:
    monkeypatch.setattr("training.products.backend", lambda device, dtype: "torch")
    size = SIZES["tiny"]
    model, vae = build_model(size, ["a"], "cpu")
    batch = Batch.random(size, 1, "cpu")
    with FlopCounterMode(display=False) as counted, sdpa_kernel(SDPBackend.MATH):
        batch_losses(model, vae, batch, size.prefixes[-1], whole=True)
    estimated = forward_operations(size, [side * side for side in size.sides])
    assert counted.get_total_flops() == pytest.approx(estimated, rel=0.05)
    lines = table(size, 1000, 500)
    assert lines[0].startswith("size tiny: 64 pixels, scales 1 2 4 8 16, 341 tokens")
    assert len(lines) == 5 + 3 and " 512 " not in lines[-1]


def test_the_full_size_is_what_was_asked_for() -> None:
    full = SIZES["full"]
    model, vae = build_model(full, [str(i) for i in range(1470)], "cpu")  # words of the shard
    own = sum(p.numel() for p in model.transformer.parameters())
    assert 10e6 <= own <= 16e6 and full.pixels == 256 and full.sides[-1] == 32
    assert len(full.sides) in (12, 13) and 2400 <= full.tokens() <= 2800
    assert full.tokens() - full.tokens(len(full.sides) - 3) >= 0.75 * full.tokens()
    half = 2 * sum(p.numel() for p in (*model.parameters(), *vae.parameters()))
    assert half <= 32e6 and 2 * sum(p.numel() for p in vae.parameters()) <= 4e6
    for size in SIZES.values():
        assert size.pixels == size.tokenizer().downsample * size.sides[-1]
        assert sum(prefix.share for prefix in size.prefixes) == pytest.approx(1)


def test_it_is_trained_where_pydantic_is_not(shard: Path, tmp_path: Path) -> None:
    folder = tmp_path / "carried"
    assert carry.main(["--shard", str(shard), "--out", str(folder)]) == 0
    assert sorted(p.name for p in folder.iterdir()) == [
        *("pictures.zip", "run.sh", "stagevar_probe", "stagevar_runtime", "training")
    ]
    assert carry.main(["--shard", str(shard), "--out", str(folder)]) == 1  # there already
    (folder / "training/gpu/clock.py").write_text("import pydantic\n")
    with pytest.raises(DataError, match=r"does not run by itself: .*pydantic"):
        carry.prove(folder)


def test_what_is_too_large_to_carry_or_cannot_go_on_is_refused(
    shard: Path, trained: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(carry, "prove", lambda folder: None)
    carry.carry(shard, tmp_path / "a", trained)
    assert "--resume earlier" in (tmp_path / "a/run.sh").read_text()
    assert outputs.read_payload(tmp_path / "a/earlier", "state")["size"] == "least"
    with pytest.raises(DataError, match="no state"):
        carry.carry(shard, tmp_path / "b", tmp_path)
    monkeypatch.setattr(carry, "LARGEST", 1000)
    with pytest.raises(DataError, match="more than 1000"):
        carry.carry(shard, tmp_path / "c")
