"""Precision: the linear layers of a scale's blocks in int8, fp8 or bfloat16.

Weights are quantised per output channel at the first use and kept beside the model's own,
activations per token at every call (:mod:`stagevar_runtime.kernels.quantised`). Residual, norms,
attention, logits and all that draws stay as they are. Low-rank layers have both halves quantised.

Where a device has no kernel that is faster, the scale runs in the model's dtype, with one warning;
``emulate`` runs the definition instead, at no gain: to measure losses for another device.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from ..errors import ProfileError
from ..kernels.linear import LowRankLayers, LowRankLinear, StandIn
from ..kernels.quantised import (
    SEVEN_BITS,
    Chain,
    Precision,
    Product,
    emulated,
    obstacle,
    prepared,
    weight_levels,
)
from ..model.protocol import ModelInfo, ScaleModel, ScaleSpec
from .low_rank import Layer

logger = logging.getLogger("stagevar_runtime")

COPIES_LIMIT = 8 * 2**30  # bytes of quantised weights on a CPU; on CUDA half of what is free
BYTES = {"int8": 1, "fp8": 1, "bfloat16": 2}


class Precisions:
    """The linear layers of a model's blocks, and what was made of them so far.

    ``layers``: those of every block, by name.
    """

    def __init__(self, layers: Sequence[Mapping[str, Layer]]) -> None:
        self.layers = layers
        self.emulate = False
        self._whole: dict[tuple[Precision, bool], dict[int, LowRankLayers]] = {}
        self._low_rank: dict[tuple[Precision, bool, int], tuple[object, dict[int, LowRankLayers]]]
        self._low_rank = {}
        self._warned: set[Precision] = set()

    def forget(self) -> None:
        """Let go of what was made: it is made again when asked for."""
        self._whole.clear()
        self._low_rank.clear()

    @property
    def nbytes(self) -> int:
        """Memory of all copies that are kept."""
        kept = [*self._whole.values(), *(made for _, made in self._low_rank.values())]
        products = {id(p): p for made in kept for block in made.values() for p in block.values()}
        return sum(p.nbytes for p in products.values() if not isinstance(p, LowRankLinear))

    def hindrance(self, kind: Precision) -> str:
        """Why scales asked to run in ``kind`` run in the model's dtype; empty if they do not."""
        if self.emulate:
            return ""
        weight = next(iter(self.layers[0].values())).weight
        copies = BYTES[kind] * sum(x.weight.numel() for own in self.layers for x in own.values())
        limit = COPIES_LIMIT
        if weight.device.type == "cuda":
            limit = torch.cuda.mem_get_info(weight.device)[0] // 2
        if (kind, False) not in self._whole and copies > limit:
            return f"copies of {copies / 2**30:.1f} GiB are more than {limit / 2**30:.1f} GiB"
        return obstacle(kind, weight.device, weight.dtype)

    def description(self, kind: Precision) -> str:
        """What a scale that asks for ``kind`` does, in words."""
        why = "" if self._native(kind) else self.hindrance(kind)
        if why:
            return f"not {kind}: {why}"
        if self.emulate:
            return f"{kind} emulated"
        seven = kind == "int8" and weight_levels() == SEVEN_BITS
        return "int8, weights in 7 bits" if seven else kind

    def at(
        self, kind: Precision, narrow: Mapping[int, LowRankLayers]
    ) -> Mapping[int, LowRankLayers]:
        """What stands in for the layers of every block; made at the first call, then kept.

        ``narrow``: low-rank layers, to be quantised in place of whole ones.
        """
        if self._native(kind):
            return narrow
        why = self.hindrance(kind)
        if why:
            if kind not in self._warned:
                self._warned.add(kind)
                logger.warning("scales that ask for %s run in the model's dtype: %s", kind, why)
            return narrow
        whole, key = self._made(kind), (kind, self.emulate, id(narrow))
        if not narrow:
            return whole
        if key not in self._low_rank:
            made: dict[int, LowRankLayers] = {}
            for i, layers in whole.items():
                own = narrow.get(i, {})
                made[i] = layers | {name: self._chain(x, kind) for name, x in own.items()}  # type: ignore[operator]
            self._low_rank[key] = narrow, made  # kept alive: its id is the key
        return self._low_rank[key][1]

    def _native(self, kind: Precision) -> bool:
        """Whether the model is in ``kind`` as it is."""
        weight = next(iter(self.layers[0].values())).weight
        return str(weight.dtype) == f"torch.{kind}"

    def _made(self, kind: Precision) -> dict[int, LowRankLayers]:
        key = kind, self.emulate
        if key not in self._whole:
            self._whole[key] = {
                i: {name: self._product(x.weight, x.bias, kind) for name, x in layers.items()}
                for i, layers in enumerate(self.layers)
            }
        return self._whole[key]

    def _product(self, weight: torch.Tensor, bias: torch.Tensor | None, kind: Precision) -> Product:
        with torch.inference_mode(False), torch.no_grad():
            make = emulated if self.emulate else prepared
            return make(weight, bias, kind)

    def _chain(self, layer: StandIn, kind: Precision) -> StandIn:
        if not isinstance(layer, LowRankLinear):
            return layer
        return Chain(
            self._product(layer.down, None, kind), self._product(layer.up, layer.bias, kind)
        )


@dataclass(frozen=True)
class PrecisionStep:
    """Run the products of a scale in ``kind``."""

    kind: Precision

    def stand_ins(
        self, model: ScaleModel, scale: int, before: Mapping[int, LowRankLayers]
    ) -> Mapping[int, LowRankLayers]:
        """The blocks' layers in fewer bits, those of low rank among them."""
        return precisions_of(model).at(self.kind, before)

    def description(self, model: ScaleModel) -> str:
        """The kind, and if it is emulated or not run at all."""
        return precisions_of(model).description(self.kind)


def resolve(kind: Precision, info: ModelInfo, scale: ScaleSpec) -> PrecisionStep:
    """The step of one scale.

    Raises:
        ProfileError: the family's layers cannot be replaced.
    """
    if not info.layers:
        raise ProfileError(
            f"scale {scale.index} asks for {kind} products, which the {info.family} family does "
            "not have. Leave precision out"
        )
    return PrecisionStep(kind)


def forget(model: ScaleModel) -> None:
    """Let go of the copies made for a model's earlier plans."""
    if isinstance(model.precisions, Precisions):
        model.precisions.forget()


def precisions_of(model: ScaleModel) -> Precisions:
    """Those of a model whose info names layers: no plan asks others for them."""
    found = model.precisions
    assert isinstance(found, Precisions), "this family's layers cannot be quantised"
    return found


def dtype_notes(device: torch.device, dtype: torch.dtype) -> list[str]:
    """Says so where a CPU computes a bfloat16 model no faster than a float32 one."""
    if device.type != "cpu" or dtype != torch.bfloat16:
        return []
    why = obstacle("bfloat16", device, torch.float32)
    return [f"bfloat16 is no gain on this processor: {why}"] if why else []
