"""Selectors: which tokens of a scale run. To add one, write a function and name it below.

Sources: StageVAR (arXiv 2512.16483) for ``projection`` and ``norm``; FastVAR (arXiv 2503.23367) for
``deviation``; LazyVAR's index for ``update``; leverage scores (Mahoney & Drineas 2009) and
interpolative decomposition (Cheng, Gimbutas, Martinsson & Rokhlin 2005) for ``leverage`` and
``pivot``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import StagevarError
from .sketch import orthonormalise, pivots
from .tokens import Kept, Scene, Selector, as_map, as_tokens, named, squared_norm, take, top


def select(scene: Scene, method: str, leaders: int = 0) -> Kept:
    """Pick ``scene.keep`` tokens by the selector called ``method``.

    ``leaders``: the first that many rows choose, the later ones keep the same tokens (where rows
    see each other, token by token); 0: every row chooses.
    """
    selector = named(SELECTORS, "selector", method)
    mixed = selector.mix(scene) if selector.mix else None
    index = selector.choose(scene.first(leaders) if leaders else scene)
    index = index.repeat(scene.x.shape[0] // index.shape[0], 1)
    if mixed is None:
        return Kept(take(scene.x, index), index, index)
    return Kept(mixed, index, torch.arange(scene.keep, device=index.device).expand_as(index))


def norm(scene: Scene) -> Tensor:
    """Sampled without replacement, p_i ∝ ‖x_i‖² (exponential race = Gumbel top-k)."""
    race = draw(scene, (), torch.rand).clamp_min(1e-20).log().neg()
    return top(squared_norm(scene.x) / race.clamp_min(1e-20), scene.keep)


def random_rows(scene: Scene) -> Tensor:
    """``QᵀX`` with Q of N(0, 1)/√r: each row mixes all tokens (StageVAR, section 4.3)."""
    mix = draw(scene, (scene.keep,), torch.randn) / scene.keep**0.5
    return mix.transpose(1, 2).to(scene.x.dtype) @ scene.x


def deviation(scene: Scene) -> Tensor:
    """Farthest from the mean token."""
    return top(squared_norm(scene.x - scene.x.mean(1, keepdim=True)), scene.keep)


def update(scene: Scene) -> Tensor:
    """Turned most since the previous scale: 1 - cos of a token with its resized predecessor."""
    cosine = F.cosine_similarity(scene.x.float(), scene.previous("before").float(), dim=-1)
    return top(1 - cosine, scene.keep)


def highpass(scene: Scene) -> Tensor:
    """Farthest from the mean of their 3 by 3 neighbourhood (at a border, of what there is)."""
    maps = as_map(scene.x.float(), scene.grid)
    blurred = F.avg_pool2d(maps, 3, stride=1, padding=1, count_include_pad=False)
    return top(squared_norm(as_tokens(maps - blurred)), scene.keep)


def leverage(scene: Scene) -> Tensor:
    """Longest rows of the sketch: those that its leading directions cannot do without."""
    return top(squared_norm(scene.sketch), scene.keep)


def pivot(scene: Scene) -> Tensor:
    """Each the farthest from the span of those before it, on the sketch.

    Beyond the sketch's width s its rows span nothing new. The tokens that are left are then ranked
    by the part of ``x`` itself that the first s cannot rebuild, in one go.
    """
    q = scene.sketch
    first = pivots(q, min(scene.keep, q.shape[2]))
    if first.shape[1] == scene.keep:
        return first.sort(dim=1).values
    x = scene.x.float()
    basis = orthonormalise(take(x, first).mT)  # (rows, d, s)
    missing = squared_norm(x - (x @ basis) @ basis.mT)
    return top(missing.scatter(1, first, torch.inf), scene.keep)


def draw(scene: Scene, tail: tuple[int, ...], how: Callable[..., Tensor]) -> Tensor:
    """Random numbers ``(rows, n, *tail)``: one stream an image, the same for both branches."""
    x, generators = scene.x, scene.generators
    if not generators:
        raise StagevarError(
            "this selector draws random numbers: register it as Selector(..., seeded=True)"
        )
    drawn = [how((x.shape[1], *tail), generator=g, device=x.device) for g in generators]
    return torch.stack(drawn * (x.shape[0] // len(drawn)))


SELECTORS: dict[str, Selector] = {
    "projection": Selector(norm, mix=random_rows, seeded=True),
    "norm": Selector(norm, seeded=True),
    "deviation": Selector(deviation),
    "update": Selector(update, needs=("before",)),
    "highpass": Selector(highpass),
    "leverage": Selector(leverage),
    "pivot": Selector(pivot),
}
