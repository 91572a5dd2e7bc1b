"""What a suite is: what a model is asked, what counts as an answer, what real pictures do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..metrics.protocol import Quality

Rates = dict[str, Sequence[float]]  # a value with its interval, by name


@dataclass(frozen=True)
class Kind:
    """A kind of prompt.

    Attributes:
        name: in results.
        short: the head of its column.
        counted: whether the overall rate is over it, too.
        held_out: whether training never showed its prompts.
    """

    name: str
    short: str
    counted: bool = True
    held_out: bool = True


Score = Callable[[Any, Tensor, Sequence[str]], Tensor]


def no_bounds(metric: Quality) -> Rates:
    """Nothing more is known of the ceiling."""
    return {}


@dataclass(frozen=True)
class Suite:
    """A suite, as :func:`~stagevar_probe.evaluate.evaluation.run_suite` needs it.

    Attributes:
        name: of the suite.
        kinds: of its prompts, in the order they are shown.
        metric: what pictures are scored by, 1 where one passes.
        ask: count and seed → that many pairs of kind and prompt, the kinds in turn.
        real: count and the side that a model's tokenizer takes, if it does → pictures (N, 3, H, W)
            in [0, 1] to find the ceiling with, and their prompts.
        training: metric → features (N, F) of training pictures.
        caption: of the table: what passes and what the overall rate is over.
        passes: the head of the column.
        made: how real pictures came about.
        source: where they are from, for the record.
        beside: other scores (B,), by the heads of their columns: metric, features (B, F) and
            prompts → scores.
        bounds: metric → figures that say more about the ceiling; ``description`` has a sentence
            for each. The metric is a copy of ``metric`` that sees through the features asked for.
    """

    name: str
    kinds: tuple[Kind, ...]
    metric: Quality
    ask: Callable[[int, int], list[tuple[str, str]]]
    real: Callable[[int, int | None], tuple[Tensor, list[str]]]
    training: Callable[[Any], Tensor]
    caption: str
    passes: str = "passed"
    made: str = "real"
    source: str | None = None
    beside: Mapping[str, Score] = field(default_factory=dict)
    bounds: Callable[[Any], Rates] = no_bounds
    description: Mapping[str, str] = field(default_factory=dict)
