"""Where a profile is looked for, and whether it fits a model."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoint.folders import SUFFIXES
from ..errors import ProfileError, ProfileMismatchError
from .files import FILE_NAME, load_profile
from .fingerprint import Fingerprint
from .schema import Profile

VARIABLE = "STAGEVAR_PROFILE"
SAID = {"weights": "weights", "tokenizer": "the image tokenizer"}  # in messages


@dataclass(frozen=True)
class Found:
    """A profile, where it was, and how it was found."""

    path: Path
    profile: Profile
    how: str


def shipped_folder() -> Path | None:
    """The profiles that come with the toolkit: inside the package, or in a source checkout."""
    package = Path(__file__).resolve().parents[1]
    checkout = package.parent / "profiles"
    if (package / "profiles").is_dir():
        return package / "profiles"
    return checkout if checkout.is_dir() and (package.parent / "pyproject.toml").exists() else None


def profile_path(checkpoint: Path) -> Path:
    """``model.stagevar.yaml`` beside ``model.pth``, ``stagevar.yaml`` in a directory.

    Only a checkpoint's own suffix is taken off: ``ep1.0`` and ``ep1.1`` have a profile each.
    """
    if checkpoint.is_dir():
        return checkpoint / FILE_NAME
    stem = checkpoint.stem if checkpoint.suffix in SUFFIXES else checkpoint.name
    return checkpoint.with_name(f"{stem}.stagevar.yaml")


def find_profile(
    checkpoint: str | Path,
    fingerprint: Fingerprint,
    explicit: str | Path | None = "auto",
    environ: Mapping[str, str] | None = None,
) -> Found | None:
    """Look for a profile: argument, ``STAGEVAR_PROFILE``, beside the checkpoint, shipped.

    ``explicit``: a file or a directory; ``"auto"`` to look; None to use none. The first one that
    exists is taken, whether it fits or not: that is for :func:`check_match` to say.

    Raises ProfileError when the one found is invalid, or the one named does not exist.
    """
    if explicit is None:
        return None
    if explicit != "auto":
        return _found(Path(explicit), "argument")
    named = (os.environ if environ is None else environ).get(VARIABLE)
    if named:
        return _found(Path(named), VARIABLE)
    checkpoint = Path(checkpoint)
    beside = [profile_path(checkpoint)]
    if not checkpoint.is_dir():
        beside.append(checkpoint.with_name(FILE_NAME))
    for path in beside:
        if os.path.lexists(path) and not (path.is_dir() and path.name == FILE_NAME):
            return _found(path, "beside the checkpoint")  # a broken link is said, not passed over
    folder = shipped_folder()
    shipped = [_found(p, "shipped") for p in sorted(folder.glob("*.yaml"))] if folder else []
    fitting = [f for f in shipped if fingerprint.fits(f.profile.model.architecture)]
    for found in fitting:
        if fingerprint.holds(found.profile.model.weights):
            return found
    return next((f for f in fitting if f.profile.model.weights is None), None)


def _found(path: Path, how: str) -> Found:
    path = path / FILE_NAME if path.is_dir() else path
    try:
        return Found(path, load_profile(path), how)
    except ProfileError as error:
        raise ProfileError(f"{error} ({how})") from error


def check_match(
    profile: Profile,
    fingerprint: Fingerprint,
    schedule: Sequence[Sequence[int]],
    *,
    repair: str,
    family: str | None = None,
    strict: bool = False,
) -> list[str]:
    """Check that a profile was made for this model; returns warnings for the caller to log.

    ``schedule``: ``(height, width)`` of every scale the model is about to run. ``repair``: the
    command that would make a fitting profile, told to the user. ``family`` is compared if given:
    the architecture covers it, and its name makes a plainer message.

    Raises ProfileMismatchError for another family, number of scales or architecture, and when
    ``strict`` for other weights or another image tokenizer.
    """
    model = profile.model

    def mismatch(field: str, expected: Any, found: Any, was: str, has: str) -> ProfileMismatchError:
        message = f"profile was calibrated for {was}, model {has}. Recalibrate: {repair}"
        return ProfileMismatchError(message, field=field, expected=expected, found=found)

    if family is not None and model.family != family:
        raise mismatch("family", model.family, family, f"family {model.family}", f"is {family}")
    if model.classes is not None and model.classes != fingerprint.classes:
        was, has = f"{model.classes} classes", f"has {fingerprint.classes}"
        raise mismatch("classes", model.classes, fingerprint.classes, was, has)
    counts = [len(sizes) for sizes in model.schedules.values()]
    if len(schedule) not in counts:
        was = " or ".join(dict.fromkeys(map(_spoken, model.schedules.values())))
        has = f"has {_spoken(schedule).replace('scales ', '')}"
        raise mismatch("schedules", counts, len(schedule), was, has)
    if not fingerprint.fits(model.architecture):
        classes = f"{fingerprint.classes} classes, " if fingerprint.classes else ""
        made = " or ".join(map(_listed, model.schedules.values()))
        was = f"architecture {model.architecture[:15]} (scales {made})"
        has = f"is {fingerprint.architecture[:15]} ({classes}scales {_listed(schedule)})"
        raise mismatch("architecture", model.architecture, fingerprint.architecture, was, has)
    if model.weights is None:
        return [
            f"profile is {profile.provenance}, never measured on these weights. Check: {repair}"
        ]
    other = [] if fingerprint.holds(model.weights) else ["weights"]
    if fingerprint.tokenizer and model.tokenizer not in (None, fingerprint.tokenizer):
        other.append("tokenizer")
    if not other:
        return []
    was, has = (
        " and ".join(f"{SAID[name]} {getattr(one, name)[:15]}" for name in other)
        for one in (model, fingerprint)
    )
    name = other[0]
    error = mismatch(
        *(name, getattr(model, name), getattr(fingerprint, name)),
        *(was, f"has {has}: figures may differ"),
    )
    if strict:
        raise error
    return [str(error)]


def _spoken(schedule: Sequence[Sequence[int]]) -> str:
    return f"{len(schedule)} scales (last {schedule[-1][0]}x{schedule[-1][1]})"


def _listed(schedule: Sequence[Sequence[int]]) -> str:
    """The side of every scale, or both where they differ."""
    return " ".join(f"{h}" if h == w else f"{h}x{w}" for h, w in schedule)
