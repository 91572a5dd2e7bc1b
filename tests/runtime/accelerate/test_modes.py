"""What compile= does, half decoders, memory, first images.

pytest tests/runtime/accelerate/test_modes.py
"""

import logging
import threading
from pathlib import Path

import pytest
import torch
from conftest import infinity_states, prompts, tiny_infinity, var_states
from tape import TapeRecorder
from torch import Tensor, nn

from stagevar_runtime import Sampling, StagevarError, load
from stagevar_runtime.accelerate.half_decoder import HalfDecoder
from stagevar_runtime.accelerate.modes import TEXT_TILE, Acceleration, accelerate
from stagevar_runtime.families.infinity.model import SCHEDULES_KEPT, Infinity
from stagevar_runtime.families.var import VAR
from stagevar_runtime.kernels import settings
from stagevar_runtime.loop import engine
from stagevar_runtime.loop.engine import generate
from stagevar_runtime.loop.plan import plan_for
from stagevar_runtime.model.lru import LRU
from stagevar_runtime.profile import PlanStep

CPU = torch.device("cpu")
SAMPLING = Sampling(guidance=2.0, top_k=20, top_p=0.95)


def half_var() -> VAR:
    return VAR.from_tensors(*var_states(), CPU, torch.bfloat16)


@pytest.mark.parametrize("mode", ["off", "graphs", "auto"])
def test_nothing_changes_on_a_cpu(mode: str) -> None:
    model = half_var()
    decoder = model.tokenizer.decoder
    fast = accelerate(model, mode)
    assert fast.graphs is None and model.tokenizer.decoder is decoder
    assert fast.description.startswith("off") and len(fast.notes()) == (mode == "graphs")


def test_compiled_blocks_draw_the_same_ids(tiny_files: Path) -> None:
    """Every block is one graph for the compiler, the residual stream with it."""
    pipeline = load(tiny_files, profile=None, device="cpu")
    want = pipeline.generate(labels=[1, 2], seed=3)
    torch._dynamo.reset()
    pipeline.fast = accelerate(pipeline.model, "max", backend="eager")
    got = pipeline.generate(labels=[1, 2], seed=3)
    assert all(map(torch.equal, got.ids, want.ids)) and not pipeline.fast.trouble
    accelerate(pipeline.model, "off")
    torch._dynamo.reset()


def test_memory_that_runs_out_is_given_back(tiny_files: Path, monkeypatch) -> None:
    """The eager loop needs what graphs hold: they go, and the picture is made."""
    pipeline = load(tiny_files, profile=None, device="cpu")
    want = pipeline.generate(labels=[1], seed=3)
    pipeline.fast = accelerate(pipeline.model, recorder=TapeRecorder())
    for _ in range(3):
        pipeline.generate(labels=[1], seed=3)
    assert pipeline.fast.graphs is not None and pipeline.fast.graphs.room_bytes() > 0
    plain, tried = pipeline.model.decode, []

    def full(state):
        tried.append(state)
        if len(tried) == 1:
            raise torch.OutOfMemoryError("Tried to allocate 20.00 MiB")
        return plain(state)

    monkeypatch.setattr(pipeline.model, "decode", full)
    assert torch.equal(pipeline.generate(labels=[1], seed=3).images, want.images)
    assert pipeline.fast.graphs.room_bytes() == 0
    assert "Tried to allocate 20.00 MiB" in " ".join(pipeline.summary().notes)


def test_threads_share_a_pipeline(tiny_files: Path) -> None:
    pipeline = load(tiny_files, profile=None, device="cpu")
    want = [pipeline.generate(labels=[turn], seed=turn).images for turn in range(4)]
    pipeline.fast = accelerate(pipeline.model, recorder=TapeRecorder())
    wrong = []

    def draw(turn: int) -> None:
        for _ in range(4):
            if not torch.equal(pipeline.generate(labels=[turn], seed=turn).images, want[turn]):
                wrong.append(turn)

    threads = [threading.Thread(target=draw, args=(turn,)) for turn in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and pipeline.fast.graphs is not None and pipeline.fast.graphs.recorded == 4


@torch.inference_mode()
def test_the_decoder_is_recorded() -> None:
    torch.manual_seed(0)
    full, recorder = Decoder(), TapeRecorder()
    plain = HalfDecoder(full)
    decoder = HalfDecoder(full, recorder=recorder)
    for seed in range(6):
        assert torch.equal(decoder(canvas(seed)), plain(canvas(seed)))
    assert recorder.recorded == 1 and recorder.replayed == 3
    assert decoder.description()[0].endswith(", one graph")


@torch.inference_mode()
def test_a_decoder_that_cannot_be_recorded_runs_eagerly(caplog) -> None:
    class Waiting(Decoder):
        def forward(self, z: Tensor) -> Tensor:
            return super().forward(z) * (1.0 if z.sum().item() < 1e9 else 2.0)

    torch.manual_seed(0)
    full = Waiting()
    plain, decoder = HalfDecoder(full), HalfDecoder(full, recorder=TapeRecorder())
    with caplog.at_level(logging.WARNING, "stagevar_runtime"):
        for seed in range(4):
            assert torch.equal(decoder(canvas(seed)), plain(canvas(seed)))
    assert "the decoder runs eagerly" in caplog.text
    assert "no graph (RuntimeError" in decoder.description()[0]


def test_full_precision_is_left_as_it_was() -> None:
    before = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    with pytest.raises(KeyError), settings.full_precision():
        assert torch.backends.cudnn.conv.fp32_precision == "ieee"
        assert torch.backends.cuda.matmul.fp32_precision == "ieee"
        raise KeyError
    assert (torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()) == before


def test_unknown_mode() -> None:
    with pytest.raises(StagevarError, match="'fast', expected one of off, graphs, auto, max"):
        accelerate(half_var(), "fast")


def test_off_undoes() -> None:
    model = half_var()
    decoder = model.tokenizer.decoder
    fast = accelerate(model, "graphs", recorder=TapeRecorder())
    assert fast.graphs and model.tokenizer.decoder is fast.decoder
    accelerate(model, "graphs", recorder=TapeRecorder())
    assert accelerate(model, "off") == Acceleration()
    assert model.tokenizer.decoder is decoder


def test_half_weights_with_graphs_draw_the_same_ids() -> None:
    model, plain = half_var(), half_var()
    fast = accelerate(model, "graphs", recorder=TapeRecorder())
    for turn in range(4):
        conditioning = model.condition(labels=[turn, 2])
        got = generate(
            model, conditioning, plan_for(model, (), SAMPLING), seed=turn, graphs=fast.graphs
        )
        want = generate(plain, conditioning, plan_for(plain, (), SAMPLING), seed=turn)
        assert all(map(torch.equal, got.ids, want.ids))
        assert (got.images - want.images).abs().max() <= (4 / 255 if turn else 0)
    said = " ".join(fast.notes())
    assert (
        "graphs: 4 of scales 0, 1, 2, 3; eager: none" in said
        and "decoder 4x4, batch 2: float16 off by" in said
    )


def test_prompts_of_other_lengths_share_a_shape() -> None:
    model, plain = tiny_infinity(), tiny_infinity()
    fast = accelerate(model, "graphs", recorder=TapeRecorder())
    assert model.text_tile == TEXT_TILE and plain.text_tile == 1
    for turn, lengths in enumerate([(3, 7), (5, 2), (4, 4), (6, 1)]):
        conditioning = model.condition(**prompts(lengths, seed=turn))
        got = generate(
            model, conditioning, plan_for(model, (), SAMPLING), seed=turn, graphs=fast.graphs
        )
        want = generate(plain, conditioning, plan_for(plain, (), SAMPLING), seed=turn)
        assert torch.equal(got.ids[0], want.ids[0])
        replayed = engine.replay(model, conditioning, want.ids, plan_for(model, (), SAMPLING))
        exact = engine.replay(plain, conditioning, want.ids, plan_for(plain, (), SAMPLING))
        torch.testing.assert_close(replayed.logits[-1], exact.logits[-1], atol=1e-4, rtol=0)
    assert fast.graphs and len(fast.graphs.homes) == 1


class Decoder(nn.Module):
    """Doubles a canvas; ``gain`` makes half precision fail."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.gain, self.conv = gain, nn.Conv2d(4, 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        return self.conv(nn.functional.interpolate(z * self.gain, scale_factor=2.0)) / self.gain


def canvas(seed: int, size: int = 4) -> Tensor:
    return torch.randn(1, 4, size, size, generator=torch.Generator().manual_seed(seed)) / 4


@torch.inference_mode()
def test_half_decoder_proves_itself_once_a_shape() -> None:
    torch.manual_seed(0)
    full = Decoder()
    decoder = HalfDecoder(full)
    assert torch.equal(decoder(canvas(0)), full(canvas(0)))  # the first picture is exact
    got = decoder(canvas(1))
    assert got.dtype == torch.float32 and not torch.equal(got, full(canvas(1)))
    assert (got - full(canvas(1))).abs().max() < 8 / 255
    assert torch.equal(decoder(canvas(2, 6)), full(canvas(2, 6)))
    assert [line.split(":")[0] for line in decoder.description()] == [
        "decoder 4x4, batch 1",
        "decoder 6x6, batch 1",
    ]


@torch.inference_mode()
def test_half_decoder_takes_the_type_that_does_not_overflow() -> None:
    torch.manual_seed(0)
    decoder = HalfDecoder(Decoder(gain=1e6), max_error=0.1)
    decoder(canvas(0))
    assert "bfloat16 off by" in decoder.description()[0]


@torch.inference_mode()
def test_half_decoder_falls_back(caplog) -> None:
    torch.manual_seed(0)
    full = Decoder(gain=1e6)
    decoder = HalfDecoder(full, types=(torch.float16,))
    with caplog.at_level(logging.WARNING, "stagevar_runtime"):
        for seed in range(2):
            assert torch.equal(decoder(canvas(seed)), full(canvas(seed)))
    assert "stays in float32 (float16 off by inf/255)" in caplog.text
    assert not decoder._half


@torch.inference_mode()
def test_a_later_overflow_is_decoded_again() -> None:
    torch.manual_seed(0)
    full = Decoder(gain=1e4)
    decoder = HalfDecoder(full, types=(torch.float16,))
    decoder(canvas(0) / 100)
    large = canvas(1) * 1000
    for _ in range(2):
        assert torch.equal(decoder(large), full(large))
    assert decoder.description() == ["decoder 4x4, batch 1: float32 (float16 overflowed)"]


def test_a_compiler_that_fails_is_done_without(tiny_files: Path, caplog) -> None:
    def broken(graph, inputs):
        raise RuntimeError("no compiler here")

    pipeline = load(tiny_files, profile=None, device="cpu")
    want = pipeline.generate(labels=[1], seed=3)
    torch._dynamo.reset()
    pipeline.fast = accelerate(pipeline.model, "max", backend=broken)
    with caplog.at_level(logging.WARNING, "stagevar_runtime"):
        got = pipeline.generate(labels=[1], seed=3)
    assert torch.equal(got.images, want.images)
    assert "compiling failed: BackendCompilerFailed" in pipeline.summary().notes
    accelerate(pipeline.model, "off")
    torch._dynamo.reset()


def test_summary_shows_memory_and_the_first_call(tiny_files: Path) -> None:
    pipeline = load(tiny_files, profile=None, device="cpu")
    pipeline.enable([PlanStep(scale=2, guidance="cond")])
    pipeline.generate(labels=[1, 2])
    first = pipeline.summary()
    assert first.first_ms == first.last_ms > 0
    pipeline.generate(labels=[3, 4])
    summary = pipeline.summary()
    assert summary.first_ms == first.first_ms
    token = 2 * 2 * 64 * 4  # k and v, blocks, width, bytes
    tokens = 1 + 4 + 9 + 16
    assert summary.memory.guided_mb == pytest.approx(2 * 2 * (1 + 4) * token / 1e6)
    assert summary.memory.dropped_mb == pytest.approx(2 * tokens * token / 1e6)
    assert summary.memory.exact_mb == pytest.approx(2 * summary.memory.dropped_mb)
    assert summary.memory.peak_mb > 0
    assert "MB after it was dropped" in str(summary) and "first call of this shape" in str(summary)
    pipeline.generate(labels=[1])
    assert pipeline.summary().first_ms == pipeline.summary().last_ms


def test_recent_forgets_the_oldest() -> None:
    recent: LRU[int] = LRU(2)
    for key in ("a", "b", "a", "c"):
        recent.get(key, lambda: len(recent))
    made = [recent.get(key, lambda: -1) for key in ("a", "c", "b")]
    assert made == [0, 1, -1] and len(recent) == 2


def test_rotations_are_kept_for_a_few_sizes() -> None:
    model = tiny_infinity()
    conditioning = model.condition(**prompts((3,)))
    ropes = []
    for ratio in (1.0, 2.0, 1.0):
        plan = plan_for(model, (), SAMPLING, model.scales(aspect_ratio=ratio))
        ropes.append(engine.start(model, conditioning, plan, 0).extra["rope"])
    assert ropes[0] is ropes[2] and ropes[0] is not ropes[1]
    for ratio in (0.333, 0.4, 0.5, 0.571, 0.667, 0.75, 0.8, 1.25, 1.333, 1.5):
        plan = plan_for(model, (), SAMPLING, model.scales(aspect_ratio=ratio))
        engine.start(model, conditioning, plan, 0)
    assert len(model._prepared) == SCHEDULES_KEPT


def test_infinity_in_half_precision_decodes_by_half() -> None:
    options = {"size": "0.06M"}
    model = Infinity.from_tensors(*infinity_states(), CPU, torch.bfloat16, options)
    fast = accelerate(model, "graphs", recorder=TapeRecorder())
    for turn in range(3):
        conditioning = model.condition(**prompts((3, 5), seed=turn))
        made = generate(
            model, conditioning, plan_for(model, (), SAMPLING), seed=turn, graphs=fast.graphs
        )
        assert torch.isfinite(made.images).all() and made.images.dtype == torch.float32
    assert fast.graphs and not fast.graphs.off
