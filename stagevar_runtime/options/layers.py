"""Options that put something in place of the blocks' linear layers at a scale.

An option is a model of what is asked (``asked.py``, a field of ``PlanStep``), a frozen step that
says what stands in for which layer, and a line in :data:`LAYER_OPTIONS` under the field's name.
Plan, loop, pipeline and summary know no more of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from ..kernels.linear import LowRankLayers
from ..model.protocol import ModelInfo, ScaleModel, ScaleSpec
from . import low_rank, precision

StandIns = Mapping[int, LowRankLayers]  # by block and layer


class LayerStep(Protocol):
    """What such an option does at one scale. Frozen and hashable: plans are compared."""

    def stand_ins(self, model: ScaleModel, scale: int, before: StandIns) -> StandIns:
        """What stands in for layers, given what the options before it put there.

        Made at the first call, then kept with the model.
        """

    def description(self, model: ScaleModel) -> str:
        """What ``model`` does with it, for a summary."""


@dataclass(frozen=True)
class LayerOption:
    """``resolve`` what is asked of a scale into a step, or raise ProfileError where a model cannot;
    ``forget`` what was made for a model's earlier plans."""

    resolve: Callable[[Any, ModelInfo, ScaleSpec], LayerStep]
    forget: Callable[[ScaleModel], None]


LAYER_OPTIONS: dict[str, LayerOption] = {
    "features": LayerOption(low_rank.resolve, low_rank.forget),
    "precision": LayerOption(precision.resolve, precision.forget),
}
"""In the order in which they act on each other's layers."""


def layer_steps(asked: object, info: ModelInfo, scale: ScaleSpec) -> tuple[LayerStep, ...]:
    """The steps of one scale, from the plan step that asks for them."""
    options = [(handler, getattr(asked, name)) for name, handler in LAYER_OPTIONS.items()]
    return tuple(h.resolve(option, info, scale) for h, option in options if option is not None)


def stand_ins(model: ScaleModel, scale: int, steps: Iterable[LayerStep]) -> StandIns:
    """What the blocks of ``model`` use at this scale; empty: their own layers."""
    made: StandIns = {}
    for step in steps:
        made = step.stand_ins(model, scale, made)
    return made


def forget(model: ScaleModel) -> None:
    """Let go of what was made for earlier plans."""
    for handler in LAYER_OPTIONS.values():
        handler.forget(model)
