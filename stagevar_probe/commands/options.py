"""Options that commands share: declared once, handed to a command as one record each."""

from __future__ import annotations

import functools
import json
import logging
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import click
import torch

from stagevar_runtime.loading import load
from stagevar_runtime.model.protocol import ScaleModel
from stagevar_runtime.pipeline import Pipeline

from ..calibrate.processes import local_device
from ..datasets.checked import check_file
from ..datasets.inputs import (
    Inputs,
    balanced_labels,
    builtin_prompts,
    given_labels,
    prompt_tags,
    prompts_beside,
    prompts_from,
    read_lines,
    split_prompts,
)
from ..datasets.prompts.templates import template_prompts
from ..datasets.supply import Purpose, Supply, race_or_proof, split_lines, supply
from ..files import beside, check_writable
from ..measure.memory import default_batch
from ..metrics.protocol import Quality
from ..metrics.quality import find_quality, named_by_file
from ..metrics.several import find_metrics
from ..solve.target import Target
from .pairs import parse_options
from .parameters import (
    BATCH,
    CHECKPOINT,
    COUNTS,
    DTYPES,
    MODEL,
    PAGE,
    PRINTING,
    SAMPLING,
    TARGETS,
    TEMPLATES,
    Option,
)

F = TypeVar("F", bound=Callable[..., Any])


def gathered(name: str, make: Callable[..., Any], *options: Option) -> Callable[[F], F]:
    """Declare options; the command gets what they were given as ``name``, made by ``make``."""

    def decorate(function: F) -> F:
        @functools.wraps(function)
        def command(**given: Any) -> Any:
            own = {key: given.pop(key) for key in keys}
            return function(**given, **{name: make(**own)})

        known = len(getattr(command, "__click_params__", ()))
        for option in reversed(options):
            option(command)
        keys = [parameter.name for parameter in command.__click_params__[known:]]  # type: ignore[attr-defined]
        return command  # type: ignore[return-value]

    return decorate


@dataclass(frozen=True)
class ModelOptions:
    """The model, its inputs, and how its pictures are scored."""

    tokenizer: Path | None = None
    device: str | None = None
    dtype: torch.dtype | None = None
    emulate: bool = False
    seed: int = 0
    batch: int | None = None
    prompts: Path | None = None
    metric: str | None = None
    features: str | None = None
    reference: Path | None = None
    text_encoder: str | None = None
    select: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    sampling: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def given(cls, dtype: str | None, pairs: Sequence[str], **values: Any) -> ModelOptions:
        """From what the command line says."""
        sampling = {name: values.pop(name) for name in SAMPLING}
        return cls(
            dtype=DTYPES[dtype] if dtype else None,
            options=parse_options(pairs),
            sampling={name: value for name, value in sampling.items() if value is not None},
            **values,
        )

    def load(self, checkpoint: Path, profile: Any = None, strict: bool = False) -> Pipeline:
        """The pipeline of a checkpoint."""
        if any(":" in (said or "") for said in (self.metric, self.text_encoder)):
            _import_from_here()
        return load(
            checkpoint,
            self.tokenizer,
            self.device or local_device(),
            self.dtype,
            profile,
            strict=strict,
            options=self.options,
            text_encoder=self.text_encoder,
            select=self.select,
            emulate=self.emulate,
        )

    def at_once(self, model: ScaleModel) -> int:
        """Images that are made at once: as asked, or what suits the model's device."""
        return self.batch or default_batch(model)

    def quality(
        self, checkpoint: Path, pipeline: Pipeline, budgets: Sequence[float] = ()
    ) -> Quality:
        """What pictures are scored by; ``budgets``: of several metrics."""
        classes = pipeline.model.info.classes
        metric = self.metric or named_by_file(pipeline.settings.get("metric"), checkpoint)

        def find(part: str | Quality | None) -> Quality:
            return find_quality(part, checkpoint, classes, self.features, self.reference)

        return find_metrics(metric, checkpoint, classes, budgets, find)

    def lines(self, pipeline: Pipeline, held_out: bool) -> tuple[list[str], str]:
        """Prompts and where they are from: asked for, beside the checkpoint, or the project's."""
        if self.prompts:
            return read_lines(self.prompts), self.prompts.name
        own = prompts_beside(pipeline.path)
        return (
            (split_prompts(own, held_out), own.name)
            if own
            else (builtin_prompts(held_out), "builtin-64")
        )

    def supply(self, pipeline: Pipeline, purpose: Purpose) -> Supply:
        """Draws to race or to prove with: of prompts that have no part in measuring."""
        model, seed, tags = pipeline.model, self.seed, dict[str, str]()
        if model.info.classes:
            labels = balanced_labels(model, model.info.classes, seed).items
            if self.prompts is not None:
                lines = read_lines(self.prompts)
                labels = given_labels(model, lines, self.prompts.name, len(lines), seed, True).items
            return supply(getattr(self.prompts, "name", "balanced-labels"), labels, purpose, seed)
        own = prompts_beside(pipeline.path)
        if self.prompts:
            found, name = split_lines(read_lines(self.prompts), purpose), self.prompts.name
        elif own:
            tags = prompt_tags(own)
            found, name = race_or_proof(split_prompts(own, True), purpose), own.name
        else:
            known = {*builtin_prompts(False), *builtin_prompts(True)}
            made = template_prompts(purpose, TEMPLATES, known)
            tags, name = {text: kind for kind, text in made}, "builtin-templates"
            found = [text for _, text in made]
        drawn = supply(name, found, purpose, seed, pipeline.read_condition)
        return replace(drawn, tags=tags)

    def inputs(self, pipeline: Pipeline, count: int, held_out: bool) -> Inputs:
        """Calibration or held-out inputs for the family; a file is read to its end first."""
        model = pipeline.model
        own = None if model.info.classes else prompts_beside(pipeline.path)
        if path := self.prompts or own:
            check_file(path, pipeline)
        if not model.info.classes:
            lines, name = self.lines(pipeline, held_out)
            return prompts_from(lines, name, count, self.seed, pipeline.read_condition, held_out)
        if self.prompts is None:
            return balanced_labels(model, count, self.seed, held_out)
        lines = read_lines(self.prompts)
        return given_labels(model, lines, self.prompts.name, count, self.seed, held_out)


def _import_from_here() -> None:
    """A ``module:function`` of the command line may lie in the current folder.

    Only then is that folder searched, and last: one with downloaded files brings no modules.
    """
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


def default_count(model: ScaleModel) -> int:
    """Images to measure with at most, where nobody says how many."""
    return COUNTS["labels" if model.info.classes else "prompts"]


@dataclass(frozen=True)
class TargetOptions:
    """What the plans shall reach; None where nothing was asked."""

    max_loss: tuple[float, ...] | None = None
    min_speedup: float | None = None
    max_ms: float | None = None

    def target(self, default: float) -> Target:
        """What to aim at; ``default``: the loss where no loss was asked."""
        loss = self.max_loss[0] if self.max_loss else default
        return Target(loss, self.min_speedup, self.max_ms, loss_asked=self.max_loss is not None)


@dataclass(frozen=True)
class PageOptions:
    """Whose plans take part, where the page goes, and whether anything is run at all."""

    profile: Path | None = None
    output: Path | None = None
    dry_run: bool = False

    def paths(self, checkpoint: Path, name: str, data: str) -> tuple[Path, Path]:
        """The page, and its data beside it with another suffix. Raises StagevarError, before the
        work, where they could not be written."""
        page = self.output or beside(checkpoint, name)
        if checkpoint.exists() and not self.dry_run:
            check_writable(page, page.with_suffix(data))
        return page, page.with_suffix(data)

    def load(self, checkpoint: Path, options: ModelOptions) -> Pipeline:
        """The pipeline, with the profile that was named or is found."""
        return options.load(checkpoint, "auto" if self.profile is None else self.profile)


class Printer:
    """How a command speaks: its result on stdout, logging on stderr."""

    def __init__(self, as_json: bool = False, quiet: bool = False, verbose: bool = False) -> None:
        self.as_json, self.quiet, self.verbose = as_json, quiet, verbose
        self._log()

    def _log(self) -> None:
        level = logging.ERROR if self.quiet else logging.DEBUG if self.verbose else logging.INFO
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(message)s"))
        for name in ("stagevar_runtime", "stagevar_probe"):
            logger = logging.getLogger(name)
            logger.handlers = [handler]
            logger.setLevel(level)

    def hush(self) -> None:
        """Errors only from here on."""
        self.quiet = True
        self._log()

    def show(self, result: dict[str, Any], *lines: str) -> None:
        """One JSON document, or text for people."""
        if self.as_json:
            click.echo(json.dumps(result, indent=2))
        elif not self.quiet:
            click.echo("\n".join(lines))


def model_options(*more: Option) -> Callable[[F], F]:
    """The options of a command that runs a model, and ``more`` of them, as ``options``."""
    return gathered("options", ModelOptions.given, *MODEL, *more)


target_options = gathered("asked", TargetOptions, *TARGETS)
page_options = gathered("paper", PageOptions, *PAGE)
printing = gathered("printer", Printer, *PRINTING)


def running_rows(*more: Option) -> Callable[[F], F]:
    """What a command declares that runs rows of plans on CHECKPOINT and writes a page."""

    def decorate(function: F) -> F:
        declared = model_options(*BATCH, *more)(printing(page_options(function)))
        return click.argument("checkpoint", type=CHECKPOINT)(declared)

    return decorate


def command_line() -> str:
    """What was typed, to be typed again."""
    return f"stagevar-probe {shlex.join(sys.argv[1:])}"
