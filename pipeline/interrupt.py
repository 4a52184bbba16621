"""When a run is asked to stop: by Ctrl-C, or by the SIGTERM with which a scheduler takes a machine back."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_WAITS = b"\nstopping after this step (Ctrl-\\ ends at once)\n"


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


@contextmanager
def undisturbed() -> Iterator[None]:
    """Put an interrupt off to the end of the block, for work that must be done whole.

    Raises:
        KeyboardInterrupt: at the end, if there was one.
    """
    if threading.current_thread() is not threading.main_thread():  # signals reach no other
        yield
        return
    asked = False

    def note(_number: int, _frame: FrameType | None) -> None:
        nonlocal asked
        if not asked:
            os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, _WAITS)  # print may not be entered twice
        asked = True

    # What is ignored, as Ctrl-C is by the background jobs of a shell, stays ignored.
    heeded = [one for one in (signal.SIGINT, signal.SIGTERM) if callable(signal.getsignal(one))]
    before = {one: signal.signal(one, note) for one in heeded}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
    if asked:
        raise KeyboardInterrupt
