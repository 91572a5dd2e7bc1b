"""Make docs/commands.md, the reference of the command line, from the commands themselves.

python -m tools.commands
"""

from __future__ import annotations

from pathlib import Path

import click

from stagevar_probe.cli import cli

PAGE = Path(__file__).resolve().parent.parent / "docs/commands.md"
HEAD = """# Commands

Made by `tools/commands.py` from the commands' own help. Exit codes are in the
[quickstart](quickstart.md#exit-codes).
"""


def page() -> str:
    """Every command with its arguments and options."""
    context = click.Context(cli, info_name="stagevar-probe")
    parts = [HEAD]
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        own = click.Context(command, info_name=name, parent=context)
        usage = " ".join(command.collect_usage_pieces(own))
        parts += [f"## {name}\n", f"`stagevar-probe {name} {usage}`\n", _plain(command.help), ""]
        rows = [record for p in command.params if (record := p.get_help_record(own))]
        if rows:
            parts += ["| option | |", "|---|---|"]
            parts += [f"| `{_cell(option)}` | {_cell(_plain(text))} |" for option, text in rows]
            parts.append("")
    return "\n".join(parts).rstrip() + "\n"


def _plain(text: str | None) -> str:
    return " ".join((text or "").replace("\b", "").split())


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
