"""Text-to-image training, tiny, in seconds.

pytest tests/training/test_scenes_training.py
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from stagevar_probe.datasets.scenes import VOCABULARY, training_set
from stagevar_runtime.errors import StagevarError
from stagevar_runtime.families.tokenizers.bsq_vae import BSQVAE
from stagevar_runtime.loading import load
from stagevar_runtime.loop import engine
from stagevar_runtime.text.words import WordEncoder
from training import products
from training.products import rounded
from training.scenes.export import export, restore
from training.scenes.fit import FitPlan, fit, losses_by_scale
from training.scenes.settings import (
    BITS,
    SIZES,
    TEXT_LENGTH,
    TEXT_WIDTH,
    TOKENIZER,
    transformer_config,
)
from training.scenes.tokenizer import DECODER, TokenizerPlan, encode, quantize, train_tokenizer
from training.scenes.transformer import (
    TextToImage,
    importance,
    parameters_by_use,
    some_tokens,
    teacher,
)
from training.state import Interrupted

CAPTIONS = training_set(3, seed=3)[1]


def tiny(seed: int = 0) -> tuple[BSQVAE, TextToImage]:
    torch.manual_seed(seed)
    vae = BSQVAE(TOKENIZER).eval()
    words = WordEncoder(VOCABULARY, TEXT_LENGTH, TEXT_WIDTH)
    model = TextToImage(transformer_config(64, 2), words, SIZES)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        for parameter in (*model.parameters(), *vae.parameters()):
            parameter.copy_(parameter.half())
    return vae, model


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory):
    vae, model = tiny()
    folder = tmp_path_factory.mktemp("scenes")
    paths = export(model.state_dict(), vae.state_dict(), folder)
    return vae, model, paths, load(paths[0], device="cpu", profile=None)


def test_teacher_forcing_is_what_the_runtime_computes(exported, monkeypatch) -> None:
    monkeypatch.setattr(products, "rounded", lambda: torch.float32)
    vae, model, _, pipeline = exported
    features = torch.randn(3, BITS, 16, 16)
    inputs, bits = teacher(vae, features, SIZES, len(SIZES), None)
    ids, mask = model.words.numbered(CAPTIONS)
    with torch.no_grad():
        none = torch.zeros(3, dtype=torch.bool)
        cond, null = (model(ids, mask, dropped, inputs).flatten(2) for dropped in (none, ~none))
    conditioning = pipeline.model.condition(**pipeline.encode(CAPTIONS))
    parts = bits.split([h * w for h, w in SIZES], 1)
    logits = torch.cat(engine.replay(pipeline.model, conditioning, parts).logits, 1)
    assert (logits[:3] - cond).abs().max() < 1e-4
    assert (logits[3:] - null).abs().max() < 1e-4
    assert (logits[:3] - logits[3:]).abs().max() > 1e-2  # the text is heard


def test_a_prefix_is_the_beginning_of_the_whole(exported) -> None:
    vae, model, *_ = exported
    features = torch.randn(2, BITS, 16, 16)
    ids, mask = model.words.numbered(CAPTIONS[:2])
    none = torch.zeros(2, dtype=torch.bool)
    with torch.no_grad():
        whole = model(ids, mask, none, teacher(vae, features, SIZES, 10, None)[0])
        part = model(ids, mask, none, teacher(vae, features, SIZES, 7, None)[0])
    assert part.shape[1] == 155 and torch.allclose(whole[:, :155], part, atol=1e-5)


def test_tokens_that_are_kept_stand_at_their_own_places(exported) -> None:
    vae, model, *_ = exported
    ids, mask = model.words.numbered(CAPTIONS[:2])
    none, inputs = (
        torch.zeros(2, dtype=torch.bool),
        teacher(vae, torch.randn(2, BITS, 16, 16), SIZES, 10, None)[0],
    )
    every = torch.arange(680).expand(2, -1)
    with torch.no_grad():
        whole = model(ids, mask, none, inputs)
        same = model(ids, mask, none, inputs, every)
        first = model(ids, mask, none, inputs, every[:, :424])  # the last scale left out
        mixed = torch.cat(
            [every[:, :424], torch.randperm(256)[:90].sort().values.expand(2, -1) + 424], 1
        )
        some = model(ids, mask, none, inputs, mixed)
    assert torch.allclose(whole, same, atol=1e-5)
    assert torch.allclose(whole[:, :424], first, atol=1e-5)
    assert some.shape[1] == 424 + 90 and torch.allclose(whole[:, :424], some[:, :424], atol=1e-5)
    assert not torch.allclose(
        whole[:, mixed[0, 424:]], some[:, 424:], atol=1e-5
    )  # fewer to look at


def test_things_count_more_than_the_ground_and_are_drawn_more() -> None:
    features = 0.1 * torch.randn(4, BITS, 16, 16)
    features[:, :, 4:8, 4:8] += 2.0
    weights = importance(features, SIZES)
    lengths = [h * w for h, w in SIZES]
    for part in weights.split(lengths, 1):
        assert torch.allclose(part.mean(1), torch.ones(4), atol=1e-4) and (part >= 0.2).all()
    thing = torch.zeros(16, 16, dtype=torch.bool)
    thing[4:8, 4:8] = True
    assert weights[:, -256:][:, thing.flatten()].min() > 5
    kept = some_tokens(weights, lengths, 0.45)
    assert (kept.diff(dim=1) > 0).all() and kept.max() < 680
    assert kept.shape[1] == 255 + round(0.45 * 169) + round(0.45 * 256)
    assert torch.equal(kept[:, :255], torch.arange(255).expand(4, -1))
    drawn = torch.zeros(4, 680).scatter_(1, kept, 1.0)[:, -256:]
    assert drawn[:, thing.flatten()].mean() > 0.9


def test_small_scales_lose_the_same_whichever_tokens_of_large_ones_are_run(exported) -> None:
    vae, model, *_ = exported
    ids, mask = model.words.numbered(CAPTIONS)
    plan, found = FitPlan(text_dropout=0.0), []
    for whole in (True, False):
        torch.manual_seed(0)
        features = torch.randn(3, BITS, 16, 16)
        with torch.no_grad():
            found.append(losses_by_scale(model, vae, features, ids, mask, plan, 10, whole))
    assert found[0].shape == (10,) and torch.allclose(found[0][:8], found[1][:8], atol=1e-5)
    assert not torch.allclose(found[0][8:], found[1][8:], atol=1e-5)


def test_targets_are_the_tokenizers_bits(exported) -> None:
    vae, *_ = exported
    features = torch.randn(2, BITS, 16, 16)
    _, bits = teacher(vae, features, SIZES, 10, None)
    canvas = torch.zeros_like(features)
    for (h, w), part in zip(SIZES, bits.split([h * w for h, w in SIZES], 1), strict=True):
        codes = vae.codes(part).mT.unflatten(2, (h, w))
        canvas = vae.accumulate(canvas, codes)
    assert torch.allclose(canvas, quantize(vae, features, SIZES), atol=1e-5)


def test_flipped_bits_change_later_targets(exported) -> None:
    vae, *_ = exported
    features = torch.randn(2, BITS, 16, 16)
    clean = teacher(vae, features, SIZES, 10, None)[1]
    torch.manual_seed(0)
    flipped = teacher(vae, features, SIZES, 10, torch.full((2,), 0.3))[1]
    assert torch.equal(clean[:, :1], flipped[:, :1])
    assert (clean[:, 1:] != flipped[:, 1:]).float().mean() > 0.05


def test_what_ships_knows_its_schedule_metric_and_prompts(exported) -> None:
    _, _, paths, pipeline = exported
    assert [scale.height for scale in pipeline.model.scales()] == [h for h, _ in SIZES]
    assert pipeline.settings["metric"] == "scenes"
    sampling = pipeline.sampling()
    assert (sampling.guidance, sampling.temperature, sampling.top_p) == (2.5, 1.0, 0.0)
    rows = [json.loads(line) for line in paths[3].read_text().splitlines()]
    assert {row["split"] for row in rows} == {"calibration", "held_out"}
    with pytest.raises(StagevarError, match="draws 16x16 tokens only"):
        pipeline.model.scales(size="1M")
    with pytest.raises(StagevarError, match="circle"):
        pipeline.generate(prompts=["a red circel"])


@pytest.mark.parametrize("text", ["2x2 4x4", "1x1 0x2", "1x1 two", "64"])
def test_schedules_that_are_none(exported, text: str) -> None:
    with pytest.raises(StagevarError, match="from 1x1"):
        load(exported[2][0], device="cpu", profile=None, options={"schedule": text})


def test_training_goes_on_from_what_ships(exported) -> None:
    _, model, paths, _ = exported
    _, other = tiny(seed=5)
    restore(other, paths[0].parent)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def test_training_lowers_the_loss_and_resumes(tmp_path: Path) -> None:
    vae, _ = tiny()
    torch.manual_seed(1)
    words = WordEncoder(VOCABULARY, TEXT_LENGTH, TEXT_WIDTH)
    model = TextToImage(transformer_config(32, 1), words, SIZES)
    pixels, captions = training_set(24, seed=0)
    features, seen = encode(vae, pixels, "cpu"), []
    plan = FitPlan(minutes=0.03, prefixes=((4, 8, 1.0),), learning_rate=5e-3, warmup=5, log_every=3)

    def run(minutes: float) -> None:
        fit(
            model,
            vae,
            features,
            captions,
            FitPlan(**{**plan.__dict__, "minutes": minutes}),
            tmp_path / "t.pt",
            "cpu",
            seen.append,
        )

    run(0.1)
    run(0.15)
    steps = [record["step"] for record in seen]
    assert steps == sorted(set(steps)) and len(steps) >= 2
    assert seen[-1]["loss"] < seen[0]["loss"] - 0.05


@pytest.mark.parametrize(("share", "low", "high"), [(0.0, 0.0, 0.0), (0.5, 0.3, 0.7)])
def test_a_share_of_the_pictures_is_shown_with_anothers_caption(
    tmp_path: Path, monkeypatch, share: float, low: float, high: float
) -> None:
    vae, model = tiny()
    captions = training_set(40, seed=4)[1]
    ids = model.words.numbered(captions)[0]
    own: list[bool] = []

    def watch(model, tokenizer, features, seen, known, *_args, **_kw) -> torch.Tensor:
        for number, text in zip(features[:, 0, 0, 0].round().int().tolist(), seen, strict=True):
            own.append(torch.equal(text, ids[number, : len(text)]))
        return model.words.embedding.weight.sum().expand(4)

    monkeypatch.setattr("training.scenes.fit.losses_by_scale", watch)
    plan = FitPlan(minutes=10, prefixes=((4, 16, 1.0),), wrong_captions=share)
    features = torch.arange(40.0)[:, None, None, None].expand(-1, BITS, 16, 16)
    with pytest.raises(Interrupted):
        fit(
            *(model, vae, features, captions, plan, tmp_path / "fit.pt", "cpu", [].append),
            stop=lambda: len(own) >= 160,
        )
    assert low <= 1 - sum(own) / len(own) <= high


def test_decoder_alone_leaves_tokens_as_they_were(tmp_path: Path) -> None:
    pixels, _ = training_set(8, seed=0)
    small = {"minutes": 0.02, "batch": 2}
    plan = TokenizerPlan(**small)
    start = train_tokenizer(
        TOKENIZER, pixels, SIZES, plan, tmp_path / "a.pt", "cpu", lambda record: None
    )
    after = train_tokenizer(
        TOKENIZER,
        pixels,
        SIZES,
        TokenizerPlan(**{**DECODER.__dict__, **small}),
        tmp_path / "b.pt",
        "cpu",
        lambda record: None,
        start=start,
    )
    assert torch.equal(encode(start, pixels, "cpu"), encode(after, pixels, "cpu"))
    canvas = torch.randn(1, BITS, 16, 16)
    assert not torch.equal(start.decode(canvas), after.decode(canvas))


@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-6), (rounded(), 1e-2)])
def test_products_have_the_right_gradients(monkeypatch, dtype: torch.dtype, near: float) -> None:
    monkeypatch.setattr(products, "rounded", lambda: dtype)
    torch.manual_seed(0)
    x, w, b = torch.randn(2, 5, 7), torch.randn(3, 7), torch.randn(3)
    ours = [t.clone().requires_grad_() for t in (x, w, b)]
    theirs = [t.clone().requires_grad_() for t in (x, w, b)]
    products.linear(*ours).square().sum().backward()
    torch.nn.functional.linear(*theirs).square().sum().backward()
    for one, two in zip(ours, theirs, strict=True):
        assert one.grad.dtype == torch.float32
        assert (one.grad - two.grad).norm() < near * two.grad.norm()


def test_every_parameter_has_one_optimizer() -> None:
    _, model = tiny()
    hidden, others = parameters_by_use(model)
    names = {id(p): n for n, p in model.named_parameters()}
    assert len(hidden) + len(others) == len(names) == len({id(p) for p in (*hidden, *others)})
    inner = {names[id(p)] for p in hidden}
    assert "transformer.blocks.0.sa.mat_qkv.weight" in inner
    assert not any(part in name for name in inner for part in ("head.", "embed", "position"))
