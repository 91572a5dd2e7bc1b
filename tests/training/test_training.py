"""The training code on random data, in seconds: pytest tests/training"""

import gzip
import struct

import pytest
import torch

from stagevar_probe.metrics.classifier import SmallClassifier, load_scorer, save_scorer
from stagevar_probe.metrics.images import kid
from stagevar_runtime.errors import CalibrationError, CheckpointError
from stagevar_runtime.families.tokenizers.config import VQVAEConfig
from stagevar_runtime.families.tokenizers.vqvae import VQVAE
from training.classify import ClassifierPlan, train_classifier
from training.data import DataError
from training.data.fashion import Images, load_fashion
from training.export import export_tokenizer, export_transformer, round_to_half
from training.fit import FitPlan, train_transformer
from training.sample import mask_logits, ramp, sample
from training.state import Interrupted
from training.tokenizer import TokenizerPlan, restart_dead_codes, train_tokenizer
from training.tokens import decode_tokens, encode_tokens, teacher_inputs
from training.train_fashion import main
from training.transformer import Transformer, TransformerConfig

SIDES = (1, 2, 4)
SIZES = [(s, s) for s in SIDES]
TOKENS = 21
VAE = VQVAEConfig(
    vocabulary=12,
    z_channels=4,
    stem=32,
    channels=(32, 32),
    encoder_blocks=1,
    decoder_blocks=1,
    attention_levels=(),
)
VAR = TransformerConfig(SIDES, 12, 4, classes=3, width=16, depth=2, heads=2)


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (8, 1, 8, 8), generator=generator).to(torch.uint8)
    return Images(pixels, torch.arange(8) % 3)


def stop_after(steps):
    """A stop condition that holds from the given question on."""
    asked = iter(range(1000))
    return lambda: next(asked) >= steps


def ignore(record):
    pass


def test_missing_data_says_what_to_install(tmp_path, capsys):
    with pytest.raises(DataError, match="apt-get install dataset-fashion-mnist"):
        load_fashion("train", tmp_path)
    arguments = ["--data", tmp_path, "--runs", tmp_path / "runs", "--stages", "tokenizer"]
    assert main([str(argument) for argument in arguments]) == 1
    assert "apt-get install dataset-fashion-mnist" in capsys.readouterr().err


def write_idx(path, values):
    header = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
    with gzip.open(path, "wb") as file:
        file.write(header + values.numpy().tobytes())


def test_images_are_padded_and_a_short_file_is_refused(tmp_path):
    pixels = torch.full((2, 28, 28), 255, dtype=torch.uint8)
    write_idx(tmp_path / "t10k-images-idx3-ubyte.gz", pixels)
    write_idx(tmp_path / "t10k-labels-idx1-ubyte.gz", torch.tensor([3, 9], dtype=torch.uint8))
    data = load_fashion("test", tmp_path)
    batch = data.batch(slice(0, 2))
    assert batch.shape == (2, 3, 32, 32) and data.labels.tolist() == [3, 9]
    assert batch[:, :, 2:30, 2:30].min() == 1 and batch[:, :, :2].max() == 0
    whole = gzip.decompress((tmp_path / "t10k-images-idx3-ubyte.gz").read_bytes())
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(whole[:-1]))
    with pytest.raises(DataError, match="cut short"):
        load_fashion("test", tmp_path)


def test_tokenizer_resumes_to_the_same_weights(tmp_path, images):
    plan = TokenizerPlan(steps=2, batch=4, restart_every=1, restart_until=1.0)

    def train(name, **options):
        path = tmp_path / f"{name}.pt"
        return train_tokenizer(VAE, images, SIZES, plan, path, "cpu", ignore, **options)

    whole, hits = train("whole")
    with pytest.raises(Interrupted):
        train("parts", stop=stop_after(1))
    parts, _ = train("parts")
    assert hits.shape == (3, 12)
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], tensor, atol=1e-6, rtol=0, msg=name)


def test_classifier_resumes_to_the_same_weights(tmp_path, images):
    big = Images(torch.nn.functional.pad(images.pixels, [12] * 4), images.labels)
    plan = ClassifierPlan(epochs=1, batch=4)
    dark = Images(big.pixels // 2, big.labels)

    def train(name, **options):
        path = tmp_path / f"{name}.pt"
        return train_classifier(big, plan, path, "cpu", ignore, dark, **options)

    whole = train("whole")
    with pytest.raises(Interrupted):
        train("parts", stop=stop_after(1))
    parts = train("parts")
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], tensor, atol=1e-6, rtol=0, msg=name)


def test_transformer_resumes_to_the_same_weights(tmp_path, images):
    torch.manual_seed(0)
    tokenizer = VQVAE(VAE).eval().requires_grad_(False)
    tokens = encode_tokens(tokenizer, images, SIZES, tmp_path / "tokens.pt", "cpu", batch=3)
    assert tokens.shape == (8, TOKENS)
    pixels = decode_tokens(tokenizer, tokens, SIZES, "cpu", batch=3)
    assert pixels.shape == (8, 1, 8, 8) and pixels.dtype == torch.uint8
    plan = FitPlan(steps=3, batch=4, warmup=1)
    exported = []

    def train(name, **options):
        path = tmp_path / f"{name}.pt"
        arguments = (VAR, tokenizer, tokens, images.labels, SIZES, plan, path, "cpu", ignore)
        return train_transformer(*arguments, **options)

    whole = train("whole")
    with pytest.raises(Interrupted):
        train("parts", stop=stop_after(1))
    parts = train("parts", save_every_s=0, on_save=lambda state, step: exported.append(step))
    assert exported == [2, 3]
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, atol=1e-6, rtol=0, msg=name)


def test_dead_codes_move_onto_features():
    model = VQVAE(VAE)
    usage = torch.full((12,), 1 / 11)
    usage[5] = 0
    features = torch.full((3, 4), 7.0)
    assert restart_dead_codes(model, usage, features, torch.Generator()) == 1
    assert model.quantize.embedding.weight[5].tolist() == [7.0] * 4 and usage[5] > 0


def test_exports_load_under_the_published_names(tmp_path):
    torch.manual_seed(0)
    tokenizer, transformer = VQVAE(VAE).eval(), Transformer(VAR).eval()
    round_to_half(tokenizer)
    path = export_tokenizer(tokenizer.state_dict(), torch.zeros(3, 12), tmp_path)
    saved = torch.load(path, weights_only=True)
    assert saved["quantize.ema_vocab_hit_SV"].shape == (3, 12)
    loaded = VQVAE.from_tensors(saved)
    canvas = torch.randn(1, 4, 4, 4)
    torch.testing.assert_close(loaded.decode(canvas), tokenizer.decode(canvas))
    path = export_transformer(transformer.state_dict(), tmp_path)
    saved = torch.load(path, weights_only=True)
    assert saved["lvl_1L"].dtype == torch.int64 and saved["head.weight"].dtype == torch.float16
    transformer.load_state_dict(saved, strict=True)


def test_sampling_loop_agrees_with_teacher_forcing():
    torch.manual_seed(0)
    tokenizer, transformer = VQVAE(VAE).eval(), Transformer(VAR).eval()
    labels = torch.tensor([0, 2])
    image = sample(transformer, tokenizer, labels, SIZES, [1.0] * 3, top_k=1)
    ids = torch.zeros(2, TOKENS, dtype=torch.long)  # greedy, one scale after another
    for end in (1, 5, 21):
        with torch.no_grad():
            logits = transformer(labels, teacher_inputs(tokenizer, ids, SIZES))
        ids[:, :end] = logits.argmax(-1)[:, :end]
    canvas = tokenizer.codes_to_canvas(ids.split([1, 4, 16], 1), SIZES)
    torch.testing.assert_close(image, tokenizer.decode(canvas), atol=1e-4, rtol=0)
    guided = sample(transformer, tokenizer, labels, SIZES, ramp(3.0, 3), top_p=0.9)
    assert guided.shape == image.shape and not torch.equal(guided, image)


def test_masks_keep_the_likeliest():
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log()
    assert mask_logits(logits, 2, 0.0).isfinite().tolist() == [False, False, True, True]
    assert mask_logits(logits, 0, 0.65).isfinite().tolist() == [False, False, True, True]
    assert mask_logits(logits, 0, 0.95).isfinite().all()


def test_scorer_file_round_trip(tmp_path):
    torch.manual_seed(0)
    model = SmallClassifier().eval()
    round_to_half(model)
    features = torch.rand(6, 128)
    path = tmp_path / "x.scorer.safetensors"
    save_scorer(path, model, features, [str(i) for i in range(10)], 0.5)
    scorer = load_scorer(path)
    image = torch.rand(3, 3, 32, 32)
    got, predicted = scorer.score(image, batch=2)
    torch.testing.assert_close(got, model.features(image), atol=1e-5, rtol=1e-5)
    assert torch.equal(predicted, model.logits(image).argmax(1))
    assert scorer.class_names[3] == "3" and scorer.test_accuracy == 0.5
    with pytest.raises(CheckpointError, match="cannot read the scorer"):
        load_scorer(tmp_path / "absent.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="cannot read the scorer"):
        load_scorer(tmp_path / "bad.safetensors")


def test_kernel_distance_tells_distributions_apart():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(400, 8, generator=generator) for _ in range(2))
    same, spread, _ = kid(a, b, subsets=20, subset_size=200)
    other, *_ = kid(a, b + 0.5, subsets=20, subset_size=200)
    assert abs(same) < 3 * spread and other > 10 * abs(same)
    with pytest.raises(CalibrationError, match="subset_size"):
        kid(a, b, subset_size=500)
