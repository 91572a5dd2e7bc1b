"""Which plan a model runs: its profile found and checked, a plan of it or a preset enabled."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import ProfileError, StagevarError
from .hub import HubName, local_profile
from .loop.engine import Generation
from .loop.plan import EXACT, Plan, plan_for
from .model.inputs import shown
from .model.protocol import ScaleModel, ScaleSpec
from .model.sampling import Sampling
from .options.layers import forget, stand_ins
from .options.low_rank import Bases, bases_path, low_rank_of
from .profile.discovery import VARIABLE, Found, check_match, find_profile, profile_path
from .profile.distance import Use, far_from
from .profile.files import load_profile, plan_steps
from .profile.fingerprint import (
    Fingerprint,
    joined,
    schedule,
    schedule_name,
)
from .profile.presets import PRESETS, Ranks, preset
from .profile.schema import PlanStep, Profile
from .source import Source

if TYPE_CHECKING:
    from typing_extensions import Self

logger = logging.getLogger("stagevar_runtime")

MEMORY = Path("<memory>")  # where a profile lies that was given as an object


class Planned:
    """A model, what it was loaded from, its profile and the plan it runs."""

    def __init__(self, model: ScaleModel, source: Source) -> None:
        self.model, self.source = model, source
        self.path, self.settings = source.opened.path, source.opened.settings
        self.profile: Profile | None = None
        self.profile_source = "none"
        self.plan_name = EXACT
        self.notes: list[str] = []
        self._profile_path = MEMORY
        self._steps: tuple[PlanStep, ...] = ()
        self._last: Generation | None = None
        self._far: set[str] = set()  # what was said to be far from the measurements

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """Hashes of the architecture and of the weights (read once, when first needed)."""
        source = self.source
        return joined(self.model, source.shapes, *source.hashed(), source.tokenizer_hash())

    def use_profile(
        self,
        profile: str | Path | Profile | None = "auto",
        plan: str | None = None,
        *,
        strict: bool = False,
    ) -> None:
        """Find, check and enable a profile; says in one line which, or warns that there is none."""
        found = self._find(profile)
        if found is None:
            self.disable()
            self.profile, self.profile_source, self.notes = None, "none", []
            if profile is not None:
                logger.warning(
                    "no profile for %s: running the exact path. "
                    "Write one: stagevar-probe calibrate %s",
                    self.path.name,
                    self.path,
                )
            return
        warnings = check_match(
            found.profile,
            self.fingerprint,
            schedule(self.model.scales()),
            strict=strict,
            repair=f"stagevar-probe calibrate {self.path}",
        )
        self.use_bases(found.profile, found.path)
        self._profile_path = found.path
        name = plan or found.profile.default_plan
        self._set(tuple(found.profile.plan(name).steps), name)
        self.profile, self.profile_source = found.profile, f"{found.path} ({found.how})"
        self.notes, self._far = [str(warning) for warning in warnings], set()
        for note in self.notes:
            logger.warning(note)
        doubts = "".join(f"; {doubt}" for doubt in self._doubts())
        logger.info("profile %s, plan %s%s", self.profile_source, self.plan_name, doubts)
        if self._changes_nothing():
            logger.warning("%s", self._idle_note())

    def _doubts(self) -> list[str]:
        """What the profile's default plan was not shown to keep, where that plan runs."""
        profile = self.profile
        if profile is None or profile.target is None or self.plan_name != profile.default_plan:
            return []
        doubt = profile.target.doubt
        return [f"plan {self.plan_name}: {doubt}"] if doubt else []

    def use_bases(self, profile: Profile, path: Path) -> None:
        """Load the measured bases beside a profile, where one of its plans needs them.

        ``path`` is the profile's; one that is in memory only has its bases beside the checkpoint.
        What is missing is said when a plan asks for it.
        """
        if not self.model.info.layers:
            return
        beside = bases_path(profile_path(self.path) if path == MEMORY else path)
        options = [step.features for plan in profile.plans.values() for step in plan.steps]
        needed = any(option is not None and option.basis == "pca" for option in options)
        found = [Bases.load(beside, self.fingerprint.weights)] if needed and beside.exists() else []
        low_rank_of(self.model).use(*found)

    def _find(self, profile: str | Path | Profile | None) -> Found | None:
        if profile is None:
            return None
        if not isinstance(profile, (str, Path, Profile)):
            raise StagevarError(
                f"profile is {shown(profile)}, expected 'auto', None, a path or a Profile"
            )
        if isinstance(profile, Profile):
            return Found(MEMORY, profile, "given")
        named = os.environ.get(VARIABLE) if profile == "auto" else str(profile)
        if named and HubName.parse(named):
            path = local_profile(named, self.fingerprint)
            return Found(path, load_profile(path), f"from {named}")
        return find_profile(self.path, self.fingerprint, profile, os.environ)

    def enable(
        self,
        plan: str | Sequence[PlanStep | Mapping[str, Any]] | None = None,
        profile: str | Path | Profile | None = None,
    ) -> Self:
        """Accelerate: a plan of the profile, a preset, or one's own steps.

        Args:
            plan: a name in the profile (None: its default), a preset
                (``profile/presets.py``), ``exact``, or plan steps, as dicts too.
                A profile's own name wins over a preset's.
            profile: a profile to use instead of the one found.

        Raises:
            ProfileError: no such plan, or one that would change nothing.
        """
        if profile is not None:
            self.use_profile(profile)
        if plan == EXACT and not (self.profile and EXACT in self.profile.plans):
            return self.disable()
        if plan is not None and not isinstance(plan, str):
            self._set(plan_steps(plan), "custom")
        elif self.profile is not None and (plan is None or plan in self.profile.plans):
            name = plan or self.profile.default_plan
            self._set(tuple(self.profile.plan(name).steps), name)
        elif plan in PRESETS:
            steps = preset(plan, self.model.info, self.model.scales(), self._ranks())
            self._set(tuple(steps), plan)
        elif plan is None:
            raise ProfileError(
                f"{self.path.name} has no profile to enable. Write one: "
                f"stagevar-probe calibrate {self.path}, or name a preset: {', '.join(PRESETS)}"
            )
        else:
            known = [*(self.profile.plans if self.profile else ()), *PRESETS]
            raise ProfileError(f"unknown plan {plan!r}, expected one of {', '.join(known)}")
        self._refuse_noop()
        logger.info("plan %s", self.plan_name)
        return self

    def disable(self) -> Self:
        """Run the exact path from now on."""
        self._steps, self.plan_name, self._last = (), EXACT, None
        return self

    def _set(self, steps: tuple[PlanStep, ...], name: str) -> None:
        plan = plan_for(self.model, steps)
        forget(self.model)
        for step in plan:
            stand_ins(self.model, step.scale.index, step.layers)
        self._steps, self.plan_name, self._last = steps, name, None

    @property
    def steps(self) -> tuple[PlanStep, ...]:
        """What differs from the exact path now."""
        return self._steps

    def _changes_nothing(self) -> bool:
        exact = plan_for(self.model, (), self.sampling())
        return tuple(replace(step, asked=None) for step in self.plan()) == exact

    def _idle_note(self) -> str:
        return f"plan {self.plan_name!r} changes nothing on this model: every scale runs in full"

    def _refuse_noop(self) -> None:
        if self._changes_nothing():
            said = self._idle_note()
            self.disable()
            raise ProfileError(f"{said}. Use disable() for the exact path")

    def _ranks(self) -> Ranks | None:
        """Measured ranks by scale and group, where the profile has them."""
        if self.profile is None or not self.profile.measurements:
            return None
        return {m.scale: m.rank_pca for m in self.profile.measurements if m.rank_pca}

    def sampling(self, given: Sampling | None = None, **changes: Any) -> Sampling:
        """What was given, the profile's settings, or the family's published ones, with changes."""
        if given is not None and not isinstance(given, Sampling):
            raise StagevarError(f"sampling is {shown(given)}, expected a Sampling")
        base = given or self.model.default_sampling
        if given is None and self.profile is not None and self.profile.calibration is not None:
            used = self.profile.calibration
            base = replace(
                base, **{k: v for k, v in used.sampling_settings().items() if v is not None}
            )
        return replace(base, **{k: v for k, v in changes.items() if v is not None})

    def plan(self, sampling: Sampling | None = None) -> Plan:
        """What a generation would do, scale by scale."""
        return plan_for(self.model, self._steps, sampling or self.sampling())

    def _steps_for(self, scales: Sequence[ScaleSpec]) -> tuple[PlanStep, ...]:
        """The plan's steps, or none, with one warning, on a size with other scales."""
        if len(scales) == len(self.model.scales()) or not self._steps:
            return self._steps
        note = (
            f"plan {self.plan_name} is for {len(self.model.scales())} scales, this size has "
            f"{len(scales)}: the exact path runs"
        )
        if note not in self.notes:
            self.notes.append(note)
            logger.warning(note)
        return ()

    def _note_far(self, sampling: Sampling, batch: int) -> None:
        """Say once what is far from where the profile was measured, where its plan runs."""
        if self.profile is None or self.profile.calibration is None or not self._steps:
            return
        dtype, device = str(self.model.dtype).removeprefix("torch."), self.model.device.type
        far = far_from(self.profile.calibration, Use(sampling, dtype, device, batch))
        new = [text for name, text in far.items() if name not in self._far]
        if new:
            self._far.update(far)
            note = f"used far from where the profile was measured: {', '.join(new)}"
            self.notes.append(note)
            logger.info(note)

    def _other_schedule(self, scales: Sequence[ScaleSpec]) -> list[str]:
        """Says so where the profile's rows serve a schedule they were not made on."""
        if self.profile is None or not self._steps:
            return []
        made = self.profile.model.schedules
        if schedule(scales) in [[list(size) for size in sizes] for sizes in made.values()]:
            return []
        return [
            f"plan {self.plan_name} was made for {', '.join(made)}, this is "
            f"{schedule_name(scales)}: its rows apply by scale index"
        ]
