"""What scales keep for later ones: hidden states, differences, room for keys and values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from ..errors import ProfileError
from ..options.groups import GroupStep
from .steps import ScaleStep


def check_runs(plan: Sequence[ScaleStep]) -> None:
    """Raise ProfileError where nothing runs, or a scale looks back at what no scale keeps."""
    run = [step for step in plan if step.run != "skip"]
    if not run:
        raise ProfileError("the plan skips every scale: nothing would be drawn")
    for before, step in zip([None, *run[:-1]], run, strict=True):
        if not any(g.tokens and g.tokens.needs for g in step.groups):
            continue
        where = f"scale {step.scale.index} selects or restores from a cache, but"
        if before is None:
            raise ProfileError(f"{where} no scale runs before it")
        if not before.scale.is_map:
            raise ProfileError(f"{where} scale {before.scale.index} before it is no token map")
        if not set(step.branches) <= set(before.branches):
            raise ProfileError(f"{where} the branch that returns was not run before it")


def with_difference(plan: Sequence[ScaleStep]) -> list[ScaleStep]:
    """Tell the last guided scale before each that looks back at it to keep its difference."""
    out: list[ScaleStep] = []
    source: int | None = None
    for step in plan:
        if step.delta and step.weights and step.weights[1] == 0:
            step = replace(step, delta=False, weights=None)  # a strength of 1 is cond alone
        elif step.null_tokens and step.weights and step.weights[1] == 0:
            if not any(later.null_tokens for later in plan[len(out) + 1 :]):
                step = replace(step, null_tokens=0)
        if step.run != "skip" and (step.delta or step.null_tokens):
            if source is None or not out[source].scale.is_map:
                why = "is no token map" if source is not None else "is none"
                what = "'delta' guidance" if step.delta else "guidance on part of its tokens"
                raise ProfileError(
                    f"scale {step.scale.index} asks for {what}, which needs a guided "
                    f"scale before it, but there {why}. Drop guidance later, or use 'cond'"
                )
            out[source] = replace(out[source], keep_difference=True)
        elif step.run != "skip" and len(step.branches) == 2:
            source = len(out)
        out.append(step)
    return out


def without_unused_null(plan: Sequence[ScaleStep]) -> list[ScaleStep]:
    """Drop the null branch from the first scale from which its weight is 0 for good: exact."""
    needed = [
        k
        for k, s in enumerate(plan)
        if len(s.branches) == 2
        and s.run != "skip"
        and (s.weights != (1.0, 0.0) or s.keep_difference)
    ]
    alone = [k for k, s in enumerate(plan) if s.branches == ("null",)]
    last = max(needed + alone[:1], default=-1)
    return [
        step
        if k <= last or len(step.branches) == 1
        else replace(step, branches=("cond",), weights=None)
        for k, step in enumerate(plan)
    ]


def with_store(plan: Sequence[ScaleStep]) -> list[ScaleStep]:
    """Tell every scale which hidden states the next running scale will look at."""
    out: list[ScaleStep] = []
    needed: set[int] = set()
    for step in reversed(plan):
        if step.run == "skip":
            out.append(step)
            continue
        out.append(storing(step, needed))
        needed = set()
        for group in step.groups:
            needs = group.tokens.needs if group.tokens else ()
            needed |= {group.blocks.stop} if "after" in needs else set()
            needed |= {group.blocks.start} if "before" in needs else set()
    return out[::-1]


def storing(step: ScaleStep, boundaries: set[int]) -> ScaleStep:
    """The step, keeping the hidden states at these block boundaries for the next scale.

    Groups that run in full are cut there, which changes nothing else.

    Raises:
        ProfileError: a boundary lies inside blocks that run on some tokens only.
    """
    groups: list[GroupStep] = []
    for group in step.groups:
        inside = [b for b in sorted(boundaries) if b in group.blocks and b != group.blocks.start]
        if inside and group.tokens:
            raise ProfileError(
                f"the scale after {step.scale.index} needs what entered block {inside[0]} at scale "
                f"{step.scale.index}, which reduces blocks {group.blocks.start} to "
                f"{group.blocks.stop - 1} at once: give both the same span"
            )
        edges = [group.blocks.start, *inside, group.blocks.stop]
        groups += [GroupStep(range(a, b), group.tokens) for a, b in pairwise(edges)]
    return replace(step, groups=tuple(groups), store=tuple(sorted(boundaries)))


def with_capacity(plan: Sequence[ScaleStep]) -> list[ScaleStep]:
    """Cached tokens by the end of each run of scales with the same rows, so buffers grow once."""
    totals, total = [], 0
    for step in plan:
        if step.run != "skip":
            total += max(g.tokens.keep if g.tokens else step.scale.tokens for g in step.groups)
        totals.append(total)
    last = {len(step.branches): total for step, total in zip(plan, totals, strict=True)}
    return [replace(step, capacity=last[len(step.branches)]) for step in plan]
