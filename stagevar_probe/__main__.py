"""``python -m stagevar_probe`` and the ``stagevar-probe`` command: errors as one line, exit codes.

0 done · 1 failure · 2 usage · 3 unsupported model · 4 profile invalid or of another model ·
5 target not met · 130 interrupted.
"""

from __future__ import annotations

import sys

import click

from .cli import cli


def main() -> None:
    """Run the command line."""
    try:
        code = cli.main(prog_name="stagevar-probe", standalone_mode=False)
    except click.exceptions.Abort:
        click.echo("interrupted", err=True)
        code = 130
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except Exception as error:
        from stagevar_runtime.errors import StagevarError  # here: it takes torch along

        if not isinstance(error, StagevarError):
            raise
        click.echo(f"stagevar-probe: {type(error).__name__}: {error}", err=True)
        code = error.exit_code
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
