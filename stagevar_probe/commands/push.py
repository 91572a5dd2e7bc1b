"""``stagevar-probe push``: a profile, and what belongs to it, into a repository on the Hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from stagevar_runtime.errors import StagevarError
from stagevar_runtime.hub import HubName, Repository, explained
from stagevar_runtime.options.low_rank import bases_path
from stagevar_runtime.profile import Profile, load_profile
from stagevar_runtime.profile.files import FILE_NAME
from stagevar_runtime.source import main_checkpoints

from ..report.card import section, with_metadata, with_section
from .options import Printer, printing
from .parameters import FILE

CARD = "README.md"


@click.command()
@click.argument("profile_path", metavar="PROFILE", type=FILE)
@click.argument("name", metavar="OWNER/NAME")
@printing
@click.option("--base-model", help="The model's own repository, where NAME holds profiles alone.")
@click.option(
    "--pull-request/--direct",
    default=None,
    help="Ask to be merged, or commit (default: commit to your own repositories alone).",
)
@click.option("--private", is_flag=True, help="A repository that is made anew is private.")
@click.option("--dry-run", is_flag=True, help="Show the files and the card, send nothing.")
def push(
    profile_path: Path,
    name: str,
    printer: Printer,
    base_model: str | None,
    pull_request: bool | None,
    private: bool,
    dry_run: bool,
) -> int:
    """Upload PROFILE, its bases, measurements and report to a repository on the Hub.

    The model card gets a section of its own, which replaces its earlier self and nothing else.
    """
    target = HubName.parse(name)
    if target is None or target.file or target.revision:
        raise StagevarError(f"got {name!r}, expected OWNER/NAME on the Hub")
    profile = load_profile(profile_path)
    files = together(profile_path)
    repository = opened(target, dry_run, private)
    card = card_of(repository, target, profile, list(files), base_model)
    result: dict[str, Any] = {
        "repository": str(target),
        "files": [*files, CARD],
        "card": card,
    }
    lines = [f"{path.stat().st_size:>12,}  {file}" for file, path in files.items()]
    lines.append(f"{len(card.encode()):>12,}  {CARD}")
    note = found_how(repository, target, profile_path)
    if dry_run:
        printer.show(result, f"would go to {target}:", *lines, *note, "", card)
        return 0
    assert repository is not None
    asks = pull_request if pull_request is not None else not owned(repository)
    url = send(repository, files, card, asks)
    what = "pull request" if asks else "commit"
    printer.show(result | {"url": url, "pull_request": asks}, *lines, *note, f"{what} {url}")
    return 0


def together(profile_path: Path) -> dict[str, Path]:
    """The profile and what was written with it, by their names in the repository."""
    stem = profile_path.name.removesuffix(".yaml")
    names = (f"{stem}.measurements.json", f"{stem}.report.html")
    paths = [profile_path, bases_path(profile_path), *map(profile_path.with_name, names)]
    return {path.name: path for path in paths if path.is_file()}


def opened(target: HubName, dry_run: bool, private: bool) -> Repository | None:
    """The repository, made if it is not there and may be; None where nothing is to be sent."""
    if dry_run:
        try:
            return Repository(target)
        except StagevarError:
            return None  # not there yet, or not to be reached: the files can be shown all the same
    try:
        return Repository(target)
    except StagevarError:
        from huggingface_hub import HfApi

        with explained(target):
            if target.repository.partition("/")[0] not in _owners(HfApi()):
                raise
            HfApi().create_repo(target.repository, private=private)
        return Repository(target)


def card_of(
    repository: Repository | None,
    target: HubName,
    profile: Profile,
    files: list[str],
    base_model: str | None,
) -> str:
    """The repository's card with our section, or a new one."""
    there = repository is not None and CARD in repository.files
    assert repository is not None or not there
    text = ""
    if repository is not None and there:
        text = (repository.fetch([CARD]) / CARD).read_text(encoding="utf-8")
    made = section(profile, target.repository, base_model or target.repository, files)
    return with_metadata(with_section(text, made), base_model)


def found_how(repository: Repository | None, target: HubName, profile_path: Path) -> list[str]:
    """A word where the profile's name is not that of a checkpoint there."""
    if repository is None:
        return []
    models = main_checkpoints(repository.files)
    stems = {Path(model).name.rpartition(".")[0] for model in models if model}
    stem = profile_path.name.removesuffix(".stagevar.yaml")
    if stem in stems or profile_path.name == FILE_NAME:
        return []
    if not models:
        return [f'no checkpoint there: it is found as profile="{target}"']
    return [
        f"no checkpoint there is called {stem}: it is found as "
        f'profile="{target}:{profile_path.name}" alone'
    ]


def owned(repository: Repository) -> bool:
    """Whether the repository is the user's, or an organisation's of theirs."""
    from huggingface_hub import HfApi

    with explained(repository.name):
        return repository.name.repository.partition("/")[0] in _owners(HfApi())


def _owners(api: Any) -> set[str]:
    me = api.whoami()
    return {me["name"], *(org["name"] for org in me.get("orgs") or ())}


def send(repository: Repository, files: dict[str, Path], card: str, asks: bool) -> str:
    """One commit with everything; returns its address."""
    from huggingface_hub import CommitOperationAdd, HfApi

    operations = [CommitOperationAdd(name, str(path)) for name, path in files.items()]
    operations.append(CommitOperationAdd(CARD, card.encode()))
    with explained(repository.name):
        done = HfApi().create_commit(
            repository.name.repository,
            operations,
            commit_message="StageVAR profile: generate faster",
            create_pr=asks,
        )
    return str(done.pr_url if asks else done.commit_url)
