"""Which rows run at a scale: both branches, one, or null on part of the tokens."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ProfileError
from ..model.protocol import Branch, ModelInfo, ScaleSpec
from ..model.sampling import Sampling
from ..options.tokens import kept_tokens
from ..profile.schema import Guidance, PlanStep

ALONE: dict[Guidance, Branch] = {"cond": "cond", "null": "null", "delta": "cond"}
"""Which branch is left where guidance is not full."""


@dataclass(frozen=True)
class Rows:
    """The rows of one scale. ``null_tokens``: on how many tokens null runs (0: on all, or not at
    all). ``published_off``: the publisher drops guidance here, and no strength was asked for."""

    mode: Guidance
    null_tokens: int
    published_off: bool

    @property
    def guided(self) -> bool:
        """Whether two branches are combined, be it with an earlier scale's difference."""
        return self.mode in ("full", "delta")

    @property
    def branches(self) -> tuple[Branch, ...]:
        """Those that run on every token."""
        return ("cond", "null") if self.mode == "full" else (ALONE[self.mode],)


class Branches:
    """What is left of guidance as the scales go by: asked after them in order.

    ``mode`` is what was asked for last and holds on; ``left`` what ran last; ``partly``: null is
    still there, having seen part of the tokens.
    """

    def __init__(self, info: ModelInfo, sampling: Sampling) -> None:
        self.info, self.sampling = info, sampling
        self.mode: Guidance = "full"
        self.left: Guidance = "full"
        self.partly = False

    def at(self, asked: PlanStep, scale: ScaleSpec) -> Rows:
        """The rows of the next scale.

        Raises:
            ProfileError: the family cannot run them, or they were dropped for good.
        """
        if self.partly and asked.null_keep is not None:
            self.mode = self.left = "full"
        self.mode = self._asked(asked, scale)
        off = self._published_off(asked, scale)
        before, self.left = (
            self.left,
            "cond" if off and self.mode in ("full", "delta") else self.mode,
        )
        self._check_left(before, scale)
        few = self._null_tokens(asked, off, scale) if asked.null_keep is not None else 0
        rows = Rows(self.left, few, off)
        self.partly = bool(few) or (self.partly and asked.run == "skip")
        if few:
            self.mode = self.left = "cond"
        return rows

    def _asked(self, asked: PlanStep, scale: ScaleSpec) -> Guidance:
        wanted, info = asked.guidance, self.info
        if wanted is None:
            return self.mode
        if wanted == "full":
            return wanted
        branch = ALONE[wanted]
        if branch not in info.branches or (branch == "null" and not info.rows_independent):
            raise ProfileError(
                f"scale {scale.index} asks for the {branch!r} branch alone, which the "
                f"{info.family} family cannot run without the other. Use 'cond'"
            )
        if wanted == "delta" and not info.guides_logits:
            raise ProfileError(
                f"scale {scale.index} asks for 'delta' guidance, but this {info.family} model "
                "guides hidden states, so its logits hold no difference. Use 'cond'"
            )
        return wanted

    def _published_off(self, asked: PlanStep, scale: ScaleSpec) -> bool:
        start = self.sampling.guidance_off_from
        return start is not None and asked.guidance_scale is None and scale.index >= start

    def _check_left(self, before: Guidance, scale: ScaleSpec) -> None:
        """With a cache, rows that the scale before dropped cannot return."""
        if before == "full" or not self.info.causal:
            return
        if self.left == "full":
            raise ProfileError(
                f"scale {scale.index} asks for guidance again after it was dropped: the "
                f"{self.info.family} family caches keys and values, so dropped rows cannot return"
            )
        if ALONE[self.left] != ALONE[before]:
            raise ProfileError(
                f"scale {scale.index} asks for the {ALONE[self.left]!r} branch, but only "
                f"{ALONE[before]!r} is left"
            )

    def _null_tokens(self, asked: PlanStep, off: bool, scale: ScaleSpec) -> int:
        """On how many tokens null runs; 0 where that is all of them, as at every scale before."""
        assert asked.null_keep is not None
        where, info = f"scale {scale.index} guides part of its tokens", self.info
        if not ("null" in info.branches and info.rows_independent and info.guides_logits):
            raise ProfileError(
                f"{where}, which the {info.family} family cannot do: there the null branch does "
                "not run alone on some tokens. Use 'cond' or 'delta'"
            )
        if self.left != "full" or off:
            raise ProfileError(f"{where}, but guidance is dropped there")
        if asked.tokens is not None or scale.kind != "ar" or not scale.is_map:
            raise ProfileError(f"{where}, which needs a plain token map that runs in full")
        keep = kept_tokens(asked.null_keep, scale.tokens, info.tile)
        return keep if keep < scale.tokens or self.partly else 0
