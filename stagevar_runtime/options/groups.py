"""What reducing tokens means for the blocks of one scale: which run together, on how many."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import ProfileError
from ..model.protocol import ModelInfo, ScaleSpec
from .restorers import RESTORERS
from .selectors import SELECTORS
from .tokens import BlockSide, kept_tokens

if TYPE_CHECKING:  # a family's modules do without pydantic
    from .asked import TokenOption


@dataclass(frozen=True)
class TokenStep:
    """Run ``keep`` tokens only."""

    keep: int
    select: str
    restore: str

    @property
    def needs(self) -> frozenset[BlockSide]:
        """What the previous scale must have kept."""
        return frozenset(SELECTORS[self.select].needs + RESTORERS[self.restore].needs)


@dataclass(frozen=True)
class GroupStep:
    """Consecutive blocks that run together, on all tokens or on some."""

    blocks: range
    tokens: TokenStep | None = None


def token_groups(
    option: TokenOption | None, info: ModelInfo, scale: ScaleSpec
) -> tuple[GroupStep, ...]:
    """The groups of one scale; those of the model where nothing is reduced.

    Raises:
        ProfileError: the scale is no plain token map, or has other groups than ratios were given.
    """
    if option is None:
        return tuple(GroupStep(blocks) for blocks in info.groups)
    if scale.kind != "ar" or not scale.is_map:
        raise ProfileError(
            f"scale {scale.index} is no plain token map: its tokens cannot be reduced"
        )
    spans: tuple[range, ...] = {
        "all": (range(info.depth),),
        "group": info.groups,
        "block": tuple(range(i, i + 1) for i in range(info.depth)),
    }[option.span]
    ratios = option.keep if isinstance(option.keep, tuple) else (option.keep,) * len(spans)
    if len(ratios) != len(spans):
        raise ProfileError(
            f"scale {scale.index} gives {len(ratios)} keep ratios, "
            f"the model has {len(spans)} {option.span}s"
        )
    groups = []
    for blocks, ratio in zip(spans, ratios, strict=True):
        keep = kept_tokens(ratio, scale.tokens, info.tile)
        tokens = TokenStep(keep, option.select, option.restore) if keep < scale.tokens else None
        groups.append(GroupStep(blocks, tokens))
    return tuple(groups) if any(g.tokens for g in groups) else token_groups(None, info, scale)
