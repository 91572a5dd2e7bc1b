"""Load a checkpoint, find its profile, generate: labels or prompts in, images out."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .accelerate.modes import Acceleration, accelerate
from .carried import carried
from .diffusers_style import DiffusersStyle
from .errors import ProfileError, StagevarError
from .hub import HubName, local_profile
from .loop import engine
from .loop.engine import Generation
from .loop.plan import EXACT, Plan, plan_for
from .model.inputs import check_per_scale, shown
from .model.inputs import prompts as checked_prompts
from .model.lru import LRU
from .model.protocol import Conditioning, ScaleModel, ScaleSpec
from .model.sampling import Sampling
from .model.surroundings import undisturbed
from .options.layers import forget, stand_ins
from .options.low_rank import Bases, bases_path, low_rank_of
from .options.precision import precisions_of
from .profile.discovery import VARIABLE, Found, check_match, find_profile, profile_path
from .profile.files import load_profile
from .profile.fingerprint import (
    Fingerprint,
    fingerprint,
    schedule,
    schedule_name,
)
from .profile.presets import PRESETS, Ranks, preset
from .profile.schema import PlanStep, Profile
from .source import Source
from .summary import Summary, memory_use, summary_row
from .text import Encode, TextEncoder

logger = logging.getLogger("stagevar_runtime")

MEMORY = Path("<memory>")  # where a profile lies that was given as an object
SHAPES_KEPT = 64  # shapes whose first call's time is remembered


class Pipeline(DiffusersStyle):
    """A model, what it was loaded from, and the plan it runs.

    ``pipe(prompt=...)`` and other names of diffusers' are in :mod:`.diffusers_style`.
    """

    def __init__(self, model: ScaleModel, source: Source, encode: Encode | None = None) -> None:
        self.model, self.encode, self.source = model, encode, source
        self.path, self.settings = source.opened.path, source.opened.settings
        self.profile: Profile | None = None
        self.profile_source = "none"
        self.plan_name = EXACT
        self.notes: list[str] = []
        self.again: Callable[[], Pipeline] | None = None
        self._profile_path = MEMORY
        self.fast = Acceleration()
        self._lock = threading.RLock()
        self._firsts: LRU[float] = LRU(SHAPES_KEPT)
        self._first_ms = self._last_ms = 0.0
        self._steps: tuple[PlanStep, ...] = ()
        self._last: Generation | None = None

    @cached_property
    def fingerprint(self) -> Fingerprint:
        """Hashes of the architecture and of the weights (read once, when first needed)."""
        return fingerprint(self.model, self.source.opened.tensors)

    def condition(self, **inputs: Any) -> Conditioning:
        """The model's :meth:`condition`."""
        return self.model.condition(**inputs)

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
        self.notes = [str(warning) for warning in warnings]
        for note in self.notes:
            logger.warning(note)
        logger.info("profile %s, plan %s", self.profile_source, self.plan_name)
        if self._changes_nothing():
            logger.warning("%s", self._idle_note())

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
        if isinstance(profile, Profile):
            return Found(MEMORY, profile, "given")
        named = os.environ.get(VARIABLE) if profile == "auto" else str(profile)
        if named and HubName.parse(named):
            path = local_profile(named, self.fingerprint)
            return Found(path, load_profile(path), f"from {named}")
        return find_profile(self.path, self.fingerprint, profile, os.environ)

    def enable(
        self,
        plan: str | Sequence[PlanStep] | None = None,
        profile: str | Path | Profile | None = None,
    ) -> Pipeline:
        """Accelerate: a plan of the profile, a preset, or one's own steps.

        Args:
            plan: a name in the profile (None: its default), a preset
                (``profile/presets.py``), or plan steps. A profile's own name
                wins over a preset's.
            profile: a profile to use instead of the one found.

        Raises:
            ProfileError: no such plan, or one that would change nothing.
        """
        if profile is not None:
            self.use_profile(profile)
        if plan is not None and not isinstance(plan, str):
            self._set(tuple(plan), "custom")
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

    def disable(self) -> Pipeline:
        """Run the exact path from now on."""
        self._steps, self.plan_name, self._last = (), EXACT, None
        return self

    def _set(self, steps: tuple[PlanStep, ...], name: str) -> None:
        plan = self._compile(steps, self.model.scales(), self.model.default_sampling)
        forget(self.model)
        for step in plan:
            stand_ins(self.model, step.scale.index, step.layers)
        self._steps, self.plan_name, self._last = steps, name, None

    @property
    def steps(self) -> tuple[PlanStep, ...]:
        """What differs from the exact path now."""
        return self._steps

    def _changes_nothing(self) -> bool:
        exact = self._compile((), self.model.scales(), self.sampling())
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

    def _compile(
        self, steps: Sequence[PlanStep], scales: tuple[ScaleSpec, ...], sampling: Sampling
    ) -> Plan:
        return plan_for(self.model, steps, sampling, scales)

    def plan(self, sampling: Sampling | None = None) -> Plan:
        """What a generation would do, scale by scale."""
        return self._compile(self._steps, self.model.scales(), sampling or self.sampling())

    def generate(
        self,
        *,
        seed: int | Sequence[int] = 0,
        guidance: float | Sequence[float] | None = None,
        temperature: float | None = None,
        top_k: int | Sequence[int] | None = None,
        top_p: float | None = None,
        sampling: Sampling | None = None,
        observer: engine.Observer | None = None,
        prompts: str | Sequence[str] | None = None,
        **inputs: Any,
    ) -> Generation:
        """Generate one batch.

        Args:
            seed: one number for the batch (as published), or one an image.
            guidance, temperature, top_k, top_p: None keeps the profile's or family's setting. A
                list for guidance or top_k is one number per scale, never per image.
            prompts: what to draw, a string or several, for families that read text (or pass their
                features below).
            sampling: all settings at once, those of no argument above included (smoothed codes,
                a published drop of guidance); None is the profile's or family's.
            inputs: what the family conditions on (VAR: ``labels``, ``(B,)`` integers), and for
                families with several sizes the size.

        Returns:
            A Generation with ``images`` ``(B, 3, H, W)`` RGB in [0, 1].

        Raises:
            StagevarError: an argument is wrong; names it.
            NotFiniteError: the model overflowed.
        """
        with undisturbed():
            return self._generate(
                *(seed, sampling, observer, prompts, inputs),
                guidance=guidance,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
            )

    def _generate(
        self,
        seed: Any,
        sampling: Sampling | None,
        observer: engine.Observer | None,
        prompts: Any,
        inputs: dict[str, Any],
        **changes: Any,
    ) -> Generation:
        info = self.model.info
        begun = time.perf_counter()
        if prompts is not None:
            inputs |= self.read(prompts)
        text_ms = 1000 * (time.perf_counter() - begun)
        size = {name: inputs.pop(name) for name in info.sizes if name in inputs}
        missing = set(info.inputs) - inputs.keys()
        unknown = inputs.keys() - {*info.inputs, *info.optional_inputs}
        if missing or unknown:
            raise StagevarError(
                f"got the inputs {sorted(inputs) or 'none'}, the {info.family} family takes "
                f"{', '.join((*info.inputs, *info.optional_inputs, *info.sizes))}"
            )
        scales = self.model.scales(**size)
        sampling = self.sampling(sampling, **changes)
        for name in ("guidance", "top_k"):
            if changes[name] is not None:
                check_per_scale(name, getattr(sampling, name), len(scales))
        plan = self._compile(self._steps_for(scales), scales, sampling)
        begun = time.perf_counter()
        with self._lock:  # graphs have one memory: another thread waits for its turn
            made = self.fast.attempt(
                self.model,
                partial(
                    engine.generate,
                    *(self.model, self.condition(**inputs), plan),
                    seed=seed,
                    observer=observer,
                    graphs=self.fast.graphs,
                ),
            )
        made.text_ms, self._last_ms = text_ms, 1000 * (time.perf_counter() - begun)
        shape = (tuple(replace(step, asked=None) for step in plan), made.images.shape)
        self._first_ms = self._firsts.get(shape, lambda: self._last_ms)
        self._last = made
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled by what it was loaded from (:mod:`.carried`). Raises StagevarError."""
        return carried(self)

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        if state["profile"] is not None:
            self.use_bases(state["profile"], state["_profile_path"])
        self._set(state["_steps"], state["plan_name"])
        self.__dict__.update(state)

    def remake(self, device: torch.device, dtype: torch.dtype) -> None:
        """The model once more, from its files; profile, plan, bases and mode stay as they are."""
        model = self.source.build(device, dtype)
        if model.info.layers:
            low_rank_of(model).use(*low_rank_of(self.model).bases)
            precisions_of(model).emulate = precisions_of(self.model).emulate
        self.model = model
        self.fast = accelerate(model, self.fast.mode)
        self._set(self._steps, self.plan_name)

    def read(self, prompts: str | Sequence[str]) -> dict[str, Tensor]:
        """Prompts, a string or several, as the inputs of the model's ``condition``.

        Raises:
            StagevarError: the family draws from labels, or its encoder cannot be had.
        """
        if self.encode is None:
            raise StagevarError(
                f"got prompts, but the {self.model.info.family} family draws from "
                f"{', '.join(self.model.info.inputs)}"
            )
        texts = checked_prompts(prompts)
        if not self.offloads:
            return dict(self.encode(texts))
        assert isinstance(self.encode, TextEncoder)
        self.encode.to(self.model.device)
        try:
            return dict(self.encode(texts))
        finally:
            self.encode.to(torch.device("cpu"))

    def read_condition(self, prompts: Sequence[str]) -> Conditioning:
        """Prompts as the model's conditioning."""
        return self.model.condition(**self.read(prompts))

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

    def summary(self) -> Summary:
        """What is asked and done at every scale, with the times of the last call."""
        last = self._last
        plan = last.plan if last else self.plan()
        batch = last.images.shape[0] if last else 1
        notes = [*self.model.info.notes, *self.notes]
        notes += self.fast.notes()
        if self.plan_name == EXACT and self.profile is None:
            notes.append("no profile: the exact path runs")
        if self.plan_name != EXACT and self._changes_nothing():
            notes.append(self._idle_note())
        notes += self._other_schedule([step.scale for step in plan])
        return Summary(
            model=f"{self.model.info.family} {self.path.name}, depth {self.model.info.depth}",
            device=str(self.model.device),
            dtype=str(self.model.dtype).removeprefix("torch."),
            profile=self.profile_source,
            plan=self.plan_name,
            notes=tuple(notes),
            rows=tuple(
                summary_row(self.model, step, last.scale_ms[k] if last else 0.0, batch)
                for k, step in enumerate(plan)
            ),
            loop_ms=last.loop_ms if last else 0.0,
            decode_ms=last.decode_ms if last else 0.0,
            images=batch if last else 0,
            first_ms=self._first_ms,
            last_ms=self._last_ms,
            memory=memory_use(self.model, plan, batch, last.cache_bytes if last else []),
        )
