"""A section of a model card that tells of a profile, and the card's metadata.

The section stands between two marks and replaces its own earlier self; nothing else of the card is
touched, but for what is missing in its metadata.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import yaml

from stagevar_runtime.profile import Expected, PlanEntry, Profile

from ..tables import NONE, ranged

BEGIN, END = "<!-- stagevar: written by stagevar-probe push -->", "<!-- /stagevar -->"
TAGS = ("stagevar", "next-scale-prediction")
_FRONT = re.compile(r"\A---[ \t]*\n(.*?)^---[ \t]*(?:\n|\Z)", re.DOTALL | re.MULTILINE)


def section(profile: Profile, repository: str, model: str, files: Sequence[str]) -> str:
    """What the card says: how to use it, a table of plans, where the figures come from.

    ``repository`` holds ``files``; ``model`` is what is loaded, with the profile named if apart.
    """
    apart = "" if model == repository else f', profile="{repository}"'
    rows = [_row(name, plan, profile) for name, plan in profile.plans.items()]
    head = ("plan", "loss [95 %]", "loop", "end to end", "batch", "images", "device")
    table = ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]
    linked = ", ".join(f"[{name}]({name})" for name in files)
    lines = [
        "## Faster with StageVAR",
        "",
        f"A profile in this repository ({linked}) says where this next-scale model can do less: "
        "guidance, tokens and scales.",
        "",
        "```python",
        "import stagevar_runtime  # pip install 'stagevar[hub]'",
        "",
        f'pipe = stagevar_runtime.load("{model}"{apart})',
        f"{_call(profile)}.images[0].save('picture.png')",
        "print(pipe.summary())",
        "```",
        "",
        *table,
        "",
        _provenance(profile),
    ]
    return "\n".join([BEGIN, *lines, END])


def _call(profile: Profile) -> str:
    return "pipe(labels=[0])" if profile.model.family == "var" else 'pipe("a prompt")'


def _row(name: str, plan: PlanEntry, profile: Profile) -> list[str]:
    found = plan.expected or Expected()
    loss = NONE if found.loss is None else f"{found.loss:+.3f}"
    if found.loss is not None and found.loss_ci95 is not None:
        loss = ranged((found.loss, *found.loss_ci95), "+.3f")
    if found.metric and found.loss is not None:
        loss += f" {found.metric}"
    label = f"**{name}**" if name == profile.default_plan else name
    return [
        label,
        loss,
        _times(found.speedup_loop),
        _times(found.speedup_total),
        NONE if found.batch is None else str(found.batch),
        NONE if found.images is None else str(found.images),
        _device(profile),
    ]


def _times(value: Any) -> str:
    if value is None:
        return NONE
    values = value if isinstance(value, tuple) else (value,)
    return " / ".join(f"{one:.2f}x" for one in values)


def _device(profile: Profile) -> str:
    if profile.calibration is None:
        return NONE
    said = profile.calibration.hardware
    parts = [said.get("name", said.get("device", "")), profile.calibration.dtype]
    if said.get("device") == "cpu":
        parts.insert(1, f"{said.get('threads', '?')} threads")
    return ", ".join(str(part) for part in parts if part)


def _provenance(profile: Profile) -> str:
    tool = f"{profile.created_by.tool} {profile.created_by.version}"
    if profile.provenance == "published":
        return f"Figures are from a paper, not measured on these weights. Written by {tool}."
    calibration = profile.calibration
    drawn = f" on {calibration.prompts.count} inputs" if calibration else ""
    return (
        f"Measured by {tool}{drawn}; losses and speeds against the exact path, on held-out inputs."
    )


def with_section(card: str, made: str) -> str:
    """``card`` with ``made`` in place of its earlier section, or at its end."""
    before, found, rest = card.partition(BEGIN)
    _, closed, after = rest.partition(END)
    if found and closed:
        return f"{before}{made}{after}"
    gap = "" if not card or card.endswith("\n\n") else "\n" if card.endswith("\n") else "\n\n"
    return f"{card}{gap}{made}\n"


def with_metadata(card: str, base_model: str | None = None) -> str:
    """``card`` with library, base model and tags in its front matter, where they are missing.

    What stands there stays, letter by letter, unless it cannot be added to as text.
    """
    found = _FRONT.match(card)
    text = found[1] if found else ""
    data = yaml.safe_load(text) if text.strip() else {}
    if not isinstance(data, dict):
        return card  # not ours to mend
    wanted = {"library_name": "stagevar"} | ({"base_model": base_model} if base_model else {})
    missing = {name: value for name, value in wanted.items() if name not in data}
    tags = data.get("tags") or []
    new_tags = [tag for tag in TAGS if isinstance(tags, list) and tag not in tags]
    if not missing and not new_tags:
        return card
    goal = data | missing | ({"tags": [*tags, *new_tags]} if new_tags else {})
    added = text + "".join(f"{name}: {value}\n" for name, value in missing.items())
    if new_tags and "tags" not in data:
        added += "tags:\n" + "".join(f"- {tag}\n" for tag in new_tags)
    elif new_tags:
        lines = "".join(rf"\g<1>- {tag}" + "\n" for tag in new_tags)
        added = re.sub(r"^tags:[ \t]*\n(?=([ \t]*)- )", rf"\g<0>{lines}", added, flags=re.M)
    kept = yaml.safe_load(added)
    same = {**kept, "tags": sorted(map(str, kept.get("tags") or ()))}
    if same != {**goal, "tags": sorted(map(str, goal.get("tags") or ()))}:
        added = yaml.safe_dump(goal, sort_keys=False, allow_unicode=True)
    body = card[found.end() :] if found else card
    return f"---\n{added}---\n{body if found else chr(10) + body if body else ''}"
