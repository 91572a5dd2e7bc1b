"""Captioned emoji from packages made here, in seconds.

pytest tests/training/test_emoji.py
"""

from __future__ import annotations

import io
import json
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from emoji_fixtures import fake_packages, pack, webp
from PIL import Image

from stagevar_runtime.text.words import split_words
from training.data import DataError, emoji, packages, shard
from training.data.styles import STYLES, plain_code, plain_label

LICENCES = {"MIT", "Apache-2.0", "CC-BY-4.0"}


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fake_packages(tmp_path_factory.mktemp("npm"))


@pytest.fixture(scope="module")
def built(archives: Path) -> Path:
    pytest.importorskip("resvg_py")
    path = archives / "emoji.zip"
    emoji.build(path, archives)
    return path


def test_the_index_has_a_line_a_picture(built: Path) -> None:
    with zipfile.ZipFile(built) as file:
        rows = [json.loads(line) for line in file.read("index.jsonl").splitlines()]
        assert {i.compress_type for i in file.infolist()} == {zipfile.ZIP_STORED}
        assert file.namelist() == [*(r["file"] for r in rows), "index.jsonl", "about.json"]
    assert [row["file"] for row in rows] == [f"{i + 1:05d}.webp" for i in range(36)]
    assert Counter(row["style"] for row in rows) == dict.fromkeys(STYLES, 6)
    assert rows[3] | {"split": ""} == {
        "file": "00004.webp",
        "prompt": "red apple, noto style",
        "concept": "1f34e",
        "label": "red apple",
        "style": "noto",
        "group": "food-drink",
        "split": "",
    }
    labels = {row["label"] for row in rows}
    assert labels == {"red apple", "green apple", "red heart", "woman's hat", "pinata", "elf"}


def test_pictures_show_the_art_in_the_middle_of_a_light_ground(built: Path) -> None:
    with zipfile.ZipFile(built) as file:
        for row in map(json.loads, file.read("index.jsonl").splitlines()):
            with Image.open(io.BytesIO(file.read(row["file"]))) as picture:
                assert (picture.format, picture.mode, picture.size) == ("WEBP", "RGB", (128, 128))
                pixels = np.asarray(picture).astype(int)
            border = np.concatenate([pixels[:5].reshape(-1, 3), pixels[:, -5:].reshape(-1, 3)])
            assert border.min() > 225 and np.ptp(border) < 20
            wide = row["label"] == "red heart" and row["style"] in ("noto", "blob", "twemoji")
            center = pixels[64, 40 if wide else 64]
            assert center[0] > 120 and center[1:].max() < 70, row["prompt"]


def test_gradients_are_rendered(built: Path) -> None:
    with zipfile.ZipFile(built) as file, Image.open(io.BytesIO(file.read("00003.webp"))) as picture:
        red = np.asarray(picture)[:, 64, 0].astype(int)
    assert red[16] > red[64] > red[112] and red[16] - red[112] > 100


def test_white_art_stands_on_a_darker_ground() -> None:
    image, buffer = Image.new("RGBA", (64, 64), (250, 250, 250, 255)), io.BytesIO()
    image.save(buffer, "WEBP", lossless=True)
    assert emoji.draw(buffer.getvalue(), 255).getpixel((0, 0)) == (emoji.DARKER,) * 3
    assert emoji.draw(webp(), 255).getpixel((0, 0)) == (255, 255, 255)


def test_the_zip_is_the_same_every_time(built: Path, archives: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.zip"
    about = emoji.build(again, archives)
    assert again.read_bytes() == built.read_bytes()
    assert about["counts"]["pictures"] == 36 and about["counts"]["concepts"] == 6
    assert about["side"] == 128 and about["seed"] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["again.zip"]


def test_splits_have_their_shares_and_hold_out_whole_concepts() -> None:
    codes = [f"1f{i:04x}" for i in range(4000)]
    splits = {code: [emoji.split_of(code, style, 0) for style in STYLES] for code in codes}
    whole = [code for code, row in splits.items() if "held_out_concept" in row]
    assert all(set(splits[code]) == {"held_out_concept"} for code in whole)
    assert 0.04 < len(whole) / len(codes) < 0.06
    others = Counter(split for code in codes if code not in whole for split in splits[code])
    assert set(others) == {"train", "held_out_pair"}
    assert 0.09 < others["held_out_pair"] / others.total() < 0.11
    assert splits == {c: [emoji.split_of(c, style, 0) for style in STYLES] for c in codes}
    assert splits != {c: [emoji.split_of(c, style, 1) for style in STYLES] for c in codes}


def test_every_package_has_a_free_licence_and_is_in_the_notice() -> None:
    assert {package.licence for package in packages.PACKAGES} == LICENCES
    notice = (Path(__file__).parents[2] / "NOTICE").read_text()
    for package in packages.PACKAGES:
        assert f"{package.name} {package.version}" in notice


def test_another_licence_is_refused(tmp_path: Path) -> None:
    pack(tmp_path, packages.TWEMOJI, {}, licence="CC-BY-SA-4.0")
    with pytest.raises(DataError, match=r"CC-BY-SA-4\.0.*expected 'CC-BY-4\.0'"):
        packages.read(packages.TWEMOJI, tmp_path, lambda name: True)


def test_a_damaged_archive_says_so(tmp_path: Path) -> None:
    (tmp_path / packages.NOTO.file).write_bytes(b"no archive")
    with pytest.raises(DataError, match="delete it and try again"):
        packages.read(packages.NOTO, tmp_path, lambda name: True)


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("training.data.packages.shutil.which", lambda name: None)
    arguments = ["--output", str(tmp_path / "e.zip"), "--packages", str(tmp_path / "npm")]
    assert shard.main([*arguments, "--scenes", "2"]) == 1
    assert "npm is not installed" in capsys.readouterr().err
    monkeypatch.setitem(__import__("sys").modules, "resvg_py", None)
    with pytest.raises(DataError, match=r"pip install 'stagevar\[training\]'"):
        emoji.rasterize(b"<svg/>", 8)
    assert not (tmp_path / "e.zip").exists()


@pytest.mark.parametrize(
    ("label", "plain"),
    [
        ("woman\N{RIGHT SINGLE QUOTATION MARK}s hat", "woman's hat"),
        ("piñata", "pinata"),
        ("keycap: #", "keycap number sign"),
        ("keycap: *", "keycap asterisk"),
        ("T-Rex", "t-rex"),
        (
            "Japanese \N{LEFT DOUBLE QUOTATION MARK}here\N{RIGHT DOUBLE QUOTATION MARK} button",
            "japanese here button",
        ),
        ("A button (blood type)", "a button blood type"),
    ],
)
def test_labels_become_words_that_the_encoder_reads(label: str, plain: str) -> None:
    assert plain_label(label) == plain
    assert " ".join(split_words(plain)) == plain


def test_codes_lose_variation_selectors() -> None:
    assert plain_code("2764-FE0F-200D-1F525") == "2764-200d-1f525"


def test_a_shard_holds_both_and_is_an_archive_to_compare_with(
    archives: Path, tmp_path: Path, capsys
) -> None:
    pytest.importorskip("resvg_py")
    path = tmp_path / "p.zip"
    options = ["--packages", str(archives), "--scenes", "30", "--side", "64", "--concepts", "3"]
    assert shard.main(["--output", str(path), *options]) == 0
    assert "30 scenes of" in capsys.readouterr().out
    read = shard.read_shard(path)
    assert read.emoji.side == 64 and len({p.concept for p in read.emoji.pictures}) == 3
    assert read.emoji.read(read.emoji.pictures[:2]).shape == (2, 3, 64, 64)
    assert len(read.scenes) == 30 and "style" in read.words()


def test_npm_fetches_once_and_its_errors_are_told(tmp_path: Path, monkeypatch) -> None:
    npm = tmp_path / "npm"
    npm.write_text(
        '#!/bin/sh\n[ "$2" = emojibase-data@17.0.0 ] || { echo "code E404" >&2; exit 1; }\n'
        f'echo "$2" >> {tmp_path}/calls; echo archive > "$4/emojibase-data-17.0.0.tgz"\n'
    )
    npm.chmod(0o755)
    monkeypatch.setattr("training.data.packages.shutil.which", lambda name: str(npm))
    for _ in range(2):
        assert packages.fetch(packages.LABELS, tmp_path / "cache").read_text() == "archive\n"
    assert (tmp_path / "calls").read_text() == "emojibase-data@17.0.0\n"
    with pytest.raises(DataError, match=r"pack fluentui-emoji@1\.3\.0 failed: code E404"):
        packages.fetch(packages.FLUENT, tmp_path / "cache")
    assert [p.name for p in (tmp_path / "cache").iterdir()] == ["emojibase-data-17.0.0.tgz"]
