"""Make docs/profile.md, the reference of the profile, and its JSON Schema.

python -m tools.profile
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stagevar_runtime.profile import json_schema

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE, SCHEMA = DOCS / "profile.md", DOCS / "profile.schema.json"
HEAD = """# Profile

Made by `tools/profile.py` from the schema in `stagevar_runtime/profile/schema.py`; for editors:
[JSON Schema](profile.schema.json). Unknown keys are errors. A `?` marks what may be left out.
"""


def schema() -> str:
    """The JSON Schema as it is published."""
    return json.dumps(json_schema(), indent=1, ensure_ascii=False) + "\n"


def page() -> str:
    """One table for each part of a profile."""
    whole = json_schema()
    parts = [HEAD, *_part("Profile", whole)]
    for name, part in whole.get("$defs", {}).items():
        if "properties" in part:
            parts += _part(name, part)
    return "\n".join(parts).rstrip() + "\n"


def _part(name: str, part: dict[str, Any]) -> list[str]:
    required = set(part.get("required", ()))
    lines = [f"## {name}", "", " ".join(part.get("description", "").split()), ""]
    lines += ["| key | type | |", "|---|---|---|"]
    for key, value in part["properties"].items():
        mark = "" if key in required else "?"
        text = " ".join(value.get("description", "").split())
        lines.append(f"| `{key}`{mark} | {_type(value)} | {text} |")
    return [*lines, ""]


def _type(value: dict[str, Any]) -> str:
    if "$ref" in value:
        name = value["$ref"].rsplit("/", 1)[1]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in value:
        return " or ".join(dict.fromkeys(_type(part) for part in value["anyOf"]))
    if "enum" in value:
        return ", ".join(f"`{choice}`" for choice in value["enum"])
    if "const" in value:
        return f"`{value['const']}`"
    kind = value.get("type", "any")
    if kind == "array":
        inner = value.get("items") or (value.get("prefixItems") or [{}])[0]
        return f"list of {_type(inner)}"
    if kind == "object" and isinstance(value.get("additionalProperties"), dict):
        return f"names to {_type(value['additionalProperties'])}"
    return str(kind)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    SCHEMA.write_text(schema(), encoding="utf-8")
