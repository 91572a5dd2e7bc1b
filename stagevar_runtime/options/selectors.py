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
from ..model.sampling import Source
from .sketch import orthonormalise, pivots
from .tokens import Kept, Selector, TokenContext, as_map, as_tokens, named, squared_norm, take, top


def select(context: TokenContext, method: str, leaders: int = 0) -> Kept:
    """Pick ``scene.keep`` tokens by the selector called ``method``.

    ``leaders``: the first that many rows choose, the later ones keep the same tokens (where rows
    see each other, token by token); 0: every row chooses.
    """
    selector = named(SELECTORS, "selector", method)
    mixed = selector.mix(context) if selector.mix else None
    index = selector.choose(context.first(leaders) if leaders else context)
    index = index.repeat(context.x.shape[0] // index.shape[0], 1)
    if mixed is None:
        return Kept(take(context.x, index), index, index)
    return Kept(mixed, index, torch.arange(context.keep, device=index.device).expand_as(index))


def norm(context: TokenContext) -> Tensor:
    """Sampled without replacement, p_i ∝ ‖x_i‖² (exponential race = Gumbel top-k)."""
    race = draw(context, (), torch.rand).clamp_min(1e-20).log().neg()
    return top(squared_norm(context.x) / race.clamp_min(1e-20), context.keep)


def random_rows(context: TokenContext) -> Tensor:
    """``QᵀX`` with Q of N(0, 1)/√r: each row mixes all tokens (StageVAR, section 4.3)."""
    mix = draw(context, (context.keep,), torch.randn) / context.keep**0.5
    return mix.transpose(1, 2).to(context.x.dtype) @ context.x


def deviation(context: TokenContext) -> Tensor:
    """Farthest from the mean token."""
    return top(squared_norm(context.x - context.x.mean(1, keepdim=True)), context.keep)


def update(context: TokenContext) -> Tensor:
    """Turned most since the previous scale: 1 - cos of a token with its resized predecessor."""
    cosine = F.cosine_similarity(context.x.float(), context.previous("before").float(), dim=-1)
    return top(1 - cosine, context.keep)


def highpass(context: TokenContext) -> Tensor:
    """Farthest from the mean of their 3 by 3 neighbourhood (at a border, of what there is)."""
    maps = as_map(context.x.float(), context.grid)
    blurred = F.avg_pool2d(maps, 3, stride=1, padding=1, count_include_pad=False)
    return top(squared_norm(as_tokens(maps - blurred)), context.keep)


def leverage(context: TokenContext) -> Tensor:
    """Longest rows of the sketch: those that its leading directions cannot do without."""
    return top(squared_norm(context.sketch), context.keep)


def pivot(context: TokenContext) -> Tensor:
    """Each the farthest from the span of those before it, on the sketch.

    Beyond the sketch's width s its rows span nothing new. The tokens that are left are then ranked
    by the part of ``x`` itself that the first s cannot rebuild, in one go.
    """
    q = context.sketch
    first = pivots(q, min(context.keep, q.shape[2]))
    if first.shape[1] == context.keep:
        return first.sort(dim=1).values
    x = context.x.float()
    basis = orthonormalise(take(x, first).mT)  # (rows, d, s)
    missing = squared_norm(x - (x @ basis) @ basis.mT)
    return top(missing.scatter(1, first, torch.inf), context.keep)


def draw(context: TokenContext, tail: tuple[int, ...], how: Callable[..., Tensor]) -> Tensor:
    """Random numbers ``(rows, n, *tail)``: one stream an image, the same for both branches."""
    x, generators = context.x, context.generators
    if not isinstance(generators, Source) and not generators:
        raise StagevarError(
            "this selector draws random numbers: register it as Selector(..., seeded=True)"
        )
    shape = (x.shape[1], *tail)
    if isinstance(generators, Source):
        drawn = generators.draw(how, shape)
    else:
        drawn = torch.stack([how(shape, generator=g, device=x.device) for g in generators])
    return torch.cat([drawn] * (x.shape[0] // len(drawn)))


SELECTORS: dict[str, Selector] = {
    "projection": Selector(norm, mix=random_rows, seeded=True),
    "norm": Selector(norm, seeded=True),
    "deviation": Selector(deviation),
    "update": Selector(update, needs=("before",)),
    "highpass": Selector(highpass),
    "leverage": Selector(leverage),
    "pivot": Selector(pivot),
}
