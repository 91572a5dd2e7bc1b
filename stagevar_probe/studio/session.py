"""What the page shows: exact and accelerated pictures of one wish, and plans of one's own."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from stagevar_runtime.errors import ProfileError, StagevarError
from stagevar_runtime.hub import output_beside
from stagevar_runtime.loop.plan import EXACT
from stagevar_runtime.model.lru import LRU
from stagevar_runtime.pipeline import Pipeline
from stagevar_runtime.profile import PlanEntry, PlanStep, TokenOption, write_profile
from stagevar_runtime.profile.discovery import profile_path
from stagevar_runtime.profile.presets import PRESETS
from stagevar_runtime.profile.strict_yaml import dump_yaml

from ..metrics.images import psnr, ssim
from ..observe.film import Film
from ..report.filmstrip import film, filmstrip, row

OWN = "your own"
KEPT = 64  # exact pictures that are kept
SELECT, RESTORE = "norm", "cache"


@dataclass(frozen=True)
class Wish:
    """What to draw: a prompt, or a class number as text, and a seed."""

    text: str
    seed: int = 0


@dataclass(frozen=True)
class Sliders:
    """A plan as sliders say it, on a model of ``count`` scales.

    ``guided``: scales with guidance, from the first. ``temperature``: of those without. ``keep``:
    the share of tokens that run, from scale ``tokens_from`` on. ``skipped``: scales left out at the
    end. ``precision``: of every scale's products, None as the model is.
    """

    count: int
    guided: int
    temperature: float = 1.0
    keep: float = 1.0
    tokens_from: int = 0
    skipped: int = 0
    precision: str | None = None

    def steps(self) -> tuple[PlanStep, ...]:
        """The plan. Raises ProfileError for what no plan can say."""
        found = [self._step(k) for k in range(self.count)]
        return tuple(step for step in found if step is not None)

    def _step(self, k: int) -> PlanStep | None:
        if k >= self.count - self.skipped:
            return PlanStep(scale=k, run="skip")
        said: dict[str, Any] = {}
        if k == self.guided:
            said["guidance"] = "cond"
        if k >= self.guided and self.temperature != 1.0:
            said["temperature"] = self.temperature
        if k >= self.tokens_from and self.keep < 1.0:
            said["tokens"] = TokenOption(keep=self.keep, select=SELECT, restore=RESTORE)
        if self.precision:
            said["precision"] = self.precision
        try:
            return PlanStep(scale=k, **said) if said else None
        except ValidationError as error:
            raise ProfileError(f"scale {k}: {error.errors()[0]['msg']}") from error


@dataclass(frozen=True)
class Shown:
    """Both pictures of a wish. ``psnr`` in dB and ``ssim`` of the accelerated to the exact."""

    exact: Film
    fast: Film
    psnr: float
    ssim: float
    strip: str

    @property
    def difference(self) -> Tensor:
        """What differs, four times as strong, ``(3, H, W)`` in [0, 1]."""
        return (4 * (self.fast.made.images[0] - self.exact.made.images[0]).abs()).clamp(0, 1)

    def totals(self) -> tuple[float, float]:
        """Milliseconds of loop and decoder, exact and accelerated."""
        films = (self.exact.made, self.fast.made)
        return tuple(made.loop_ms + made.decode_ms for made in films)  # type: ignore[return-value]


class Studio:
    """One pipeline, drawn from by one caller at a time."""

    def __init__(self, pipeline: Pipeline, sampling: dict[str, Any] | None = None) -> None:
        self.pipeline, self.sampling = pipeline, sampling or {}
        self.scales = pipeline.model.scales()
        self.start = pipeline.plan_name if pipeline.plan_name != EXACT else next(iter(PRESETS))
        self._exact: LRU[Film] = LRU(KEPT)
        self._lock = threading.Lock()

    def plans(self) -> list[str]:
        """Names to choose from: the profile's, the presets this model can run, one's own."""
        profile = self.pipeline.profile
        names = [*(profile.plans if profile else ()), *PRESETS]
        return [name for name in dict.fromkeys(names) if self._runs(name)] + [OWN]

    def _runs(self, name: str) -> bool:
        try:
            self.steps(name)
        except StagevarError:
            return False
        return True

    def steps(self, name: str) -> tuple[PlanStep, ...]:
        """The steps of a plan. Raises ProfileError where there is no such plan or it cannot run."""
        with self._lock:
            return self.pipeline.enable(name).steps

    def show(self, wish: Wish, steps: Sequence[PlanStep]) -> Shown:
        """Draw ``wish`` exactly, unless it is known, and by ``steps``.

        Raises:
            StagevarError: the wish or the plan does not fit the model.
        """
        with self._lock:
            exact = self._exact.get(wish, lambda: self._drawn(wish, ()))
            fast = self._drawn(wish, steps)
        profile = self.pipeline.profile
        strip = filmstrip(
            [row("exact", exact), row("accelerated", fast)],
            self.scales,
            profile.stages if profile else None,
        )
        images = fast.made.images, exact.made.images
        return Shown(exact, fast, float(psnr(*images)), float(ssim(*images)), strip)

    def _drawn(self, wish: Wish, steps: Sequence[PlanStep]) -> Film:
        if steps:
            self.pipeline.enable(steps)
        else:
            self.pipeline.disable()
        return film(self.pipeline, [wish.seed], **self._inputs(wish), **self.sampling)

    def _inputs(self, wish: Wish) -> dict[str, Any]:
        if not self.pipeline.model.info.classes:
            return {"prompts": [wish.text]}
        try:
            return {"labels": [int(wish.text)]}
        except ValueError as error:
            raise StagevarError(f"got label {wish.text!r}, expected a number") from error

    def yaml(self, steps: Sequence[PlanStep]) -> str:
        """The plan as a profile holds it."""
        return dump_yaml(PlanEntry(steps=tuple(steps)))

    def save(self, name: str, steps: Sequence[PlanStep]) -> Path:
        """Put the plan into the profile, marked as unproven; returns the profile's path.

        Raises:
            ProfileError: there is no profile, a measured plan has this name, or it is no name.
        """
        profile = self.pipeline.profile
        if profile is None:
            raise ProfileError("no profile to save into. Write one: stagevar-probe calibrate")
        if not name.isidentifier():
            raise ProfileError(f"got the name {name!r}, expected letters, digits and _")
        there = profile.plans.get(name)
        if there is not None and not there.unproven:
            raise ProfileError(f"plan {name} was measured: save under another name")
        if not steps:
            raise ProfileError("the plan changes nothing: there is nothing to save")
        plan = PlanEntry(steps=tuple(steps), unproven=True)
        path = profile_path(output_beside(self.pipeline.path))
        changed = profile.model_copy(update={"plans": {**profile.plans, name: plan}})
        write_profile(changed, path)
        self.pipeline.profile = changed
        return path
