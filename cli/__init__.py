"""The command line `irpipe`, one file per command group. Nothing heavier than Typer is imported before a command is chosen."""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import Annotated

import typer

from irpipe.cli import keep, look, models, work
from irpipe.pipeline.interrupt import sigterm_interrupts

_INTERRUPTED = 130  # Typer's status for Ctrl-C
_LONGEST_LINE = 4000  # characters


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


for group in (work, look, models, keep):
    for command in group.COMMANDS:
        app.command()(command)


def main() -> None:
    """The console script: user errors end with status 2, Ctrl-C and SIGTERM with 130, and all without a traceback."""
    try:
        with sigterm_interrupts():
            app()
    except SystemExit as end:
        if end.code == _INTERRUPTED:
            print(
                "\ninterrupted: finished work is kept; the same command goes on, a training from where it was",
                file=sys.stderr,
            )
        raise
    except Exception as error:
        from irpipe.pipeline.errors import IrpipeError

        if isinstance(error, OSError) and error.filename is not None:
            error = IrpipeError(f"{error.filename}: {error.strerror}")
        if not isinstance(error, IrpipeError):
            raise
        from irpipe.pipeline.text import visible

        for line in f"error: {error}".split("\n"):  # what a file holds is shown, not obeyed
            print(visible(line, _LONGEST_LINE), file=sys.stderr)
        sys.exit(2)
