"""``python -m stagevar_probe`` and the ``stagevar-probe`` command: errors as one line, exit codes.

0 done · 1 failure · 2 usage · 3 unsupported model · 4 profile invalid or of another model ·
5 target not met · 130 interrupted.
"""

from __future__ import annotations

import os
import sys

import click

from .cli import cli


def main() -> None:
    """Run the command line."""
    try:
        code = cli.main(prog_name="stagevar-probe", standalone_mode=False)
        sys.stdout.flush()
    except (click.exceptions.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        code = 130
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except OSError as error:  # a full disk, a folder that went away
        where = f"{error.filename}: " if error.filename else ""
        click.echo(f"stagevar-probe: {where}{error.strerror or error}", err=True)
        _let_go_of_stdout()
        code = 1
    except Exception as error:
        from stagevar_runtime.errors import StagevarError  # here: it takes torch along

        if not isinstance(error, StagevarError):
            raise
        click.echo(f"stagevar-probe: {type(error).__name__}: {error}", err=True)
        code = error.exit_code
    sys.exit(code if isinstance(code, int) else 0)


def _let_go_of_stdout() -> None:
    """What could not be written there is not tried again when the process ends."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.close(nothing)


if __name__ == "__main__":
    main()
