"""`irpipe`, one file per command group. Nothing heavier than Typer is imported before a command is chosen."""

from __future__ import annotations

import sys

import typer

from irpipe.pipeline.cli import keep, look, work

_INTERRUPTED = 130  # Typer's status for Ctrl-C

app = typer.Typer(
    name="irpipe",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="From annotation to model for text-to-image human preference: every result is an artifact that knows"
    " what it was made from and is never made twice.",
)
for group in (work, look, keep):
    for command in group.COMMANDS:
        app.command()(command)


def main() -> None:
    """The console script: user errors end with status 2, an interrupt with 130, and both without a traceback."""
    try:
        app()
    except SystemExit as end:
        if end.code == _INTERRUPTED:
            print("\ninterrupted: finished work is kept, and the same command goes on from there", file=sys.stderr)
        raise
    except Exception as error:
        from irpipe.pipeline.errors import IrpipeError

        if not isinstance(error, IrpipeError):
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
