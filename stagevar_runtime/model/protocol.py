"""The model protocol: what a next-scale family provides, and the state one generation carries.

A family is weights plus pure functions over a :class:`State`. It knows nothing of profiles, plans
or acceleration; the engine knows nothing of families. Shapes: B images, rows = B or 2B (the cond
block, then the null block), n tokens of the scale, d the model's width, V' logits a token.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from ..errors import StagevarError
from ..kernels.linear import LowRankLayers
from ..kernels.slots import NONE, Kernels
from .kvcache import KVCache
from .sampling import Drawn, Noise, Sampling, ScaleSampling

Branch = Literal["cond", "null"]

Positions = Tensor | None  # (rows, m): which tokens of a scale; None: all of them
GPU_TILE = 8  # tokens a GPU's matrix units take at once


@dataclass(frozen=True)
class ScaleSpec:
    """One scale of a generation. ``tokens`` may differ from ``height · width`` (a text scale)."""

    index: int
    height: int
    width: int
    tokens: int
    kind: Literal["ar", "final"] = "ar"

    @property
    def grid(self) -> tuple[int, int]:
        """Height and width in tokens."""
        return self.height, self.width

    @property
    def is_map(self) -> bool:
        """Whether its tokens lie on that grid."""
        return self.tokens == self.height * self.width


@dataclass(frozen=True)
class ModelInfo:
    """What a model is and what it can do.

    ``groups`` cuts the blocks into consecutive ranges: ranks are measured and tokens reduced per
    group. ``causal``: later scales attend to earlier ones, so dropped guidance cannot return.
    ``rows_independent``: no row of the batch sees another. ``guidance`` is how a guidance scale
    g becomes strength: ``linear`` g at every scale, ``ramp`` 1 + g·k/(K-1) at scale k;
    with ``guidance_held`` the last scale has the strength of the one before. ``guides_logits``:
    it is the logits that guidance combines, not hidden states inside. ``branches`` are the rows a
    guided scale has. ``notes`` is what a user should know of this model; a summary repeats it.
    ``inputs`` and ``optional_inputs`` name what :meth:`ScaleModel.condition` takes, ``sizes`` what
    :meth:`ScaleModel.scales` takes.
    ``layers``: the linear layers of a block that features can narrow (of input ``width``) and how
    wide their outputs are; empty where a family cannot.
    ``classes`` (0: none) and ``bits`` a token (0: ids of a vocabulary) describe inputs and outputs.
    ``config`` is what the tensors' shapes do not tell; it goes into the architecture fingerprint.
    ``native``: height and width of every scale of the model's own size, where others can be asked
    for; it names the architecture. None: the scales are always these.
    ``tile``: numbers of kept tokens are rounded up to a multiple of it (:func:`tile_on` a device).
    """

    family: str
    depth: int
    width: int
    heads: int
    groups: tuple[range, ...]
    causal: bool = True
    rows_independent: bool = True
    guidance: Literal["ramp", "linear"] = "linear"
    guidance_held: bool = False
    guides_logits: bool = True
    branches: tuple[Branch, ...] = ("cond", "null")
    inputs: tuple[str, ...] = ("labels",)
    optional_inputs: tuple[str, ...] = ()
    sizes: tuple[str, ...] = ()
    classes: int = 0
    bits: int = 0
    layers: Mapping[str, int] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    tile: int = 1
    native: tuple[tuple[int, int], ...] | None = None


def tile_on(device: torch.device) -> int:
    """How many tokens a device works on at once: as many more cost no time there."""
    return GPU_TILE if device.type == "cuda" else 1


def split_depth(depth: int, count: int) -> tuple[range, ...]:
    """Cut ``depth`` blocks into at most ``count`` consecutive groups of nearly equal size."""
    count = max(1, min(count, depth))
    edges = [round(i * depth / count) for i in range(count + 1)]
    return tuple(range(a, b) for a, b in pairwise(edges))


@dataclass(frozen=True)
class Conditioning:
    """What to draw: tensors with images first, for the guided branch and for the null branch."""

    cond: Mapping[str, Tensor]
    null: Mapping[str, Tensor]

    @property
    def batch(self) -> int:
        """How many images."""
        return next(iter(self.cond.values())).shape[0]

    def rows(self, guided: bool) -> dict[str, Tensor]:
        """The cond block followed, when ``guided``, by the null block."""
        if not guided:
            return dict(self.cond)
        return {name: torch.cat([t, self.null[name]]) for name, t in self.cond.items()}

    def __getitem__(self, images: slice | Sequence[int] | Tensor) -> Conditioning:
        pick = images if isinstance(images, slice) else torch.as_tensor(images)
        return Conditioning(
            {name: t[pick] for name, t in self.cond.items()},
            {name: t[pick] for name, t in self.null.items()},
        )

    def to(self, device: torch.device | str) -> Conditioning:
        """The same on another device."""
        return Conditioning(
            {name: t.to(device) for name, t in self.cond.items()},
            {name: t.to(device) for name, t in self.null.items()},
        )


def map_tensors(tree: Any, function: Any) -> Any:
    """Apply ``function`` to every tensor of nested dicts, lists and tuples."""
    if isinstance(tree, Tensor):
        return function(tree)
    if isinstance(tree, dict):
        return {key: map_tensors(value, function) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(map_tensors(value, function) for value in tree)
    return tree


@dataclass
class State:
    """Everything one generation carries from scale to scale. Modules hold weights only.

    ``rows`` holds every tensor with rows first (modulations, text keys and values), in nested
    dicts, lists and tuples. ``canvas`` is ``(B, C, H, W)``. ``stored[b]`` is the hidden state
    ``(rows, n, d)`` that entered block b at the last scale that kept it, with that scale.
    ``weights`` say how the branches combine at the scale that runs (None: one branch alone).
    ``difference`` is cond - null of the logits ``(B, n, V')`` at the last guided scale that kept
    it, with that scale; it has no rows to drop. ``narrow`` says what stands in for the linear
    layers of each block at the scale that runs (:mod:`stagevar_runtime.options.low_rank`).
    ``null`` is the null branch where it sees part of the tokens: with keys and values of its own,
    while this state goes on with cond. ``extra`` is the family's own, without rows. ``sums`` are of
    what must be finite, by what it is: on the device, read once when the loop is over.
    """

    scales: tuple[ScaleSpec, ...]
    batch: int
    branches: tuple[Branch, ...]
    kv: list[KVCache]
    rows: dict[str, Any]
    canvas: Tensor
    noise: Noise
    stored: dict[int, tuple[ScaleSpec, Tensor]] = field(default_factory=dict)
    weights: tuple[float, float] | None = None
    difference: tuple[ScaleSpec, Tensor] | None = None
    narrow: Mapping[int, LowRankLayers] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    dropped: dict[str, Any] | None = None
    null: State | None = None
    sums: list[tuple[str, Tensor]] = field(default_factory=list)

    @classmethod
    def fresh(
        cls,
        conditioning: Conditioning,
        scales: tuple[ScaleSpec, ...],
        noise: Noise,
        guided: bool,
        *,
        kv: list[KVCache],
        rows: dict[str, Any],
        canvas: Tensor,
        extra: dict[str, Any] | None = None,
    ) -> State:
        """The state before the first scale: both branches' rows, or cond's alone."""
        branches: tuple[Branch, ...] = ("cond", "null") if guided else ("cond",)
        batch = conditioning.batch
        return cls(scales, batch, branches, kv, rows, canvas, noise, extra=extra or {})

    @property
    def guided(self) -> bool:
        """Whether both branches are still there."""
        return len(self.branches) == 2

    def keep(self, branch: Branch) -> None:
        """Go on with one branch: slice keys and values, conditioning and cached features."""
        if branch not in self.branches:
            raise StagevarError(
                f"cannot keep the {branch!r} branch: it was dropped earlier, "
                f"only {self.branches} is left and its keys and values are gone"
            )
        if len(self.branches) == 1:
            return
        start = self.branches.index(branch) * self.batch
        rows = slice(start, start + self.batch)
        for cache in self.kv:
            cache.keep(rows)
        self.rows = map_tensors(self.rows, lambda t: t[rows])
        self.stored = {b: (spec, x[rows]) for b, (spec, x) in self.stored.items()}
        self.branches = (branch,)

    def choose(self, branch: Branch | None) -> None:
        """Go on with one branch or, with None, both again: for families without a cache."""
        assert not self.kv, "keys and values of dropped rows are gone"
        if self.dropped is None:
            self.dropped = self.rows
        self.rows, self.branches = self.dropped, ("cond", "null")
        if branch is not None:
            self.keep(branch)

    def fork(self) -> State:
        """A snapshot to branch from: shares tensors, owns lengths, branches and random state."""
        return replace(
            self,
            kv=[cache.fork() for cache in self.kv],
            rows=dict(self.rows),
            noise=self.noise.fork(),
            stored=dict(self.stored),
            extra=dict(self.extra),
            sums=list(self.sums),
            null=self.null and self.null.fork(),
        )


class ImageTokenizer(Protocol):
    """What acceleration and evaluation ask of an image tokenizer.

    ``decoder``: what turns a canvas into pixels; compiled, and replaced by one in half precision.
    ``config``: its ``downsample`` is the side of a token in pixels.
    """

    decoder: nn.Module
    config: Any

    def encode(self, image: Tensor, sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Ids of pictures ``(B, 3, H, W)`` in [0, 1], one tensor a size."""


class ScaleModel(Protocol):
    """What the engine asks of a family. Every method is pure but for the state it is given.

    A family derives from this class and so has the defaults of what is optional:

    ``blocks``: the transformer's, in order; they are what is compiled. ``tokenizer``: where it has
    a decoder of its own. ``text_tile``: text is padded to a multiple, so that prompts share shapes.
    ``low_rank``: a :class:`~stagevar_runtime.options.low_rank.LowRank` where ``info`` names layers;
    ``precisions``: a :class:`~stagevar_runtime.options.precision.Precisions` there, too.
    ``kernels``: the fused ones that are mounted, which a family hands to what uses them.
    ``networks``: what runs its transformer otherwise than by plain calls, where it was made fast.
    ``unused_tensors``: names that a fingerprint leaves out (masks, other training-only buffers).
    """

    info: ModelInfo
    device: torch.device
    dtype: torch.dtype
    default_sampling: Sampling
    blocks: Sequence[nn.Module] = ()
    tokenizer: ImageTokenizer | None = None
    text_tile: int = 1
    low_rank: object | None = None
    precisions: object | None = None
    kernels: Kernels = NONE
    networks: Any = None
    unused_tensors: tuple[str, ...] = ()

    @abstractmethod
    def scales(self, *args: Any, **size: Any) -> tuple[ScaleSpec, ...]:
        """The default schedule, or the one of a size (keywords in ``info.sizes``)."""

    @abstractmethod
    def condition(self, *args: Any, **inputs: Any) -> Conditioning:
        """Checked inputs as tensors with images first."""

    @abstractmethod
    def begin(
        self, conditioning: Conditioning, scales: tuple[ScaleSpec, ...], noise: Noise, guided: bool
    ) -> State:
        """The state before scale 0, with all that does not change between scales computed."""

    @abstractmethod
    def embed(self, state: State, scale: ScaleSpec) -> Tensor:
        """Input of the first block at this scale, ``(rows, n, d)``, from the canvas so far."""

    @abstractmethod
    def run(
        self, state: State, scale: ScaleSpec, x: Tensor, blocks: range, positions: Positions = None
    ) -> Tensor:
        """Run these blocks on ``x`` ``(rows, m, d)`` and append their keys and values.

        ``positions`` ``(rows, m)`` says which tokens of the scale ``x`` holds; None: all of them.
        """

    @abstractmethod
    def logits(self, state: State, scale: ScaleSpec, x: Tensor) -> Tensor:
        """``(rows, n, V')`` float32, before temperature and guidance."""

    @abstractmethod
    def sample(
        self, state: State, scale: ScaleSpec, logits: Tensor, sampling: ScaleSampling
    ) -> Drawn:
        """Token ids ``(B, n)`` (bits: ``(B, n, bits)``) drawn from guided, tempered logits."""

    @abstractmethod
    def advance(self, state: State, scale: ScaleSpec, drawn: Drawn) -> None:
        """Add what was drawn at this scale to the canvas, out of place."""

    def keep(self, state: State, branch: Branch | None) -> None:
        """Go on with one branch from here; None: with both again (never asked if causal)."""
        if branch is not None:
            state.keep(branch)

    @abstractmethod
    def decode(self, state: State) -> Tensor:
        """The picture the canvas holds, ``(B, 3, H, W)`` RGB in [0, 1]."""
