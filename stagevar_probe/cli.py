"""The command line: a group whose commands are read when they are called, one file a verb."""

from __future__ import annotations

from importlib import import_module

import click

COMMANDS = {  # the first sentence of each, so that --help reads none of them
    "calibrate": "Measure CHECKPOINT and write its profile, measurements and report beside it.",
    "generate": "Generate pictures with CHECKPOINT, accelerated by the profile beside it.",
    "inspect": "Say what PATH is: a profile, measurements, a checkpoint, or the name of a family.",
    "validate": "Run the plans of PROFILE on fresh held-out inputs beside the exact path.",
    "compare": "Every method side by side on CHECKPOINT: presets, token options, plans, retuned "
    "guidance.",
    "evaluate": "Score CHECKPOINT by a suite: exact path, presets and plans in one table with "
    "time.",
    "bench": "Time CHECKPOINT: the published loop, the exact path and plans, side by side in one "
    "run.",
    "solve": "Choose plans again from MEASUREMENTS for another budget.",
    "report": "Write the HTML report of MEASUREMENTS again, without pictures.",
    "studio": "Open a local page: exact and accelerated pictures side by side, plans by sliders.",
    "push": "Upload PROFILE, its bases, measurements and report to a repository on the Hub.",
    "doctor": "Say what is here: versions, devices, what is fast and why, what is missing.",
    "merge": "Join MEASUREMENTS of separate jobs: the same model and settings, other inputs or "
    "seeds.",
}


class Commands(click.Group):
    """Finds a command in the module of its name, when it is asked for: help needs no torch."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Their names, in the order of the work."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, read now."""
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f".commands.{cmd_name}", __package__)
        found: click.Command = getattr(module, cmd_name)
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """What --help says of them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def show_version(ctx: click.Context, param: click.Parameter, asked: bool) -> None:
    """Print the version and end."""
    if asked:
        from stagevar_runtime import __version__

        click.echo(f"stagevar-probe, version {__version__}")
        ctx.exit()


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=show_version,
    help="Show the version and exit.",
)
def cli() -> None:
    """Measure a next-scale image model and write a profile that makes it faster.

    Start with:  stagevar-probe calibrate model.pth
    """
