"""From a checkpoint on disk to a pipeline: ``load`` and its helpers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .accelerate.modes import accelerate
from .checkpoint.reader import SUFFIXES, Checkpoint, check_finite, open_checkpoint
from .errors import CheckpointError, StagevarError
from .families import Family, recognise
from .hub import fetch_tokenizer, local_checkpoint, local_tokenizer
from .model.surroundings import undisturbed
from .options.precision import precisions_of
from .pipeline import Pipeline
from .profile.schema import Profile
from .source import (
    Source,
    checked_device,
    checked_dtype,
    device_notes,
    main_checkpoints,
    saved_options,
)
from .text import Encode, encoder_for

logger = logging.getLogger("stagevar_runtime")


def load(
    checkpoint: str | Path,
    tokenizer: str | Path | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    profile: str | Path | Profile | None = "auto",
    *,
    strict: bool = False,
    options: Mapping[str, Any] | None = None,
    text_encoder: str | Path | Encode | None = None,
    select: str | None = None,
    compile: str = "auto",
    local_files_only: bool = False,
    emulate: bool = False,
) -> Pipeline:
    """Open a checkpoint and, unless told otherwise, the profile that belongs to it.

    Args:
        checkpoint: a file or directory in its publisher's format, or where no such path exists a
            repository on the Hub, ``owner/name``, with ``@revision`` and ``:file`` where needed.
        tokenizer: the image tokenizer's file, or ``owner/name:file``; None looks beside the
            checkpoint.
        device: None is CUDA where there is one, else the CPU.
        dtype: float32, bfloat16 or float16, as text too; None is bfloat16 on CUDA, float32
            elsewhere.
        profile: ``"auto"`` looks for one (argument, ``STAGEVAR_PROFILE``, beside the checkpoint,
            the shipped profiles), None uses none, a path or a Profile is taken. ``owner/name`` is
            a repository of profiles: the one that fits is taken.
        strict: refuse a profile that was measured on other weights, or with another image
            tokenizer, instead of warning.
        options: what tensors cannot tell, by the names the family lists in ``options``.
        text_encoder: for ``prompts=``: a local folder, a Hub name, ``module:function`` or a
            function; None is the family's published encoder, fetched when first needed.
        select: which of several state dicts in a file, by its key: ``ema`` takes an average. None
            takes the trained weights, and a note says of which.
        compile: ``auto`` makes the model fast on CUDA and does nothing on a CPU; ``off``,
            ``graphs`` or ``max``: see ``accelerate/modes.py``. The first images of a shape pay.
        local_files_only: ask the Hub for nothing: what its cache has must do.
        emulate: run products that a plan asks for in fewer bits by their definition, at no gain:
            what they lose can then be measured on a device without such products.

    Raises:
        CheckpointError: a file cannot be read, is incomplete, or holds NaN.
        UnsupportedModelError: no known family recognises it.
        ProfileError: the profile is broken; ProfileMismatchError: it is another model's.
    """
    checkpoint = local_checkpoint(checkpoint, local_files_only)
    tokenizer = None if tokenizer is None else local_tokenizer(tokenizer, local_files_only)
    again: Callable[[], Pipeline] = partial(
        load,
        *(checkpoint, tokenizer, device, dtype),
        profile=None,
        options=options,
        text_encoder=text_encoder,
        select=select,
        compile=compile,
        local_files_only=local_files_only,
        emulate=emulate,
    )
    with undisturbed(), torch.inference_mode(False), torch.no_grad():
        pipeline = _load(
            *(checkpoint, tokenizer, device, dtype, profile, strict, options or {}),
            text_encoder=text_encoder,
            select=select,
            compile=compile,
            local_files_only=local_files_only,
            emulate=emulate,
        )
    pipeline.again = again
    return pipeline


def _load(
    checkpoint: Path,
    tokenizer: Path | None,
    device: str | torch.device | None,
    dtype: str | torch.dtype | None,
    profile: str | Path | Profile | None,
    strict: bool,
    options: Mapping[str, Any],
    *,
    text_encoder: str | Path | Encode | None,
    select: str | None,
    compile: str,
    local_files_only: bool,
    emulate: bool,
) -> Pipeline:
    device = checked_device(device)
    dtype = checked_dtype(dtype, device)
    checkpoint = _model_path(checkpoint)
    opened = open_checkpoint(checkpoint, asked=select)
    options = saved_options(checkpoint) | dict(options or {})
    family = recognise(opened.tensors, checkpoint)
    if tokenizer is None:
        fetch_tokenizer(opened.path, family.tokenizer_patterns, local_files_only)
    codes = _tokenizer(opened, family, tokenizer)
    unknown = set(options) - set(family.options)
    if unknown:
        raise StagevarError(
            f"the {family.family} family has no option {sorted(unknown)}, "
            f"expected {', '.join(family.options) or 'none'}"
        )
    for part in (opened, codes):
        check_finite(part.tensors, part.path, skip=family.unused_tensors)
    again = partial(_opened, checkpoint, codes.path, select, codes.path == opened.path)
    source = Source(family, opened, codes, options, again)
    if profile is not None:
        source.hashed()  # while the weights are in memory
    model = source.build(device, dtype)
    encode = (
        text_encoder
        if callable(text_encoder) or model.info.classes
        else encoder_for(family.family, text_encoder, device, checkpoint)
    )
    pipeline = Pipeline(model, source, encode if callable(encode) else None)
    if emulate and model.info.layers:
        precisions_of(model).emulate = True
    pipeline.fast = accelerate(model, compile)
    pipeline.use_profile(profile, strict=strict)
    for note in (*([opened.note] if opened.note else []), *device_notes(device)):
        pipeline.notes.append(note)
        logger.info(note)
    return pipeline


def _opened(
    checkpoint: Path, codes: Path, select: str | None, inside: bool
) -> tuple[Checkpoint, Checkpoint]:
    """Both files once more."""
    opened = open_checkpoint(checkpoint, asked=select)
    if not inside:
        return opened, open_checkpoint(codes)
    return opened, replace(opened, tensors=opened.select("vae_local"))


def _model_path(path: Path) -> Path:
    """``llm`` inside a published HART repository, the one model's file beside its tokenizer in a
    folder, anything else as it is."""
    if not path.is_dir():
        return path
    inside = path / "llm"
    if inside.is_dir() and not any(path.glob("*.safetensors")):
        return inside
    weights = [f.name for f in path.iterdir() if f.suffix in SUFFIXES and f.name[0] != "."]
    found = main_checkpoints(weights)
    return path / found[0] if len(weights) > 1 and len(found) == 1 else path


def _tokenizer(opened: Checkpoint, family: type[Family], given: str | Path | None) -> Checkpoint:
    """The image tokenizer's file: given, inside a training checkpoint, or beside it."""
    if given is not None:
        return open_checkpoint(given)
    inside = [key for key in opened.parts if key.rpartition(".")[2] == "vae_local"]
    if inside:
        return replace(opened, tensors=opened.parts[inside[0]])
    folder = opened.path if opened.path.is_dir() else opened.path.parent
    beside = sorted(  # under their own names: a Hub cache holds links to files without any
        {
            path.resolve(): path
            for pattern in family.tokenizer_patterns
            for path in folder.glob(pattern)
            if path.resolve() != opened.path.resolve() and not path.name.startswith(".")
        }.values()
    )
    if len(beside) == 1:
        return open_checkpoint(beside[0])
    found = ", ".join(path.name for path in beside) or "none"
    raise CheckpointError(
        f"{opened.path}: found {found} beside it, expected one image tokenizer "
        f"({' or '.join(family.tokenizer_patterns)}). Pass tokenizer=FILE (--tokenizer FILE)"
    )
