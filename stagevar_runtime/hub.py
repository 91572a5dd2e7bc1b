"""Checkpoints and profiles from the Hugging Face Hub: ``owner/name``, ``@revision``, ``:file``.

Only what a family needs is fetched, into the Hub's own cache, which nothing is ever written to.
Needs ``stagevar[hub]``; ``HF_ENDPOINT``, ``HF_TOKEN``, ``HF_HUB_CACHE`` and ``HF_HUB_OFFLINE`` mean
what they mean everywhere.
"""

from __future__ import annotations

import glob
import logging
import posixpath
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from types import ModuleType

from .checkpoint.reader import SUFFIXES
from .errors import CheckpointError, ProfileError, StagevarError
from .options.low_rank import bases_path
from .profile.files import FILE_NAME, load_profile
from .profile.fingerprint import Fingerprint
from .source import OPTIONS, main_checkpoints

logger = logging.getLogger("stagevar_runtime")

_NAME = re.compile(r"([\w-][\w.-]*/[\w-][\w.-]*)(?:@([^:]+))?(?::(.+))?")
_LOCAL = (*SUFFIXES, ".yaml", ".yml", ".json", ".txt", ".jsonl")
_COMPANIONS = (  # of a checkpoint's file, by its stem
    *(".words.safetensors", ".scorer.safetensors", ".prompts.jsonl"),
    *(".stagevar.yaml", ".stagevar.safetensors"),
)


@dataclass(frozen=True)
class HubName:
    """A repository, its revision (None: its main branch) and a file or folder in it."""

    repository: str
    revision: str | None = None
    file: str | None = None

    def __str__(self) -> str:
        at = f"@{self.revision}" if self.revision else ""
        return f"{self.repository}{at}{f':{self.file}' if self.file else ''}"

    @classmethod
    def parse(cls, text: str | Path) -> HubName | None:
        """The name a text is; None for a path: one that exists, one in a folder that exists, or
        one that ends as files do."""
        said = str(text)
        found = _NAME.fullmatch(said)
        if found is None or Path(said).exists() or Path(said.partition("/")[0]).is_dir():
            return None
        if found[3] is None and found[2] is None and said.endswith(_LOCAL):
            return None
        return cls(found[1], found[2], found[3])


def snapshot_of(path: Path) -> HubName | None:
    """Which repository, commit and file a path inside a Hub cache is; None elsewhere."""
    parts = path.absolute().parts
    for i, part in enumerate(parts[:-2]):
        if part.startswith("models--") and parts[i + 1] == "snapshots":
            repository = part.removeprefix("models--").replace("--", "/", 1)
            return HubName(repository, parts[i + 2], "/".join(parts[i + 3 :]) or None)
    return None


class Repository:
    """The files of a revision: on the Hub or, where that cannot be reached, in the cache.

    Raises:
        StagevarError: ``huggingface_hub`` is not installed.
        CheckpointError: there is no such repository or revision, it is gated, or neither the Hub
            nor the cache has it.
    """

    def __init__(self, name: HubName, local_files_only: bool = False) -> None:
        self.name, self.hub = name, _huggingface_hub()
        self.offline = local_files_only or bool(self.hub.constants.HF_HUB_OFFLINE)
        self.files: list[str] = []
        with explained(name):
            if not self.offline:
                self.files = self._listed()
            if self.offline:
                folder = self._snapshot([])
                found = (f for f in sorted(folder.rglob("*")) if f.is_file())
                self.files = [f.relative_to(folder).as_posix() for f in found]

    def _listed(self) -> list[str]:
        """What the Hub says there is; says so and goes offline where it cannot be reached."""
        try:
            info = self.hub.HfApi().model_info(
                self.name.repository, revision=self.name.revision, timeout=10
            )
        except Exception as error:
            if not _unreachable(error):
                raise
            logger.warning("the Hub cannot be reached: looking for %s in the cache", self.name)
            self.offline = True
            return []
        return [sibling.rfilename for sibling in info.siblings or ()]

    def _snapshot(self, names: Sequence[str]) -> Path:
        return Path(
            self.hub.snapshot_download(
                self.name.repository,
                revision=self.name.revision,
                local_files_only=self.offline,
                allow_patterns=[glob.escape(name) for name in names] or ["-"],
            )
        )

    def fetch(self, names: Iterable[str]) -> Path:
        """Those of ``names`` that there are, in the cache; returns the folder they are in."""
        with explained(self.name):
            return self._snapshot([name for name in dict.fromkeys(names) if name in self.files])

    def inside(self, place: str) -> list[str]:
        """The files at or below ``place``; with "", those at the top."""
        if place in self.files:
            return [place]
        if not place:
            return [name for name in self.files if "/" not in name]
        return [name for name in self.files if name.startswith(f"{place}/")]

    def only(self, found: Sequence[str], what: str) -> str:
        """The one of ``found``. Raises CheckpointError listing what there is."""
        if len(found) == 1:
            return found[0]
        said = ", ".join(name or "the top folder" for name in found) or "none"
        raise CheckpointError(
            f"{self.name}: holds {said}, expected one {what}. Say which: "
            f"{self.name.repository}:{found[0] if found else 'FILE'}"
        )

    def checkpoint(self) -> Path:
        """The model's file or folder, fetched with what lies beside it but the tokenizer."""
        place = self.name.file
        if place is None:
            place = self.only(main_checkpoints(self.files), "checkpoint")
        elif not self.inside(place):
            some = ", ".join(main_checkpoints(self.files)[:8]) or "no checkpoint"
            raise CheckpointError(f"{self.name}: no such file in it, it holds {some}")
        if place in self.files:
            folder, stem = posixpath.dirname(place), posixpath.splitext(place)[0]
            beside = ("config.json", OPTIONS, FILE_NAME, str(bases_path(Path(FILE_NAME))))
            names = [place, *(stem + ending for ending in _COMPANIONS)]
            names += [posixpath.join(folder, name) for name in beside]
        else:
            depth = place.count("/") + 1 if place else 0
            ends = (*SUFFIXES, ".json", ".yaml", ".prompts.jsonl")
            at = [name for name in self.inside(place) if name.count("/") == depth]
            names = [name for name in at if name.endswith(ends) and not _is_tokenizer(name)]
        return self.fetch(names) / place

    def beside(self, place: str, patterns: Sequence[str]) -> list[str]:
        """Files and folders that match ``patterns`` from the folder of ``place``."""
        folder = posixpath.dirname(place) if place in self.files else place
        wanted = [posixpath.normpath(posixpath.join(glob.escape(folder), p)) for p in patterns]
        found: set[str] = set()
        for name in self.files:
            parts = name.split("/")
            tops = ("/".join(parts[: i + 1]) for i in range(len(parts)))
            found.update(top for top in tops if any(_matches(top, p) for p in wanted))
        return sorted(found)


def local_checkpoint(checkpoint: str | Path, local_files_only: bool = False) -> Path:
    """The path of a checkpoint: as it is, or that of a repository's, fetched."""
    name = HubName.parse(checkpoint)
    if name is None:
        return Path(checkpoint)
    try:
        return Repository(name, local_files_only).checkpoint()
    except CheckpointError as error:
        raise CheckpointError(f"{error} (and there is no such path)") from error


def local_tokenizer(tokenizer: str | Path, local_files_only: bool = False) -> Path:
    """The path of an image tokenizer: as it is, or ``owner/name:file``, fetched."""
    name = HubName.parse(tokenizer)
    if name is None:
        return Path(tokenizer)
    repository = Repository(name, local_files_only)
    weights = [file for file in repository.files if file.endswith(SUFFIXES)]
    place = name.file or repository.only(weights, "image tokenizer")
    if not repository.inside(place):
        raise CheckpointError(f"{name}: no such file in it, it holds {', '.join(weights[:8])}")
    return repository.fetch(repository.inside(place)) / place


def fetch_tokenizer(
    checkpoint: Path, patterns: Sequence[str], local_files_only: bool = False
) -> None:
    """Bring the tokenizer that lies beside a checkpoint of a Hub cache, where there is one."""
    name = snapshot_of(checkpoint)
    if name is None:
        return
    repository = Repository(name, local_files_only)
    found = repository.beside(name.file or "", patterns)
    if found:
        place = repository.only(found, "image tokenizer (tokenizer=, --tokenizer)")
        repository.fetch(repository.inside(place))


def local_profile(
    profile: str | Path, fingerprint: Fingerprint, local_files_only: bool = False
) -> Path:
    """The path of a profile: as it is, or that in a repository which fits the model.

    A repository may hold profiles of many models: that of these weights is taken, else one of this
    architecture. ``owner/name:file`` names one.

    Raises:
        ProfileError: none of them fits.
    """
    name = HubName.parse(profile)
    if name is None:
        return Path(profile)
    repository = Repository(name, local_files_only)
    ends = f"/{FILE_NAME}", ".stagevar.yaml"
    files = [name.file] if name.file else [f for f in repository.files if f"/{f}".endswith(ends)]
    bases = [str(bases_path(Path(file))) for file in files]
    folder = repository.fetch([*files, *bases])
    found = [folder / file for file in files if (folder / file).is_file()]
    if name.file:
        if not found:
            raise ProfileError(f"{name}: no such file in it, expected a profile")
        return found[0]
    models = {path: load_profile(path).model for path in found}
    for weights in (fingerprint.weights, None):
        for path, model in models.items():
            if model.architecture == fingerprint.architecture and weights in (None, model.weights):
                return path
    raise ProfileError(
        f"{name}: holds {len(found)} profiles, none for architecture "
        f"{fingerprint.architecture[:15]}. Write one: stagevar-probe calibrate"
    )


def output_beside(checkpoint: Path) -> Path:
    """What results of a checkpoint are named after: itself, or in a Hub cache, where nothing may
    be written, its name in the current folder."""
    name = snapshot_of(checkpoint)
    if name is None:
        return checkpoint
    return Path(checkpoint.name if name.file else f"{name.repository.split('/')[1]}.safetensors")


def _is_tokenizer(name: str) -> bool:
    return bool(name.endswith(SUFFIXES)) and not main_checkpoints([name])


def _matches(name: str, pattern: str) -> bool:
    return name.count("/") == pattern.count("/") and fnmatch(name, pattern)


def _huggingface_hub() -> ModuleType:
    try:
        import huggingface_hub.constants  # which the package itself reads when first asked for
    except ImportError as error:
        raise StagevarError(
            "no such path, and the Hub cannot be asked without huggingface_hub: "
            "pip install 'stagevar[hub]'"
        ) from error
    return huggingface_hub


def _unreachable(error: BaseException) -> bool:
    """Whether an error means that the network, not the repository, is missing."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    names = {"ConnectError", "TimeoutException", "ConnectionError", "Timeout"}
    return bool(kinds & (names | {"OfflineModeIsEnabled"}))


@contextmanager
def explained(name: HubName) -> Iterator[None]:
    """The Hub's errors in one line that says what to do."""
    from huggingface_hub import errors

    try:
        yield
    except errors.LocalTokenNotFoundError as error:
        raise StagevarError(f"{name}: not logged in (hf auth login, or HF_TOKEN)") from error
    except errors.GatedRepoError as error:
        said = "is gated: accept its terms on its page, then log in (hf auth login, or HF_TOKEN)"
        raise CheckpointError(f"{name}: {said}") from error
    except errors.RevisionNotFoundError as error:
        raise CheckpointError(f"{name}: the repository has no such revision") from error
    except errors.RepositoryNotFoundError as error:
        said = (
            "no such repository on the Hub, or a private one: log in (hf auth login, or HF_TOKEN)"
        )
        raise CheckpointError(f"{name}: {said}") from error
    except errors.LocalEntryNotFoundError as error:
        said = "is not in the Hub's cache, and the Hub cannot be reached or was not to be asked"
        raise CheckpointError(f"{name}: {said}") from error
    except (errors.HfHubHTTPError, errors.HFValidationError, OSError, RuntimeError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{name}: the Hub answered: {first}") from error
