"""A pipeline called as those of diffusers are: one prompt in, PIL pictures out.

pipe = stagevar_runtime.Pipeline.from_pretrained("owner/name")
pipe(prompt="a red cube", generator=torch.Generator().manual_seed(7)).images[0].save("cube.png")
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from .accelerate.modes import Acceleration
from .errors import StagevarError
from .loop.engine import Generation, Observer
from .loop.plan import ScaleStep
from .model.protocol import ScaleModel, ScaleSpec, State
from .options.low_rank import bases_path, low_rank_of
from .profile.discovery import profile_path
from .profile.files import write_profile
from .profile.fingerprint import Fingerprint
from .profile.schema import Profile
from .source import Source, checked_device
from .text import Encode, TextEncoder

if TYPE_CHECKING:
    from typing_extensions import Self

    from .pipeline import Pipeline

OutputType = Literal["pil", "pt", "np"]
Callback = Callable[[Any, int, ScaleSpec, dict[str, Any]], object]
"""Called after every scale that ran, with the pipeline, the scale's index and its size, and a dict:
``canvas`` ``(B, C, H, W)``, and ``preview``, which decodes it to ``(B, 3, H, W)`` when called."""

MAX_SEED = 2**63 - 1


@dataclass
class PipelineOutput:
    """``images``: a list of PIL pictures, a tensor ``(B, 3, H, W)`` or an array ``(B, H, W, 3)``,
    both in [0, 1]. ``made`` has ids and times; None where the callback stopped the generation."""

    images: Any
    made: Generation | None = None


class ProgressBar:
    """A bar on standard error, for a terminal; a context manager with ``update`` as tqdm's."""

    def __init__(self, total: int, width: int = 24) -> None:
        self.total, self.width, self.done = total, width, 0

    def __enter__(self) -> ProgressBar:
        return self

    def update(self, n: int = 1) -> None:
        """``n`` more scales are done."""
        self.done += n
        full = "#" * (self.width * self.done // self.total)
        text = f"\rscale {self.done}/{self.total} [{full:<{self.width}}]"
        print(text, end="", file=sys.stderr, flush=True)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.done:
            print(file=sys.stderr)


class _Stopped(Exception):
    """The callback asked for no more scales; ``images`` is what the canvas held."""

    def __init__(self, images: Tensor) -> None:
        super().__init__("stopped by callback_on_step_end")
        self.images = images


class DiffusersStyle:
    """What :class:`~stagevar_runtime.Pipeline` does under the names that diffusers uses."""

    if TYPE_CHECKING:
        model: ScaleModel
        encode: Encode | None
        fast: Acceleration
        generate: Callable[..., Generation]
        read: Callable[[Sequence[str]], dict[str, Tensor]]
        remake: Callable[[torch.device, torch.dtype], None]
        source: Source
        profile: Profile | None

        @property
        def fingerprint(self) -> Fingerprint: ...

    offloads = False
    _interrupt = False
    _bar_disabled: bool | None = None

    def __call__(
        self,
        prompt: str | Sequence[str] | None = None,
        *,
        negative_prompt: str | Sequence[str] | None = None,
        height: int | None = None,
        width: int | None = None,
        guidance_scale: float | Sequence[float] | None = None,
        num_images_per_prompt: int = 1,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        output_type: OutputType = "pil",
        callback_on_step_end: Callback | None = None,
        **more: Any,
    ) -> PipelineOutput:
        """Draw pictures of one prompt or of several.

        Args:
            prompt: for families that read text; others take ``labels=``.
            negative_prompt: what guidance leads away from, one for all prompts or one for each.
            height, width: pixels, for families with several sizes.
            guidance_scale: None is the profile's or the family's; one number, or one a scale.
            num_images_per_prompt: pictures of each prompt, one after the other.
            generator: every picture's seed is drawn from it, or from its own of a list. None:
                from PyTorch's global one.
            output_type: ``pil``, ``pt`` or ``np``.
            callback_on_step_end: see :data:`Callback`. It stops the generation by setting
                ``pipe._interrupt = True``; the pictures are then what the canvas held. With one,
                graphs are not used.
            more: anything else that :meth:`generate` takes, ``seed=`` instead of ``generator``.

        Raises:
            StagevarError: an argument does not fit the family or another argument.
        """
        if output_type not in ("pil", "pt", "np"):
            raise StagevarError(f"got output_type {output_type!r}, expected pil, pt or np")
        if num_images_per_prompt < 1:
            raise StagevarError(f"got num_images_per_prompt {num_images_per_prompt}, expected 1")
        said = {"height": height, "width": width, "guidance": guidance_scale}
        inputs = {name: value for name, value in said.items() if value is not None} | more
        if prompt is not None:
            inputs |= self._read_prompts(prompt, negative_prompt, num_images_per_prompt)
        elif negative_prompt is not None:
            raise StagevarError("got a negative_prompt, expected a prompt beside it")
        elif "labels" in inputs:
            labels = torch.as_tensor(inputs["labels"]).flatten()
            inputs["labels"] = labels.repeat_interleave(num_images_per_prompt)
        if "seed" not in inputs:
            batch = next((len(inputs[n]) for n in self.model.info.inputs if n in inputs), 1)
            inputs["seed"] = seeds_of(generator, batch)
        elif generator is not None:
            raise StagevarError("got both generator and seed, expected one of them")
        if callback_on_step_end is None and not self._shows_bar():
            made = self.generate(**inputs)
            return PipelineOutput(_as(output_type, made.images), made)
        if "observer" in inputs:
            raise StagevarError("got an observer and a callback or a bar, expected one of them")
        try:
            with _Scales(self, callback_on_step_end) as scales:
                made = self.generate(observer=scales, **inputs)
        except _Stopped as stopped:
            return PipelineOutput(_as(output_type, stopped.images))
        return PipelineOutput(_as(output_type, made.images), made)

    def _read_prompts(
        self, prompt: str | Sequence[str], negative: str | Sequence[str] | None, times: int
    ) -> dict[str, Tensor]:
        """Features with a row a picture; those of the negative prompt as the null branch's."""
        info = self.model.info
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        found = self._repeated(self.read(prompts), times)
        if negative is None:
            return found
        if not {f"null_{name}" for name in info.inputs} <= {*info.optional_inputs}:
            raise StagevarError(
                f"got a negative_prompt, but the {info.family} family has one null branch of its "
                "own. Leave it out"
            )
        others = [negative] if isinstance(negative, str) else list(negative)
        if len(others) not in (1, len(prompts)):
            raise StagevarError(
                f"got {len(others)} negative prompts, expected 1 or {len(prompts)}, as prompts"
            )
        null = self.read(others)
        null = null if len(others) == 1 else self._repeated(null, times)
        return found | {f"null_{name}": null[name] for name in info.inputs}

    def _repeated(self, features: Mapping[str, Tensor], times: int) -> dict[str, Tensor]:
        own = self.model.info.inputs  # those of the null prompt have one row for all
        return {n: t.repeat_interleave(times, 0) if n in own else t for n, t in features.items()}

    def progress_bar(self, total: int) -> Any:
        """What shows the scales of one call: replace it by any ``total -> tqdm``-like bar."""
        return ProgressBar(total)

    def set_progress_bar_config(self, *, disable: bool | None = None) -> None:
        """Whether there is a bar. None: in a terminal, unless graphs would not run with it."""
        self._bar_disabled = disable

    def _shows_bar(self) -> bool:
        if self._bar_disabled is None:  # graphs do not run with an observer
            return sys.stderr.isatty() and self.fast.graphs is None
        return not self._bar_disabled

    @classmethod
    def from_pretrained(
        cls,
        checkpoint: str | Path,
        *,
        torch_dtype: torch.dtype | None = None,
        revision: str | None = None,
        **how: Any,
    ) -> Pipeline:
        """:func:`stagevar_runtime.load` with diffusers' names: a folder, a file or a Hub name."""
        from .loading import load

        name = f"{checkpoint}@{revision}" if revision else checkpoint
        return load(name, **({"dtype": torch_dtype} if torch_dtype else {}) | how)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write what :meth:`from_pretrained` loads again: checkpoint, image tokenizer, words,
        options, profile with its bases. Other text encoders stay where they are.

        Returns:
            The checkpoint: its file in ``folder``, or the folder where it is several.

        Raises:
            StagevarError: the folder is not empty or cannot be written.
        """
        folder = Path(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if any(folder.iterdir()):
                raise StagevarError(f"{folder}: is not empty, expected a new folder")
            saved = self.source.save(folder)
            if self.profile is not None:
                path = profile_path(saved)
                write_profile(self.profile, path)
                bases = low_rank_of(self.model).bases if self.model.info.layers else ()
                for one in bases[:1]:
                    bases_path(path).write_bytes(one.dump(self.fingerprint.weights))
        except OSError as error:
            raise StagevarError(f"{folder}: cannot be written ({error.strerror})") from error
        return saved

    def to(
        self,
        device: str | torch.device | torch.dtype | None = None,
        dtype: torch.dtype | None = None,
    ) -> Self:
        """The same pipeline on another device or in another dtype, loaded again from its files.

        The profile's plan stays. Returns the pipeline.

        Raises:
            StagevarError: the device is not there, or the model was not loaded from files.
        """
        if isinstance(device, torch.dtype):
            device, dtype = None, device
        here = self.model.device if device is None else checked_device(device)
        dtype = dtype or self.model.dtype
        if (here, dtype) != (self.model.device, self.model.dtype):
            self.remake(here, dtype)
        if isinstance(self.encode, TextEncoder):
            self.encode.to(torch.device("cpu") if self.offloads else here)
        return self

    def enable_model_cpu_offload(self) -> None:
        """Keep the text encoder on the CPU but for the moment it reads prompts.

        Raises:
            StagevarError: there is none, or it is a function of one's own.
        """
        if not isinstance(self.encode, TextEncoder):
            what = "none" if self.encode is None else "a function of your own"
            raise StagevarError(f"the text encoder is {what}, expected one that can be moved")
        self.offloads = True
        self.encode.to(torch.device("cpu"))


class _Scales(Observer):
    """Moves the bar and calls back after every scale."""

    def __init__(self, pipe: DiffusersStyle, callback: Callback | None) -> None:
        self.pipe, self.callback = pipe, callback
        self.bar: Any = None
        self.shown = 0
        pipe._interrupt = False

    def __enter__(self) -> _Scales:
        return self

    def __exit__(self, *how: Any) -> None:
        if self.bar is not None:
            self.bar.__exit__(*how)

    def advanced(self, state: State, step: ScaleStep, ids: Tensor) -> None:
        """Stops by an exception: the loop has no other way out."""
        index = step.scale.index
        if self.pipe._shows_bar():
            if self.bar is None:
                self.bar = self.pipe.progress_bar(len(state.scales)).__enter__()
            self.bar.update(index + 1 - self.shown)
            self.shown = index + 1
        if self.callback is not None:
            preview = partial(self.pipe.model.decode, state)
            values = {"canvas": state.canvas, "preview": preview}
            self.callback(self.pipe, index, step.scale, values)
        if self.pipe._interrupt:
            raise _Stopped(self.pipe.model.decode(state))


def seeds_of(
    generator: torch.Generator | Sequence[torch.Generator] | None, batch: int
) -> list[int]:
    """A seed a picture, drawn from one generator, or from one each.

    Raises:
        StagevarError: a list of another length than ``batch``.
    """
    if generator is None or isinstance(generator, torch.Generator):
        return _drawn(generator, batch)
    if len(generator) != batch:
        raise StagevarError(f"got {len(generator)} generators, expected {batch}, one an image")
    return [_drawn(own, 1)[0] for own in generator]


def _drawn(generator: torch.Generator | None, count: int) -> list[int]:
    device = "cpu" if generator is None else generator.device
    return torch.randint(MAX_SEED, (count,), generator=generator, device=device).tolist()


def _as(kind: OutputType, images: Tensor) -> Any:
    if kind == "pt":
        return images
    array = images.permute(0, 2, 3, 1).float().cpu().numpy()
    if kind == "np":
        return array
    from PIL import Image

    return [Image.fromarray(picture) for picture in (array * 255).round().astype("uint8")]
