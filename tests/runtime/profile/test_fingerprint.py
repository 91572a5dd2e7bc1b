"""Architecture and weights hashes. Run: pytest tests/runtime/profile/test_fingerprint.py"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from stagevar_runtime.checkpoint.reader import open_checkpoint
from stagevar_runtime.errors import CheckpointError
from stagevar_runtime.profile.fingerprint import architecture_hash, weights_hash

SCHEDULES = {"256": [[1, 1], [2, 2], [16, 16]]}
SHAPES = {"head.weight": (64, 8), "head.bias": (64,)}


def architecture(**change: Any) -> str:
    given_: dict[str, Any] = {
        "family": "var",
        "config": {"depth": 2, "heads": 4},
        "shapes": SHAPES,
        "schedules": SCHEDULES,
    }
    return architecture_hash(**(given_ | change))


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "a": torch.randn(3, 5, generator=generator),
        "b": torch.randn(7, generator=generator).to(torch.bfloat16),
        "c": torch.tensor(3),
        "d": torch.tensor([True, False]),
        "e": torch.empty(0, 4),
        "f": torch.randn(4, generator=generator).to(torch.float16),
    }


def test_architecture_ignores_order_and_container() -> None:
    again = architecture(
        config={"heads": 4, "depth": 2},
        shapes={"head.bias": [64], "head.weight": torch.Size([64, 8])},
        schedules={"256": ((1, 1), (2, 2), (16, 16))},
    )
    assert again == architecture()
    assert again.startswith("sha256:") and len(again) == 7 + 64


@pytest.mark.parametrize(
    "change",
    [
        {"family": "infinity"},
        {"config": {"depth": 2, "heads": 8}},
        {"shapes": {**SHAPES, "head.bias": (65,)}},
        {"shapes": {"head.weight": (64, 8)}},
        {"schedules": {"256": [[1, 1], [2, 2], [32, 32]]}},
        {"schedules": {"512": SCHEDULES["256"]}},
    ],
)
def test_architecture_sees_every_part(change: dict[str, Any]) -> None:
    assert architecture(**change) != architecture()


def test_weights_hash_same_in_either_format(tmp_path: Path) -> None:
    torch.save(tensors(), tmp_path / "w.pth")
    save_file(tensors(), tmp_path / "w.safetensors")
    hashes = {
        weights_hash(tensors()),
        weights_hash(open_checkpoint(tmp_path / "w.pth").tensors),
        weights_hash(open_checkpoint(tmp_path / "w.safetensors").tensors),
    }
    assert len(hashes) == 1


def test_weights_hash_ignores_strides_order_and_threads() -> None:
    plain = tensors()
    other = dict(reversed(list(plain.items())))
    other["a"] = plain["a"].t().contiguous().t()
    assert not other["a"].is_contiguous()
    assert weights_hash(other, threads=1) == weights_hash(plain, threads=4)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 14), st.integers(0, 7))
def test_weights_hash_sees_every_bit(element: int, bit: int) -> None:
    changed = tensors()
    raw = changed["a"].view(torch.uint8).reshape(-1)
    raw[element * 4] ^= 1 << bit
    assert weights_hash(changed) != weights_hash(tensors())


def test_weights_hash_sees_names_dtypes_and_shapes() -> None:
    base = weights_hash({"a": torch.zeros(4)})
    assert weights_hash({"b": torch.zeros(4)}) != base
    assert weights_hash({"a": torch.zeros(4, dtype=torch.int32)}) != base
    assert weights_hash({"a": torch.zeros(2, 2)}) != base
    two = {"a": torch.zeros(1), "b": torch.ones(1)}
    assert weights_hash(two) != weights_hash({"a": torch.ones(1), "b": torch.zeros(1)})


def test_progress_ends_at_the_total() -> None:
    seen: list[tuple[int, int]] = []
    weights_hash(tensors(), progress=lambda done, total: seen.append((done, total)))
    assert len(seen) == len(tensors())
    assert seen[-1][0] == seen[-1][1] == 60 + 14 + 8 + 2 + 0 + 8


def test_sparse_tensor_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"tensor 's' is torch\.sparse_coo.*expected dense"):
        weights_hash({"s": torch.eye(3).to_sparse()})
