"""Feature reduction: linear layers see r of d directions of what enters them; all tokens run.

A layer ``xW + b`` becomes ``(xP)(PᵀW) + b + (m - PPᵀm)W`` with orthonormal P ``(d, r)`` and the
mean input m: x is taken apart into its r directions around m, and what lies outside them is
dropped. PᵀW and the bias are made once, so a token costs r·(d + d_out) products instead of d·d_out.
P is ``pca`` (measured by the probe, in a file beside the profile) or ``random`` (seeded, m = 0).
METHODS section 2.

:class:`LowRank` belongs to a model and says which layers it has; a family gives them to its blocks
as ``state.narrow``, by block and layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import ProfileError, ProfileMismatchError, one_line
from ..kernels.linear import LowRankLayers, LowRankLinear, pack_like
from ..model.protocol import ModelInfo, ScaleModel, ScaleSpec

if TYPE_CHECKING:  # a family's modules do without pydantic
    from .asked import FeatureOption

Basis = Literal["pca", "random"]
Place = tuple[int, int, str]  # scale, group, layer
KIND = "stagevar-bases-1"


def bases_path(profile: Path) -> Path:
    """``model.stagevar.safetensors`` beside ``model.stagevar.yaml``; never a checkpoint's name."""
    stem = profile.stem if profile.stem.split(".")[-1] == "stagevar" else f"{profile.stem}.stagevar"
    return profile.with_name(f"{stem}.safetensors")


class Layer(NamedTuple):
    """A linear layer of a block. ``module``: what it reads is this module's first argument."""

    module: nn.Module
    weight: Tensor
    bias: Tensor | None


@dataclass(frozen=True)
class LowRankStep:
    """Run ``layers`` through ``rank`` directions."""

    rank: int
    basis: Basis
    seed: int
    layers: tuple[str, ...]

    def stand_ins(
        self, model: ScaleModel, scale: int, before: Mapping[int, LowRankLayers]
    ) -> Mapping[int, LowRankLayers]:
        """Its layers; it acts on the model's own, so nothing may stand in for them before."""
        assert not before
        return low_rank_of(model).at(scale, self)

    def description(self, model: ScaleModel) -> str:
        """Rank, basis and layers."""
        return f"features {self.rank} {self.basis} in {' '.join(self.layers)}"


def resolve(option: FeatureOption, info: ModelInfo, scale: ScaleSpec) -> LowRankStep:
    """The layers that are named, or else those that the rank makes cheaper.

    Raises:
        ProfileError: the family has no such layers, or the rank makes none cheaper.
    """
    where = f"scale {scale.index} asks for features of rank {option.rank}"
    if not info.layers:
        raise ProfileError(
            f"{where}, but the {info.family} family cannot narrow its layers. Reduce its tokens"
        )
    if option.rank > info.width:
        raise ProfileError(f"{where}, expected at most the width of the model, {info.width}")
    unknown = [name for name in option.layers or () if name not in info.layers]
    if unknown:
        raise ProfileError(
            f"{where} in layer {unknown[0]!r}, expected one of {', '.join(info.layers)}"
        )
    cheaper = {
        name: info.width * out / (info.width + out) for name, out in info.layers.items()
    }  # from this rank on r (d + d_out) products are no fewer than d d_out
    chosen = option.layers or tuple(n for n, rank in cheaper.items() if option.rank < rank)
    if not chosen:
        raise ProfileError(
            f"{where}, which makes no layer cheaper, expected one below "
            f"{max(cheaper.values()):.0f}, or the layers by name"
        )
    return LowRankStep(option.rank, option.basis, option.seed, chosen)


@dataclass(frozen=True)
class Bases:
    """Measured directions by scale, group and layer.

    ``vectors[place]`` ``(d, r)`` orthonormal, most energy first; ``means[place]``: the mean input
    of each block of the group, ``(blocks, d)``. Both float32 on the CPU.
    """

    vectors: Mapping[Place, Tensor]
    means: Mapping[Place, Tensor]

    def holds(self, place: Place, rank: int) -> bool:
        """Whether ``rank`` directions were measured there."""
        return place in self.vectors and self.vectors[place].shape[1] >= rank

    def cut(self, ranks: Mapping[int, int]) -> Bases:
        """What plans need that take ``ranks[scale]`` directions at most."""
        kept = [place for place in self.vectors if place[0] in ranks]
        return Bases(
            {p: self.vectors[p][:, : ranks[p[0]]] for p in kept}, {p: self.means[p] for p in kept}
        )

    def dump(self, weights: str) -> bytes:
        """The content of a file, in half precision; ``weights``: the hash of what it is made of."""
        from safetensors.torch import save

        tensors = {}
        for place, vectors in self.vectors.items():
            name = ".".join(map(str, place))
            tensors[f"{name}.vectors"] = vectors.half().contiguous()
            tensors[f"{name}.means"] = self.means[place].half().contiguous()
        return save(tensors, {"kind": KIND, "weights": weights})

    @classmethod
    def load(cls, path: str | Path, weights: str) -> Bases:
        """Read a file, made orthonormal again in float32.

        Raises:
            ProfileError: it is not such a file; ProfileMismatchError: it was made of other weights.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), framework="pt", device="cpu") as file:
                metadata = dict(file.metadata() or {})
                tensors = {name: file.get_tensor(name).float() for name in file.keys()}
        except (SafetensorError, OSError, RuntimeError, ValueError, TypeError) as error:
            raise ProfileError(
                f"{path}: cannot be read as the bases of a profile ({one_line(error)}). "
                "Recalibrate with stagevar-probe calibrate"
            ) from error
        if metadata.get("kind") != KIND:
            raise ProfileError(f"{path}: kind is {metadata.get('kind')!r}, expected {KIND!r}")
        if metadata.get("weights") != weights:
            found = str(metadata.get("weights"))
            raise ProfileMismatchError(
                f"{path}: was measured on weights {found[:15]}, the model has {weights[:15]}. "
                "Recalibrate with stagevar-probe calibrate",
                field="weights",
                expected=weights,
                found=found,
            )
        vectors, means = {}, {}
        name = "its first tensor"
        try:
            for name in sorted(name for name in tensors if name.endswith(".vectors")):
                scale, group, layer, _ = name.split(".")
                place = int(scale), int(group), layer
                vectors[place], means[place] = _directions(
                    tensors[name], tensors[name.replace(".vectors", ".means")]
                )
        except (KeyError, ValueError, RuntimeError) as error:
            raise ProfileError(
                f"{path}: damaged bases at {name} ({one_line(error)}). "
                "Recalibrate with stagevar-probe calibrate"
            ) from error
        return cls(vectors, means)


def _directions(vectors: Tensor, means: Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormal directions ``(d, r)`` and means ``(blocks, d)``. Raises ValueError."""
    if vectors.ndim != 2 or means.ndim != 2 or vectors.shape[0] != means.shape[1]:
        raise ValueError(f"shapes {tuple(vectors.shape)} and {tuple(means.shape)}")
    if not bool(vectors.isfinite().all()) or not bool(means.isfinite().all()):
        raise ValueError("not finite")
    return torch.linalg.qr(vectors).Q, means


class LowRank:
    """The layers of a model that can be narrowed, and what was made of them so far.

    ``layers``: those of every block; the same names and widths in each.
    """

    def __init__(self, layers: Sequence[Mapping[str, Layer]], groups: Sequence[range]) -> None:
        self.layers, self.groups = layers, groups
        self.bases: tuple[Bases, ...] = ()
        self._made: dict[tuple[LowRankStep, int], dict[int, LowRankLayers]] = {}

    @property
    def widths(self) -> dict[str, int]:
        """How wide the output of each layer is."""
        return {name: layer.weight.shape[0] for name, layer in self.layers[0].items()}

    def use(self, *bases: Bases) -> None:
        """Take measured bases from these, the first that holds enough; forget what was made."""
        self.bases = bases
        self.forget()

    def forget(self) -> None:
        """Let go of what was made: it is made again when asked for."""
        self._made.clear()

    def at(self, scale: int, step: LowRankStep) -> Mapping[int, LowRankLayers]:
        """What stands in for the layers of every block; made at the first call, then kept.

        Raises:
            ProfileError: a measured basis is missing.
        """
        key = step, scale if step.basis == "pca" else -1
        if key not in self._made:
            with torch.inference_mode(False), torch.no_grad():
                self._made[key] = dict(self._make(scale, step))
        return self._made[key]

    def _make(self, scale: int, step: LowRankStep) -> Iterator[tuple[int, LowRankLayers]]:
        width = next(iter(self.layers[0].values())).weight.shape[1]
        for group, blocks in enumerate(self.groups):
            drawn = None
            if step.basis == "random":
                drawn = random_vectors(width, step.rank, step.seed * len(self.groups) + group)
            for i in blocks:
                made = {}
                for name in step.layers:
                    vectors, mean = drawn, None
                    if vectors is None:
                        bases, place = self._measured((scale, group, name), step.rank)
                        vectors = bases.vectors[place][:, : step.rank]
                        mean = bases.means[place][i - blocks.start]
                    made[name] = narrow(self.layers[i][name], vectors, mean)
                yield i, made

    def _measured(self, place: Place, rank: int) -> tuple[Bases, Place]:
        scale, group, name = place
        width, blocks = self.layers[0][name].weight.shape[1], len(self.groups[group])
        for bases in self.bases:
            if bases.holds(place, rank):
                if bases.means[place].shape != (blocks, width):
                    raise ProfileError(
                        f"scale {scale}: the measured directions of {name} in group {group} are "
                        f"for {tuple(bases.means[place].shape)} blocks and channels, this model "
                        f"has {(blocks, width)}. Recalibrate with stagevar-probe calibrate"
                    )
                return bases, place
        raise ProfileError(
            f"scale {scale} asks for {rank} measured directions of what enters {name} in group "
            f"{group}, but no such basis is there. Keep the .safetensors file beside the profile, "
            "recalibrate, or use basis: random"
        )


def narrow(layer: Layer, vectors: Tensor, mean: Tensor | None) -> LowRankLinear:
    """A layer through orthonormal ``vectors`` ``(d, r)`` around ``mean`` ``(d,)`` (None: 0)."""
    weight = layer.weight.detach()
    p, wide = vectors.to(weight.device), weight.float()
    bias = None if layer.bias is None else layer.bias.float()
    if mean is not None:
        mean = mean.to(weight.device)
        outside = wide @ (mean - p @ (p.T @ mean))
        bias = outside if bias is None else bias + outside
    down, up = p.T.contiguous().to(weight.dtype), (wide @ p).to(weight.dtype)
    return LowRankLinear(
        pack_like(down, weight),
        pack_like(up, weight),
        None if bias is None else bias.to(weight.dtype),
    )


def random_vectors(width: int, rank: int, seed: int) -> Tensor:
    """Orthonormal ``(width, rank)``, uniform among all such; the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(width, rank, generator=generator)).Q


def forget(model: ScaleModel) -> None:
    """Let go of the layers made for a model's earlier plans."""
    if model.low_rank is not None:
        low_rank_of(model).forget()


def low_rank_of(model: ScaleModel) -> LowRank:
    """Those of a model whose info names layers: no plan asks others for them."""
    assert isinstance(model.low_rank, LowRank), "this family's layers cannot be narrowed"
    return model.low_rank
