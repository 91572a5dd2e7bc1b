"""The packages that emoji art and labels come from, fetched by the npm client into a folder.

Only art whose licence lets anyone use and change it, without share-alike. Nothing of it is kept in
this repository.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import DataError


@dataclass(frozen=True)
class Package:
    """An npm package at a version, with the licence that its package.json must state."""

    name: str
    version: str
    licence: str

    @property
    def file(self) -> str:
        """The archive's name, as ``npm pack`` gives it."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


FLUENT_3D = Package("@lobehub/fluent-emoji-3d", "1.1.0", "MIT")
FLUENT = Package("fluentui-emoji", "1.3.0", "MIT")
NOTO = Package("@iconify-json/noto", "1.2.9", "Apache-2.0")
NOTO_V1 = Package("@iconify-json/noto-v1", "1.2.5", "Apache-2.0")
TWEMOJI = Package("@iconify-json/twemoji", "1.2.5", "CC-BY-4.0")
LABELS = Package("emojibase-data", "17.0.0", "MIT")
PACKAGES = (FLUENT_3D, FLUENT, NOTO, NOTO_V1, TWEMOJI, LABELS)


def fetch(package: Package, folder: Path) -> Path:
    """The package's archive in ``folder``, fetched there if it is not yet.

    Raises:
        DataError: npm is not installed, or cannot fetch it.
    """
    path = folder / package.file
    if path.is_file():
        return path
    if (npm := shutil.which("npm")) is None:
        raise DataError(
            f"npm is not installed, it fetches {package.name} {package.version}. Install Node.js "
            f"(Debian: apt-get install npm), or put {package.file} into {folder}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as partial:
        command = [npm, "pack", f"{package.name}@{package.version}", "--pack-destination", partial]
        done = subprocess.run(command, capture_output=True, text=True)
        made = Path(partial) / package.file
        if done.returncode != 0 or not made.is_file():
            said = [line for line in done.stderr.splitlines() if "npm notice" not in line]
            raise DataError(
                f"{' '.join(command[1:3])} failed: {' '.join(said[:2]) or 'it wrote no file'}. "
                f"Check the network, or put {package.file} into {folder}"
            )
        made.replace(path)
    return path


def read(package: Package, folder: Path, wanted: Callable[[str], bool]) -> dict[str, bytes]:
    """The wanted files of a package by their path in it.

    Raises:
        DataError: the archive is damaged, or states another licence than the one expected.
    """
    path, files = fetch(package, folder), {}
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                name = member.name.partition("/")[2]
                file = archive.extractfile(member) if member.isfile() else None
                if file is not None and (name == "package.json" or wanted(name)):
                    files[name] = file.read()
        stated = json.loads(files.pop("package.json")).get("license")
    except (tarfile.TarError, OSError, EOFError, KeyError, ValueError) as error:
        raise DataError(f"{path} is no npm package ({error}); delete it and try again") from error
    if stated != package.licence:
        raise DataError(f"{path} states the licence {stated!r}, expected {package.licence!r}")
    return files


def read_json(package: Package, folder: Path, *names: str) -> list[Any]:
    """JSON documents of a package.

    Raises:
        DataError: one is missing.
    """
    files = read(package, folder, lambda name: name in names)
    if absent := [name for name in names if name not in files]:
        raise DataError(f"{folder / package.file} has no {absent[0]}")
    return [json.loads(files[name]) for name in names]
