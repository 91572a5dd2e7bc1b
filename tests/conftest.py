"""Tiny random models that need no file, and the golden cases where they are at hand."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from hub_server import Hub

from stagevar_probe.calibrate.job import CalibrationJob
from stagevar_probe.calibrate.settings import Materials, Outputs, Settings, Tools
from stagevar_probe.cli import cli
from stagevar_probe.datasets.inputs import Inputs, balanced_labels
from stagevar_probe.datasets.supply import supply
from stagevar_probe.intervals import Interval
from stagevar_probe.measure.figures import Figures
from stagevar_probe.metrics import effnet, stlpips
from stagevar_probe.metrics.quality import Likeness
from stagevar_runtime.families.infinity.blocks import InfinityConfig
from stagevar_runtime.families.infinity.blocks import Transformer as InfinityTransformer
from stagevar_runtime.families.infinity.model import Infinity
from stagevar_runtime.families.tokenizers.bsq_vae import BSQVAE
from stagevar_runtime.families.tokenizers.config import VQVAEConfig
from stagevar_runtime.families.tokenizers.vqvae import VQVAE
from stagevar_runtime.families.var import VAR, Transformer, VARConfig
from stagevar_runtime.pipeline import Pipeline

SHARED = Path(__file__).resolve().parents[2] / "shared"
CHECKPOINT = Path(__file__).resolve().parents[1] / "checkpoints/fashion/var_fashion.pth"

LOGGERS = ("stagevar_runtime", "stagevar_probe")

torch.set_num_threads(1)  # the models are tiny: threads would only wait for each other


def random_state(module: torch.nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """A state dict of O(1) gains, so that real errors show."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, tensor in module.state_dict().items():
        if tensor.ndim <= 1:
            ones = float("norm" in name and name.endswith("weight"))
            state[name] = ones + 0.1 * torch.randn(tensor.shape, generator=generator)
        else:
            fan_in = tensor[0].numel()
            state[name] = torch.randn(tensor.shape, generator=generator) / fan_in**0.5
    return state


def var_states(
    depth: int = 2,
    width: int = 64,
    heads: int = 2,
    sides: tuple[int, ...] = (1, 2, 3, 4),
    classes: int = 5,
    vocabulary: int = 48,
    shared_adaln: bool = False,
    l2_norm: bool = True,
    seed: int = 0,
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """State dicts of a random VAR and of its tokenizer, in the published names."""
    config = VARConfig(
        depth, width, heads, classes, vocabulary, 32, sides, 4 * width, shared_adaln, l2_norm
    )
    transformer = random_state(Transformer(config), seed)
    length = sum(side**2 for side in sides)
    level = torch.cat([torch.full((side**2,), k) for k, side in enumerate(sides)])
    transformer["lvl_1L"] = level[None]
    transformer["attn_bias_for_masking"] = torch.where(
        level[:, None] >= level[None], 0.0, -torch.inf
    ).reshape(1, 1, length, length)
    tokenizer = VQVAEConfig(
        vocabulary=vocabulary,
        stem=32,
        channels=(32, 32),
        attention_levels=(1,),
        encoder_blocks=1,
        decoder_blocks=1,
    )
    return transformer, random_state(VQVAE(tokenizer), seed + 1)


@pytest.fixture(scope="session")
def tiny_var() -> VAR:
    """4 scales, 2 blocks, 30 tokens."""
    return VAR.from_tensors(*var_states(), torch.device("cpu"), torch.float32)


@pytest.fixture
def tiny_files(tmp_path: Path) -> Path:
    """The same model as files: var_tiny.pth with vae_tiny.pth beside it."""
    return write_tiny(tmp_path)


def write_tiny(folder: Path, **changes: Any) -> Path:
    """A random VAR as files: var_tiny.pth with vae_tiny.pth beside it."""
    transformer, tokenizer = var_states(**changes)
    torch.save(transformer, folder / "var_tiny.pth")
    torch.save(tokenizer, folder / "vae_tiny.pth")
    return folder / "var_tiny.pth"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub with an empty cache; the library has read its environment, so its constants say so."""
    constants = pytest.importorskip("huggingface_hub.constants")
    made = Hub()
    for name, value in {
        "ENDPOINT": made.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": made.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(tmp_path / "cache"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_TOKEN_PATH": str(tmp_path / "no-token"),
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.delenv("STAGEVAR_PROFILE", raising=False)
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    yield made
    made.close()


CODE = "open({!r}, 'w')\nimport torch\ndef score(a, b, c): return torch.ones(len(b))\n"


@pytest.fixture
def owned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module that can be imported from here and leaves this file behind when it is."""
    mark = tmp_path / "OWNED"
    (tmp_path / "evil_module.py").write_text(CODE.format(str(mark)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield mark
    sys.modules.pop("evil_module", None)


@pytest.fixture(autouse=True, scope="session")
def no_metric_networks() -> Iterator[None]:
    """Choose metrics as where the extra ``metrics`` is not installed: fast, the same everywhere."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (effnet, stlpips):
            patch.setattr(module, "installed", lambda: False)
        yield


@pytest.fixture(autouse=True)
def loggers() -> Iterator[None]:
    """The command line sets handlers: take them away again."""
    before = {name: logging.getLogger(name).handlers for name in LOGGERS}
    yield
    for name, handlers in before.items():
        logging.getLogger(name).handlers = handlers
        logging.getLogger(name).setLevel(logging.NOTSET)


def invoke(*args: object) -> Result:
    """Run a command in this process; errors come back in ``result.exception``."""
    return CliRunner().invoke(cli, [str(arg) for arg in args], standalone_mode=False)


SMALL = ("--count", 6, "--held-out", 6, "--batch", 3)


@pytest.fixture(scope="session")
def calibrated_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny checkpoint, its tokenizer and everything calibrate wrote."""
    folder = tmp_path_factory.mktemp("calibrated")
    result = invoke("calibrate", write_tiny(folder), "-q", *SMALL)
    assert result.exception is None and result.output == "", result
    return folder


@pytest.fixture
def calibrated(calibrated_once: Path, tmp_path: Path) -> Path:
    """The checkpoint in a copy of that folder, the test's own."""
    shutil.copytree(calibrated_once, tmp_path / "model")
    return tmp_path / "model" / "var_tiny.pth"


def wrapped(name: str) -> str:
    """The published name of a tokenizer tensor: every convolution and norm is wrapped."""
    module, _, leaf = name.rpartition(".")
    return f"{module}.{'norm' if 'norm' in module.rsplit('.', 1)[-1] else 'conv'}.{leaf}"


def infinity_states(
    depth: int = 4,
    width: int = 32,
    heads: int = 2,
    chunks: int = 2,
    bits: int = 4,
    patchify: bool = False,
    text_width: int = 24,
    text_length: int = 12,
    shared_adaln: bool = True,
    seed: int = 0,
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """State dicts of a random Infinity and of its tokenizer, in the published names."""
    config = InfinityConfig(
        depth=depth,
        chunks=(depth // chunks,) * chunks,
        width=width,
        heads=heads,
        hidden=2 * width,
        bits=4 * bits if patchify else bits,
        text_width=text_width,
        text_length=text_length,
        pool_heads=2,
        levels=15,
        shared_adaln=shared_adaln,
        cross_gamma=False,
    )
    transformer = random_state(InfinityTransformer(config), seed)
    transformer = {
        name: torch.zeros_like(tensor) if "zero_k_bias" in name else tensor
        for name, tensor in transformer.items()
    }
    layout = VQVAEConfig(
        vocabulary=0,
        z_channels=bits,
        stem=32,
        channels=(32, 64),
        encoder_blocks=1,
        decoder_blocks=2,
        attention_levels=(),
        middle_attention=False,
        phis=0,
        sharing="none",
    )
    tokenizer = {wrapped(n): t for n, t in random_state(BSQVAE(layout), seed + 1).items()}
    mask = 2 ** torch.arange(bits - 1, -1, -1)
    return transformer, tokenizer | {"quantizer.lfq.mask": mask, "quantize.lfq.mask": mask}


def tiny_infinity(options: dict | None = None, **shape: int | bool) -> Infinity:
    """A random Infinity whose default size is 0.06M."""
    transformer, tokenizer = infinity_states(**shape)
    options = {"size": "0.06M"} | (options or {})
    device = torch.device("cpu")
    return Infinity.from_tensors(transformer, tokenizer, device, torch.float32, options)


def prompts(lengths: tuple[int, ...], width: int = 24, seed: int = 3) -> dict[str, torch.Tensor]:
    """Random text features with their mask; what lies in the padding must not matter."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.full((len(lengths), max(lengths) + 1, width), torch.nan)
    mask = torch.zeros(text.shape[:2], dtype=torch.bool)
    for row, length in enumerate(lengths):
        text[row, :length] = torch.randn(length, width, generator=generator)
        mask[row, :length] = True
    return {"text": text, "mask": mask}


def golden(case: str, folder: Path) -> dict:
    """Materialise a golden case: its manifest, or skip where the cases are not at hand."""
    script = SHARED / "golden/materialize.py"
    if not script.exists():
        pytest.skip("golden cases are not at hand (../shared/golden)")
    subprocess.run(
        [sys.executable, str(script), case, str(folder)], check=True, capture_output=True
    )
    return json.loads((SHARED / "golden" / case / "manifest.json").read_text())


def some_figures(**changes: Any) -> Figures:
    """Figures of a plan that is twice as fast and loses nothing, but for the ``changes``."""
    nothing = Interval(0.0, 0.0, 0.0)
    made = Figures(
        metric="agreement",
        images=8,
        batch=2,
        score=Interval(1.0, 1.0, 1.0),
        loss=nothing,
        smooth_loss=nothing,
        psnr=Interval(30.0, 29.0, 31.0),
        ssim=Interval(0.9, 0.8, 1.0),
        transformer_ms=8.0,
        exact_transformer_ms=16.0,
        loop_ms=10.0,
        decode_ms=10.0,
        total_ms=20.0,
        exact_loop_ms=20.0,
        exact_total_ms=30.0,
        loop_ci95=(9.0, 11.0),
        total_ci95=(19.0, 21.0),
        speedup_loop=Interval(2.0, 1.9, 2.1),
        speedup_total=Interval(1.5, 1.4, 1.6),
        scale_ms=(1.0, 2.0, 3.0, 4.0),
        flops=1e6,
    )
    return replace(made, **changes)


def no_report(path: Path, *_: Any) -> None:
    """Drawing takes longer than all the rest of a small calibration."""
    path.write_text("x")


def small_job(
    folder: Path,
    pipeline: Pipeline,
    quality: Any = None,
    inputs: Inputs | None = None,
    tools: Tools | None = None,
    **changes: Any,
) -> CalibrationJob:
    """A calibration of a tiny model of labels, on a few images, that writes into a folder."""
    model = pipeline.model
    settings = Settings(
        max_loss=0.1, batch=2, rank_images=3, repeats=1, quiet=True, held_out=8, seconds=300.0
    )
    labels = range(model.info.classes)
    materials = Materials(
        inputs or balanced_labels(model, 6, seed=0),
        supply("labels", labels, "race", 0),
        supply("labels", labels, "proof", 0),
        pipeline.sampling(),
        quality or Likeness(),
    )
    return CalibrationJob(
        pipeline,
        materials,
        replace(settings, **changes),
        Outputs.beside(folder / "m.pth"),
        tools=tools or Tools(report=no_report),
    )
