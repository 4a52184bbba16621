"""The commands of `irpipe`, one file per group. Nothing heavier than Typer is imported before a command is chosen."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer

from irpipe.cli import keep, look, models, share, work


def _version(requested: bool) -> None:
    if requested:
        print(version("irpipe"))
        raise typer.Exit


app = typer.Typer(
    name="irpipe",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="From annotation to model for text-to-image human preference: every result is an artifact that knows"
    " what it was made from and is never made twice.",
)


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print irpipe's version.", is_eager=True, callback=_version)] = False,
) -> None:
    """See the commands below."""


for group in (work, look, models, keep, share):
    for command in group.COMMANDS:
        app.command()(command)
