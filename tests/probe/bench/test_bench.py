"""The published loop, and what `bench` writes. No timing.

pytest tests/probe/bench/test_bench.py
"""

import json
from functools import partial, partialmethod
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from conftest import infinity_states, prompts, tiny_infinity, var_states
from tape import TapeRecorder

from stagevar_probe.bench import document as bench_report
from stagevar_probe.bench import machine as ceiling
from stagevar_probe.bench import random_models
from stagevar_probe.bench import timing as bench
from stagevar_probe.bench.published.infinity import PublishedInfinity
from stagevar_probe.bench.published.var import PublishedVAR
from stagevar_probe.cli import cli
from stagevar_probe.commands import bench as bench_command
from stagevar_probe.measure.flops import plan_flops, scale_flops
from stagevar_runtime import Sampling, StagevarError
from stagevar_runtime.accelerate.modes import accelerate
from stagevar_runtime.families.infinity.blocks import InfinityConfig
from stagevar_runtime.families.infinity.blocks import Transformer as InfinityTransformer
from stagevar_runtime.families.infinity.model import Infinity
from stagevar_runtime.families.tokenizers.config import VQVAEConfig
from stagevar_runtime.families.var import VAR, VARConfig
from stagevar_runtime.families.var import Transformer as VARTransformer
from stagevar_runtime.loop import engine
from stagevar_runtime.loop.plan import plan_for
from tools import speed

SAMPLING = Sampling(guidance=2.0, top_k=20, top_p=0.95)
CPU = torch.device("cpu")


@pytest.mark.parametrize("shape", [{}, {"shared_adaln": True}, {"l2_norm": False, "heads": 4}])
@pytest.mark.parametrize("sampling", [SAMPLING, Sampling(guidance=4.0, top_k=0, top_p=0.0)])
def test_published_loop_draws_the_same_ids(shape: dict, sampling: Sampling) -> None:
    model = VAR.from_tensors(*var_states(**shape), CPU, torch.float32)
    conditioning = model.condition(labels=[0, 3, 4])
    ours = engine.generate(model, conditioning, plan_for(model, (), sampling), seed=11)
    theirs = PublishedVAR(model)(conditioning, sampling, 11)
    for k, (a, b) in enumerate(zip(ours.ids, theirs.ids, strict=True)):
        assert torch.equal(a, b), f"scale {k}"
    torch.testing.assert_close(ours.images, theirs.images, atol=1e-4, rtol=0)
    assert len(theirs.scale_ms) == 4 and theirs.decode_ms > 0


@pytest.mark.parametrize("family", ["var", "infinity"])
def test_published_loops_run_under_autocast(family: str) -> None:
    """As on a GPU: weights in bfloat16, float32 where the publishers keep it."""
    if family == "var":
        model = VAR.from_tensors(*var_states(), CPU, torch.bfloat16)
        conditioning, scales = model.condition(labels=[0, 3]), 4
    else:
        transformer, tokenizer = infinity_states()
        options = {"size": "0.06M"}
        model = Infinity.from_tensors(transformer, tokenizer, CPU, torch.bfloat16, options)
        conditioning, scales = model.condition(**prompts((3, 7))), 7
    made = bench.MAKE_PUBLISHED[family](model)(conditioning, SAMPLING, 11)
    assert len(made.ids) == scales and torch.isfinite(made.images).all()
    ours = engine.generate(model, conditioning, plan_for(model, (), SAMPLING), seed=11)
    assert torch.equal(ours.ids[0], made.ids[0])
    assert (ours.ids[1] == made.ids[1]).float().mean() > 0.7


def test_published_loop_leaves_the_model_alone(tiny_var: VAR) -> None:
    conv = tiny_var.tokenizer.decoder.conv_in.weight
    assert conv.is_contiguous(memory_format=torch.channels_last)
    plain = PublishedVAR(tiny_var)
    assert plain.tokenizer.decoder.conv_in.weight.is_contiguous()
    assert conv.is_contiguous(memory_format=torch.channels_last)


@pytest.fixture(autouse=True)
def quick_ceiling(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ceiling that costs a test nothing."""
    monkeypatch.setitem(ceiling.PRODUCT_SIZE, "cpu", 64)
    monkeypatch.setitem(ceiling.COPY_FLOATS, "cpu", 1024)


@pytest.fixture
def tiny_size(monkeypatch: pytest.MonkeyPatch) -> str:
    """A small size among the published ones."""
    config = VARConfig(2, 64, 2, 5, 48, 32, (1, 2, 3, 4), 256, False, True)
    tokenizer = VQVAEConfig(
        vocabulary=48,
        stem=32,
        channels=(32, 32),
        attention_levels=(1,),
        decoder_blocks=1,
        encoder=False,
    )
    monkeypatch.setitem(
        random_models.SIZES,
        "var-tiny",
        lambda device, dtype: random_models.random_var(config, device, dtype, tokenizer),
    )
    return "var-tiny"


def test_bench_writes_one_document(tiny_size: str, tmp_path: Path) -> None:
    target = tmp_path / "out.json"
    arguments = ["bench", "--random", tiny_size, "--batches", "1,2", "--repeats", "2", "--json"]
    ran = CliRunner().invoke(
        cli, [*arguments, "--output", str(target), "--plan", "cfg-off", "--device", "cpu"]
    )
    assert ran.exit_code == 0, ran.output
    said = json.loads(ran.stdout)
    assert said == json.loads(target.read_text())
    assert said["kind"] == bench_report.KIND and said["dtype"] == "float32"
    assert [part["batch"] for part in said["batches"]] == [1, 2]
    for part in said["batches"]:
        runs = part["runs"]
        assert list(runs) == ["published", "exact", "cfg-off"]
        assert part["ceiling"]["tflops"] > 0 and part["ceiling"]["copy_gb_s"] > 0
        for figures in runs.values():
            assert len(figures["scales"]) == 4
            assert figures["total_ms"]["min"] <= figures["total_ms"]["median"]
            whole = sum(scale["tflop"] for scale in figures["scales"])
            assert whole == pytest.approx(figures["loop"]["tflop"])
            assert figures["decode"]["tflop"] > 0 and figures["peak_memory_mb"] > 0
        assert runs["exact"]["loop"]["tflop"] == runs["published"]["loop"]["tflop"]
        assert runs["cfg-off"]["loop"]["tflop"] < runs["exact"]["loop"]["tflop"]
        assert set(runs["cfg-off"]) >= {"vs_published", "vs_exact"}
        assert "vs_published" not in runs["published"]
        assert part["same_ids_as_published"] == 1.0


def test_bench_with_graphs_warms_up_until_they_are_trusted(
    tiny_size: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = TapeRecorder()
    monkeypatch.setattr(bench_command, "accelerate", partial(accelerate, recorder=recorder))
    target = tmp_path / "out.json"
    arguments = ["--batches", "1,2", "--repeats", "2", "--compile", "graphs", "-o", str(target)]
    plans = ["--plan", "exact", "--plan", "cfg-off", "--dtype", "bfloat16"]
    ran = CliRunner().invoke(cli, ["bench", "--random", tiny_size, *arguments, *plans])
    assert ran.exit_code == 0, ran.output
    said = json.loads(target.read_text())
    assert said["compile"] == "graphs"
    assert recorder.recorded == 2 * (2 * 4 + 1)  # batches; plans of scales, and the decoder
    for part in said["batches"]:
        for name in ("exact", "cfg-off"):
            figures = part["runs"][name]
            assert len(figures["warm_up_ms"]) == 3 and figures["keys_values_mb"] > 0
            assert any(
                line.startswith("graphs: 4 of scales 0, 1, 2, 3") for line in figures["said"]
            )
            assert any("decoder 4x4" in line for line in figures["said"])
        assert "said" not in part["runs"]["published"]
        assert part["same_ids_as_published"] > 0.5


def test_a_contender_that_fails_stops_nobody_else(
    tiny_size: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_args) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory\nmore")

    monkeypatch.setattr(PublishedVAR, "__call__", broken)
    target = tmp_path / "out.json"
    arguments = ["--batches", "1", "--repeats", "1", "--plan", "cfg-off", "-o", str(target)]
    ran = CliRunner().invoke(cli, ["bench", "--random", tiny_size, *arguments])
    assert ran.exit_code == 0, ran.output
    part = json.loads(target.read_text())["batches"][0]
    assert list(part["runs"]) == ["exact", "cfg-off"] and "same_ids_as_published" not in part
    assert part["failed"] == {"published": "OutOfMemoryError: CUDA out of memory more"}
    assert "published failed: OutOfMemoryError" in ran.output


def test_bench_stops_when_its_time_is_up(tiny_size: str, tmp_path: Path) -> None:
    target = tmp_path / "out.json"
    arguments = ["--batches", "1,2", "--repeats", "9", "--seconds", "0", "--plan", "exact"]
    ran = CliRunner().invoke(
        cli, ["bench", "--random", tiny_size, *arguments, "-o", str(target), "--json"]
    )
    assert ran.exit_code == 0, ran.output
    assert [part["rounds"] for part in json.loads(target.read_text())["batches"]] == [1, 1]


@pytest.mark.parametrize("size", ["var-trial", "infinity-trial"])
def test_trial_sizes_take_the_presets(size: str, tmp_path: Path) -> None:
    model = random_models.random_model(size, "cpu")
    for name in ("stagevar", "stagevar-released", "fastvar", "skip-2", bench.LATE):
        assert len(bench.plan_named(name, model, SAMPLING, None)) == len(model.scales())


def test_bench_of_a_checkpoint(tiny_files: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.json"
    arguments = ["bench", str(tiny_files), "--batches", "1", "--repeats", "1", "-o", str(target)]
    ran = CliRunner().invoke(cli, arguments)
    assert ran.exit_code == 0, ran.output
    assert "balanced-like" in ran.output and str(target) in ran.output
    assert json.loads(target.read_text())["model"]["name"] == "var_tiny"


def test_balanced_like_drops_guidance_and_tokens(tiny_var: VAR) -> None:
    plan = bench.plan_named(bench.LATE, tiny_var, SAMPLING, None)
    assert all(step.branches == ("cond",) for step in plan[1:])
    kept = [step.groups[0].tokens.keep if step.groups[0].tokens else None for step in plan]
    assert kept == [None, None, 3, 5]


def test_scale_flops_add_up(tiny_var: VAR) -> None:
    plan = plan_for(tiny_var, (), SAMPLING)
    by_scale = scale_flops(tiny_var.info, plan)
    assert sum(by_scale) == plan_flops(tiny_var.info, plan)
    assert by_scale == sorted(by_scale)


@pytest.mark.parametrize("arguments", [[], ["x.pth", "--random", "var-d16"]])
def test_one_of_checkpoint_and_random(arguments: list[str]) -> None:
    ran = CliRunner().invoke(cli, ["bench", *arguments])
    assert isinstance(ran.exception, StagevarError)
    assert "CHECKPOINT and --random" in str(ran.exception)


def test_unknown_names_are_said(tiny_size: str, tmp_path: Path) -> None:
    with pytest.raises(StagevarError, match="unknown size 'var-d17', expected one of var-d16"):
        random_models.random_model("var-d17")
    ran = CliRunner().invoke(cli, ["bench", "--random", tiny_size, "--plan", "faster"])
    assert isinstance(ran.exception, StagevarError) and "'faster'" in str(ran.exception)
    ran = CliRunner().invoke(cli, ["bench", "--random", tiny_size, "--batches", "0"])
    assert ran.exit_code == 2


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ({}, {}),
        ({"shared_adaln": False, "heads": 4}, {"level": "chunk", "rope": 1}),
        ({"patchify": True}, {"aspect_ratio": 1.333}),
        ({}, {"guidance_layer": [-2, 0]}),
    ],
)
@pytest.mark.parametrize("lengths", [(5,), (3, 7)])
def test_published_infinity_draws_the_same_bits(shape: dict, options: dict, lengths) -> None:
    model = tiny_infinity(options, **shape)
    conditioning = model.condition(**prompts(lengths))
    sampling = Sampling(guidance=3.0, temperature=0.5, top_k=900, top_p=0.97)
    ours = engine.generate(model, conditioning, plan_for(model, (), sampling), seed=11)
    theirs = PublishedInfinity(model)(conditioning, sampling, 11)
    for k, (a, b) in enumerate(zip(ours.ids, theirs.ids, strict=True)):
        assert torch.equal(a, b), f"scale {k}"
    torch.testing.assert_close(ours.images, theirs.images, atol=1e-4, rtol=0)
    assert len(theirs.scale_ms) == 7 and theirs.decode_ms > 0


def test_families_without_a_published_loop_say_so(
    tiny_size: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(bench, "MAKE_PUBLISHED", {})
    target = tmp_path / "out.json"
    arguments = ["--batches", "1", "--repeats", "1", "--plan", "exact", "-o", str(target)]
    CliRunner().invoke(cli, ["bench", "--random", tiny_size, *arguments])
    said = json.loads(target.read_text())
    assert list(said["batches"][0]["runs"]) == ["exact"]
    assert any("no published loop" in note for note in said["notes"])


def test_random_infinity_is_timed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = InfinityConfig(2, (1, 1), 64, 2, 128, 4, 48, 32, 2, 15, True, False)
    build = partial(random_models.random_infinity, config, random_models.bsq_shape(4, (32,) * 5, 1))
    monkeypatch.setitem(random_models.SIZES, "infinity-tiny", build)
    monkeypatch.setattr(Infinity, "scales", partialmethod(_small_scales, Infinity.scales))
    target = tmp_path / "out.json"
    arguments = ["--batches", "2", "--repeats", "1", "--plan", "cfg-off", "-o", str(target)]
    ran = CliRunner().invoke(cli, ["bench", "--random", "infinity-tiny", *arguments])
    assert ran.exit_code == 0, ran.output
    said = json.loads(target.read_text())
    assert list(said["batches"][0]["runs"]) == ["published", "exact", "cfg-off"]
    assert said["batches"][0]["same_ids_as_published"] == 1.0


def _small_scales(model: Infinity, original, **size):
    return original(model, size="0.06M")


@pytest.mark.parametrize("name", [n for n in random_models.SIZES if not n.endswith("trial")])
def test_every_size_has_the_published_parameter_count(name: str) -> None:
    """Millions of parameters of the transformer, FAMILIES.md 1.2 and 3 (no weight is made)."""
    millions = {
        "var-d16": 310,
        "var-d20": 601,
        "var-d24": 1033,
        "var-d30": 2010,
        "var-d36": 2353,
        "infinity-2b": 2200,
        "infinity-8b": 8380,
    }
    build = random_models.SIZES[name]
    assert isinstance(build, partial)
    config = build.args[0]
    kind = VARTransformer if isinstance(config, VARConfig) else InfinityTransformer
    with torch.device("meta"):
        made = kind(config)
    count = sum(p.numel() for p in made.parameters()) / 1e6
    assert count == pytest.approx(millions[name], rel=0.01)


def test_the_table_of_the_page(tiny_size: str, tmp_path: Path) -> None:
    target = tmp_path / "out.json"
    arguments = ["--batches", "1", "--repeats", "1", "--plan", "exact", "-o", str(target)]
    CliRunner().invoke(cli, ["bench", "--random", tiny_size, *arguments])
    table = speed.markdown([json.loads(target.read_text())])
    lines = table.splitlines()
    assert [row.split("|")[3].strip() for row in lines[2:4]] == ["published", "exact"]
    assert {row.count("|") for row in lines[:4]} == {len(speed.HEAD) + 1}
