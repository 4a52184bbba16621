"""Interrupts: Ctrl-C, and SIGTERM, by which a scheduler takes a machine back."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

_WAITS = b"\nstopping as soon as nothing is lost by it (Ctrl-\\ ends at once)\n"


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


@contextmanager
def sigterm_interrupts() -> Iterator[None]:
    """Within the block SIGTERM interrupts as Ctrl-C does, so that work is kept and the log says what happened."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Noted:
    """Records signals, to be handled later."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self, _number: int, _frame: FrameType | None) -> None:
        if not self.asked:
            self.asked = True
            with suppress(OSError, ValueError):  # Ctrl-C also ends the reader of a pipe; and print may not be entered twice
                if sys.__stderr__ is not None:
                    os.write(sys.__stderr__.fileno(), _WAITS)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Delay an interrupt to the end of the block, for work that must not be cut short.

    Raises:
        KeyboardInterrupt: at the end, if there was one.
    """
    noted = _Noted()
    before: dict[signal.Signals, Any] = {}
    try:
        if threading.current_thread() is threading.main_thread():  # signals reach no other
            for number in (signal.SIGINT, signal.SIGTERM):
                handler = signal.getsignal(number)
                # A signal that is ignored (Ctrl-C in a shell's background jobs) stays so; a surrounding block handles its own.
                if callable(handler) and not isinstance(handler, _Noted):
                    before[number] = handler
                    signal.signal(number, noted)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if noted.asked:
        raise KeyboardInterrupt


def ignore_interrupts() -> None:
    """For a process that another one ends: Ctrl-C and SIGTERM, which may reach all processes of a job, are left to that one."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
