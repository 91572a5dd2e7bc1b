"""``stagevar-probe studio``: a local page to look at what plans do."""

from __future__ import annotations

import logging
import socket
from pathlib import Path

import click

from stagevar_runtime.errors import StagevarError

from .options import ModelOptions, Printer, model_options, printing
from .parameters import CHECKPOINT, FILE


@click.command()
@click.argument("checkpoint", type=CHECKPOINT)
@model_options()
@printing
@click.option("--profile", type=FILE, help="The profile (default: found).")
@click.option("--prompt", help="What to draw first.")
@click.option("--port", default=0, type=click.IntRange(0, 65535), help="Default: a free one.")
@click.option("--show/--no-show", default=True, help="Open a browser.")
def studio(
    checkpoint: Path,
    options: ModelOptions,
    printer: Printer,
    profile: Path | None,
    prompt: str | None,
    port: int,
    show: bool,
) -> int:
    """Open a local page: exact and accelerated pictures side by side, plans by sliders.

    It is served on the loopback alone, until interrupted, and asks the network for nothing.
    """
    try:
        from ..studio.page import serve
    except ImportError as error:
        raise StagevarError("the page needs NiceGUI: pip install 'stagevar[studio]'") from error
    from ..studio.session import Studio, Wish

    pipeline = options.load(checkpoint, profile or "auto")
    logging.getLogger("stagevar_runtime").setLevel(logging.WARNING)  # plans change all the time
    made = Studio(pipeline, options.sampling)
    first = prompt or ("0" if pipeline.model.info.classes else options.lines(pipeline, True)[0][0])
    wish = Wish(first, options.seed)
    made.show(Wish(first, options.seed + 1), ())  # the first of a shape is slow: nobody's
    port = port or free_port()
    url = f"http://127.0.0.1:{port}"
    printer.show({"url": url, "port": port}, f"studio of {checkpoint.name} at {url} (Ctrl-C ends)")
    serve(made, wish, port, show)
    return 0


def free_port() -> int:
    """A port of the loopback that nobody has."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
