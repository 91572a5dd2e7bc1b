"""What may go wrong where nobody can look: pytest tests/training/test_picture_faults.py"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from shard_fixtures import write_shard

from training.data.shard import read_shard
from training.gpu import compiled, outputs, run
from training.gpu.__main__ import AGAIN, FAULT
from training.gpu.__main__ import main as supervise
from training.gpu.cache import encode_pictures
from training.gpu.clock import Clock
from training.gpu.fit import build_model
from training.gpu.pictures import Pictures, put_pictures, read_emoji
from training.gpu.precision import Precision, finite
from training.gpu.settings import SIZES
from training.gpu.tokenizer import TokenizerTraining
from training.gpu.work import LATE
from training.gpu.work import main as work
from training.scenes.transformer import importance

LEAST = SIZES["least"]
ROOT = Path(__file__).resolve().parents[2]
BREAKS = """import os, sys
from training.gpu import fit, work
update = fit.Training.update
def breaks(self, prefix):
    if self.step == 5 and "--after-fault" not in sys.argv:
        HOW
    return update(self, prefix)
fit.Training.update = breaks
sys.exit(work.main())
"""


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shard(tmp_path_factory.mktemp("shard") / "pictures.zip")


@pytest.fixture(scope="module")
def pictures(shard: Path) -> Pictures:
    found = read_shard(shard)
    return put_pictures(found, *read_emoji(found, LEAST.pixels), LEAST.pixels, "cpu")


@pytest.mark.parametrize("how", ["os.abort()", "raise RuntimeError('CUDA error: illegal access')"])
def test_another_process_goes_on_where_one_crashed(
    shard: Path, tmp_path: Path, monkeypatch, capfd, how: str
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("training.gpu.__main__.STARTED", Clock(1).start)
    asked = ["--shard", str(shard), "--out", str(tmp_path), "--minutes", "0.4"]
    asked += ["--size", "least", "--device", "cpu"]
    assert supervise(asked, [sys.executable, "-c", BREAKS.replace("HOW", how)]) == 0
    said = capfd.readouterr()
    assert f"attempt 1 of 3 ended with {FAULT if 'raise' in how else -6}" in said.err
    assert said.out.count("tokenizer ready after 0 steps") == 1  # the first one's
    assert outputs.read_payload(tmp_path, "state")["step"] > 0
    assert finite(outputs.read_payload(tmp_path, "result")["model"])


@pytest.mark.parametrize(
    ("body", "code", "attempts"),
    [
        ("sys.exit(70 * (AGAIN not in sys.argv))", 0, 2),
        ("os.kill(os.getpid(), 9)", -9, 3),
        ("sys.exit(1)", 1, 1),  # refused: no use in asking again
    ],
)
def test_a_crash_is_tried_again_and_a_refusal_is_not(
    tmp_path: Path, body: str, code: int, attempts: int
) -> None:
    told = tmp_path / "told"
    count = f"import os, sys; AGAIN = {AGAIN!r}; open({str(told)!r}, 'a').write('x'); "
    assert supervise([], [sys.executable, "-c", count + body]) == code
    assert told.read_text() == "x" * attempts


def test_too_late_nothing_is_begun_again(shard: Path, tmp_path: Path) -> None:
    asked = ["--shard", str(shard), "--out", str(tmp_path), "--minutes", "1", AGAIN]
    assert work([*asked, "--since", str(Clock(1).start - 55)]) == LATE


def test_what_a_run_goes_on_from_stays_until_there_is_better(shard: Path, tmp_path: Path) -> None:
    made = outputs.Outputs(tmp_path)
    vocabulary = run.Run(asked(shard, tmp_path / "o"), Clock(1), lambda: False).vocabulary
    state = {"size": "least", "vocabulary": vocabulary, "logs": "{}"}
    made.save({"state": state}, {})
    for resume, there in ((tmp_path, True), (None, False)):
        run.Run(asked(shard, tmp_path, resume), Clock(1), lambda: False)
        assert any(tmp_path.glob("state.*")) == there


def asked(shard: Path, out: Path, resume: Path | None = None, **more: bool) -> run.Asked:
    """A command line."""
    return run.Asked(
        *(1, shard, out, "cpu", "least", resume), compile=False, work=out / "work", **more
    )


def test_a_tokenizer_that_is_no_number_goes_back(pictures: Pictures) -> None:
    log: list[dict[str, object]] = []
    made = TokenizerTraining(LEAST, "cpu", Precision("cpu"))
    made.update(pictures)
    made.keep_or_restore(log.append)
    assert not log
    with torch.no_grad():
        made.model.decoder.conv_in.weight.fill_(torch.nan)
    made.update(pictures)
    made.keep_or_restore(log.append)
    assert finite(made.model.state_dict()) and made.slower == 0.5 and len(log) == 1
    assert made.update(pictures)["l1"].isfinite()


def test_pictures_are_encoded_in_smaller_batches_where_memory_is_full(
    pictures: Pictures, monkeypatch
) -> None:
    _, vae = build_model(LEAST, ["a"], "cpu")
    encoder, sizes = vae.encoder.forward, []

    def limited(image: torch.Tensor) -> torch.Tensor:
        sizes.append(len(image))
        if len(image) > 2:
            raise torch.OutOfMemoryError("full")
        return encoder(image)

    monkeypatch.setattr(vae.encoder, "forward", limited)
    clock = Clock(1)
    kinds = encode_pictures(vae, pictures, clock, clock.now + 60, Precision("cpu"))
    assert sizes[:2] == [4, 2] and [len(k.captions) for k in kinds] == [8 * 8, 40]


def test_a_plain_picture_has_weights_that_can_be_drawn_by() -> None:
    found = importance(torch.ones(2, 16, 8, 8), [(1, 1), (8, 8)])
    assert finite({"weights": found}) and (found > 0).all()


def test_a_compiler_that_cannot_start_and_a_disk_that_is_full_stop_nothing(
    shard: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    made = run.Run(asked(shard, tmp_path / "o"), Clock(1), lambda: False)
    (tmp_path / "o/work").write_text("a file, not a folder")
    made.start_compiler()
    assert made.compiler is None and made.logs["transformer"][-1]["compiled"] is False
    monkeypatch.setattr(made, "save", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    made.save_or_say(None, None)  # type: ignore[arg-type]
    assert "no checkpoint: OSError('disk full')" in capsys.readouterr().out


def test_compiled_blocks_must_save_more_than_training_waits_for_them(
    shard: Path, tmp_path: Path, monkeypatch
) -> None:
    taken: list[object] = []
    monkeypatch.setattr(run, "compile_block", taken.append)
    for seconds in (5.0, 50.0):
        made = run.Run(asked(shard, tmp_path), Clock(1.5), lambda: False)  # 70 s
        found = {"compiled": True, "why": "", "faster": [1.25], "seconds": seconds}
        made.compiler = type("Told", (), {"found": lambda self, found=found: found})()
        model = type("Model", (), {"model": None})()
        model.batches = {prefix.scales: prefix.batch for prefix in LEAST.prefixes}
        made.switch(model)
        assert made.logs["transformer"][-1]["compiled"] is (seconds == 5.0)
    assert len(taken) == 1


@pytest.mark.slow
def test_a_child_compiles_for_real_and_a_second_finds_what_it_left(tmp_path: Path) -> None:
    child = compiled.Compiler(LEAST, "cpu", tmp_path)
    child.child.wait(500)
    found = child.found()
    assert found is not None and "off" in found, found
    assert found["off"] < compiled.NEAR
