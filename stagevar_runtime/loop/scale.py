"""The transformer part of one scale: embed, blocks on all tokens or on some, logits.

It reads and changes a :class:`State` and nothing else, draws nothing unless a selector says so
(``seeded``), and the host waits for nothing in it, so that all of it can be recorded.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..model.protocol import ScaleModel, State
from ..options.groups import GroupStep
from ..options.layers import stand_ins
from ..options.restorers import restore
from ..options.selectors import SELECTORS, select
from ..options.tokens import Grid, TokenContext, put, resize, squared_norm, take, top
from .steps import ScaleStep

Watch = Callable[[int, Tensor], None]  # a group's number and its input
Ran = tuple[Tensor, Tensor | None]  # logits, and cond - null where null saw part of the tokens
Network = Callable[[ScaleModel, State, ScaleStep, Watch | None], Ran]


def prepare(model: ScaleModel, state: State, step: ScaleStep) -> None:
    """The rows, weights, layers and caches that ``step`` runs with."""
    if not step.null_tokens:
        state.null = None
    if state.null is None and state.branches != step.branches:
        model.keep(state, step.branches[0] if len(step.branches) == 1 else None)
    state.weights = step.weights if len(step.branches) == 2 else None
    state.narrow = stand_ins(model, step.scale.index, step.layers)
    for cache in state.kv:
        cache.reserve(step.capacity)


def run_step(model: ScaleModel, state: State, step: ScaleStep, watch: Watch | None = None) -> Ran:
    """Run one scale as its step says: all rows on all tokens, or null on part of them."""
    if step.null_tokens:
        return run_partly_guided(model, state, step, watch)
    return run_scale(model, state, step, watch), None


def look_back(state: State, step: ScaleStep, logits: Tensor) -> Tensor | None:
    """Keep cond - null of this scale for later ones; or an earlier one's, resized, in its place.

    ``logits`` ``(rows, n, V')``; the difference ``(B, n, V')`` is None where null ran itself, or
    was dropped.
    """
    if step.keep_difference:
        state.difference = (step.scale, torch.sub(*logits.chunk(2)))
    if not step.delta:
        return None
    assert state.difference is not None
    source, kept = state.difference
    return resize(kept, source.grid, step.scale.grid)


def run_scale(
    model: ScaleModel, state: State, step: ScaleStep, watch: Watch | None = None
) -> Tensor:
    """Logits ``(rows, n, V')`` of this scale; appends keys and values, keeps what ``step`` stores.

    ``watch`` is called before every group of blocks with its number and input ``(rows, n, d)``.
    """
    x = model.embed(state, step.scale)
    for number, group in enumerate(step.groups):
        if watch:
            watch(number, x)
        entered = x
        x = run_group(model, state, step, group, x)
        if group.blocks.start in step.store:
            state.stored[group.blocks.start] = (step.scale, entered)
    last = step.groups[-1].blocks.stop
    if last in step.store:
        state.stored[last] = (step.scale, x)
    return model.logits(state, step.scale, x)


def run_partly_guided(
    model: ScaleModel, state: State, step: ScaleStep, watch: Watch | None = None
) -> tuple[Tensor, Tensor]:
    """Cond on all tokens, null where guidance moved the logits most at the last scale that was
    guided whole.

    Returns the cond logits and cond - null, ``(B, n, V')`` each; the latter is 0 where null did not
    run. ``state`` goes on with cond; null, which caches the tokens it saw, with ``state.null``.
    """
    assert state.difference is not None
    source, moved = state.difference
    index = top(squared_norm(resize(moved, source.grid, step.scale.grid)), step.null_tokens)
    if state.null is None:
        null = state.fork()
        model.keep(state, "cond")
        model.keep(null, "null")
        state.null = null
    null = state.null
    null.canvas, null.extra, null.narrow = state.canvas, state.extra, state.narrow
    logits = run_scale(model, state, step, watch)
    x = take(model.embed(null, step.scale), index)
    x = model.run(null, step.scale, x, range(model.info.depth), index)
    moved = take(logits, index) - model.logits(null, step.scale, x)
    return logits, put(torch.zeros_like(logits), index, moved)


def run_group(
    model: ScaleModel, state: State, step: ScaleStep, group: GroupStep, x: Tensor
) -> Tensor:
    """One group of blocks, on all tokens or on the kept ones."""
    tokens = group.tokens
    if tokens is None:
        return model.run(state, step.scale, x, group.blocks)
    seeded = SELECTORS[tokens.select].seeded
    context = TokenContext(
        x,
        step.scale.grid,
        tokens.keep,
        state.noise.source(step.scale.index, 1 + group.blocks.start) if seeded else (),
        before=_stored(state, group.blocks.start),
        after=_stored(state, group.blocks.stop),
    )
    kept = select(context, tokens.select, 0 if model.info.rows_independent else state.batch)
    y = model.run(state, step.scale, kept.x, group.blocks, kept.positions)
    return restore(context, kept, y, tokens.restore)


def _stored(state: State, boundary: int) -> tuple[Tensor, Grid] | None:
    found = state.stored.get(boundary)
    return None if found is None else (found[1], found[0].grid)
