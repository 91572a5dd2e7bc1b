"""Load a checkpoint, find its profile, generate: labels or prompts in, images out."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .accelerate.modes import Acceleration, accelerate
from .carried import carried
from .diffusers_style import DiffusersStyle
from .errors import StagevarError
from .loop import engine
from .loop.engine import Generation
from .loop.plan import EXACT, plan_for
from .model.inputs import check_per_scale
from .model.inputs import prompts as checked_prompts
from .model.lru import LRU
from .model.protocol import Conditioning, ScaleModel
from .model.sampling import Sampling
from .model.surroundings import undisturbed
from .options.low_rank import low_rank_of
from .options.precision import dtype_notes, precisions_of
from .planned import Planned
from .source import Source
from .summary import Summary, memory_use, summary_row
from .text import Encode, TextEncoder

logger = logging.getLogger("stagevar_runtime")

SHAPES_KEPT = 64  # shapes whose first call's time is remembered


class Pipeline(Planned, DiffusersStyle):
    """A model that draws by its plan: :class:`~.planned.Planned` says which.

    ``pipe(prompt=...)`` and other names of diffusers' are in :mod:`.diffusers_style`.
    """

    def __init__(self, model: ScaleModel, source: Source, encode: Encode | None = None) -> None:
        super().__init__(model, source)
        self.encode = encode
        self.again: Callable[[], Pipeline] | None = None
        self.fast = Acceleration()
        self._lock = threading.RLock()
        self._firsts: LRU[float] = LRU(SHAPES_KEPT)
        self._first_ms = self._last_ms = 0.0

    def condition(self, **inputs: Any) -> Conditioning:
        """The model's :meth:`condition`."""
        return self.model.condition(**inputs)

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
        plan = plan_for(self.model, self._steps_for(scales), sampling, scales)
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
        self._note_far(sampling, made.images.shape[0])
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

    def summary(self) -> Summary:
        """What is asked and done at every scale, with the times of the last call."""
        last = self._last
        plan = last.plan if last else self.plan()
        batch = last.images.shape[0] if last else 1
        notes = [*self.model.info.notes, *self.notes]
        notes += self.fast.notes()
        notes += dtype_notes(self.model.device, self.model.dtype)
        if self.plan_name == EXACT and self.profile is None:
            notes.append("no profile: the exact path runs")
        if self.plan_name != EXACT and self._changes_nothing():
            notes.append(self._idle_note())
        notes += self._doubts()
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
