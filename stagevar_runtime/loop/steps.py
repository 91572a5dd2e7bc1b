"""One frozen step a scale: what the loop does, with nothing left to decide."""

from __future__ import annotations

from dataclasses import dataclass

from ..model.protocol import Branch, ScaleSpec
from ..model.sampling import ScaleSampling
from ..options.groups import GroupStep
from ..options.guidance import Weights
from ..options.layers import LayerStep
from ..options.low_rank import LowRankStep
from ..profile.schema import PlanStep

AS_IT_IS = ScaleSampling()  # neither top-k nor top-p


@dataclass(frozen=True)
class ScaleStep:
    """What happens at one scale.

    ``branches``: the rows that run (``cond`` and ``null``, or one). ``weights``: how they combine,
    None with one branch alone. ``delta``: the cond branch runs and an earlier scale's cond - null
    stands in for null; ``keep_difference``: this is that earlier scale. ``null_tokens``: null runs
    on that many tokens, here and from here on (0: on all). ``store``: block indices
    whose input (depth: the last output) the next reduced scale needs. ``capacity``: cached tokens
    a block needs until the batch shrinks. ``sampling``: how its ids are drawn from tempered logits.
    ``layers``: what stands in for linear layers, option by option. ``asked``: None where the scale
    runs as published.
    """

    scale: ScaleSpec
    run: str = "full"
    branches: tuple[Branch, ...] = ("cond", "null")
    weights: Weights | None = None
    delta: bool = False
    keep_difference: bool = False
    null_tokens: int = 0
    temperature: float = 1.0
    sampling: ScaleSampling = AS_IT_IS
    groups: tuple[GroupStep, ...] = ()
    layers: tuple[LayerStep, ...] = ()
    store: tuple[int, ...] = ()
    capacity: int = 0
    asked: PlanStep | None = None

    @property
    def reduced(self) -> bool:
        """Whether any group runs on some tokens only."""
        return any(group.tokens for group in self.groups)

    @property
    def low_rank(self) -> LowRankStep | None:
        """Which layers see part of what enters them."""
        return next((step for step in self.layers if isinstance(step, LowRankStep)), None)


Plan = tuple[ScaleStep, ...]
