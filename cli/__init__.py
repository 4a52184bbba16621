"""The console script `irpipe`. The commands are imported within it, so that an interrupt during start-up ends as any other."""

from __future__ import annotations

import sys
from typing import Any

from irpipe.pipeline.interrupt import sigterm_interrupts

_INTERRUPTED = 130  # Typer's status for Ctrl-C
_LONGEST_LINE = 4000  # characters


def __getattr__(name: str) -> Any:
    """`irpipe.cli.app`, the Typer application, imported when it is asked for."""
    if name == "app":
        from irpipe.cli.commands import app

        return app
    raise AttributeError(name)


def main() -> None:
    """The console script: user errors end with status 2, Ctrl-C and SIGTERM with 130, and all without a traceback."""
    try:
        with sigterm_interrupts():
            from irpipe.cli.commands import app

            app()
    except KeyboardInterrupt:  # before Typer, which turns it into this status, has begun
        print("\ninterrupted before anything began", file=sys.stderr)
        sys.exit(_INTERRUPTED)
    except SystemExit as end:
        if end.code == _INTERRUPTED:
            print(
                "\ninterrupted: finished work is kept; the same command goes on, a training from where it was",
                file=sys.stderr,
            )
        raise
    except Exception as error:
        if _of_an_interrupt(error):
            print("\ninterrupted: finished work is kept; the same command goes on", file=sys.stderr)
            sys.exit(_INTERRUPTED)
        from irpipe.pipeline.errors import IrpipeError

        if isinstance(error, OSError) and error.filename is not None:
            error = IrpipeError(f"{error.filename}: {error.strerror}")
        if not isinstance(error, IrpipeError):
            raise
        from irpipe.pipeline.text import visible

        for line in f"error: {error}".split("\n"):  # what a file holds is shown, not obeyed
            print(visible(line, _LONGEST_LINE), file=sys.stderr)
        sys.exit(2)


def _of_an_interrupt(error: BaseException | None) -> bool:
    """Whether an interrupt stands behind an error: compiled modules that are being imported turn it into an ImportError."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt):
            return True
        error = error.__cause__ or error.__context__
    return False
