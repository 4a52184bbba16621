"""Output of a run: bars and lines on stderr, or one JSON event per line on stdout."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from typing import Any, Protocol

_LINE_SECONDS = 5.0  # how often a run without a terminal, or with --json, reports its progress


class Progress(Protocol):
    """A bar of one piece of work."""

    def advance(self, amount: int, note: str = "") -> None:
        """Add finished units. A note (such as the loss) is shown with the bar."""

    def resume(self, amount: int) -> None:
        """So many units were done by an earlier attempt: they count as done, and not towards the rate."""

    def aside(self) -> AbstractContextManager[None]:
        """Time within the block is spent on something else than these units, and does not count towards the rate."""
        ...


class Pace:
    """How much is done, and in how many seconds of its own."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._aside = 0.0
        self.done = self.resumed = 0

    def spent(self, now: float) -> float:
        """Seconds of the work itself until now, by the monotonic clock."""
        return now - self._started - self._aside

    def resume(self, amount: int) -> None:
        """See `Progress`."""
        self.done += amount
        self.resumed += amount

    @contextmanager
    def aside(self) -> Iterator[None]:
        """See `Progress`."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._aside += time.monotonic() - began


class Watcher:
    """Receives a run's output. This one ignores it (``--quiet``); the others override what they show."""

    def event(self, event: str, **fields: Any) -> None:
        """Something happened: a plan was made, a stage was reused, started, ended."""

    def say(self, text: str) -> None:
        """One line for a person."""

    @contextmanager
    def progress(self, what: str, total: int | None, unit: str) -> Iterator[Progress]:
        """Work of ``total`` units begins; it ends when the block is left."""
        yield _Ticker(self, what, total, unit)

    def tick(self, what: str, done: int, total: int | None, unit: str, seconds: float, note: str, resumed: int = 0) -> None:
        """Work goes on: called at most every few seconds. `resumed` units of `done` were done by an earlier attempt."""


class _Ticker(Pace):
    def __init__(self, watcher: Watcher, what: str, total: int | None, unit: str) -> None:
        super().__init__()
        self._watcher, self._what, self._total, self._unit = watcher, what, total, unit
        self._last_tick = self._started

    def advance(self, amount: int, note: str = "") -> None:
        self.done += amount
        now = time.monotonic()
        if now - self._last_tick >= _LINE_SECONDS:
            self._last_tick = now
            self._watcher.tick(self._what, self.done, self._total, self._unit, self.spent(now), note, self.resumed)


class LineWatcher(Watcher):
    """Plain lines on stderr, for a log file or a pipe."""

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def tick(self, what: str, done: int, total: int | None, unit: str, seconds: float, note: str, resumed: int = 0) -> None:
        self.say(f"  {tick_line(what, done, total, unit, seconds, note, resumed)}")


class TerminalWatcher(Watcher):
    """Bars with rate and time left, on a terminal."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True, highlight=False)

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)

    @contextmanager
    def progress(self, what: str, total: int | None, unit: str) -> Iterator[Progress]:
        from rich.console import RenderableType
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bars
        from rich.text import Text

        class BarsWithNote(Bars):
            """A note has its own line: beside a bar it would leave no room for the bar."""

            note = ""

            def get_renderables(self) -> Iterator[RenderableType]:
                yield from super().get_renderables()
                if self.note:
                    yield Text(f"    {self.note}", no_wrap=True, overflow="ellipsis")

        columns = (TextColumn("  {task.description}"), BarColumn(), TextColumn("{task.fields[text]}"))
        with BarsWithNote(*columns, console=self._console, transient=True) as bars:
            yield _Bar(bars, bars.add_task(what, total=total, text=""), total, unit)


class _Bar(Pace):
    def __init__(self, bars: Any, task: Any, total: int | None, unit: str) -> None:
        super().__init__()
        self._bars, self._task, self._total, self._unit = bars, task, total, unit

    def advance(self, amount: int, note: str = "") -> None:
        self.done += amount
        self._bars.note = note
        text = standing(self.done, self._total, self._unit, self.spent(time.monotonic()), self.resumed)
        self._bars.update(self._task, completed=self.done, text=text)


class JsonWatcher(Watcher):
    """One JSON object per line on stdout, for programs; on the stdout at the start, whatever is redirected later."""

    def __init__(self) -> None:
        self._stream = sys.stdout

    def event(self, event: str, **fields: Any) -> None:
        print(json.dumps({"event": event, **fields}, ensure_ascii=False), file=self._stream, flush=True)

    def say(self, text: str) -> None:
        self.event("message", text=text)

    def tick(self, what: str, done: int, total: int | None, unit: str, seconds: float, note: str, resumed: int = 0) -> None:
        extra: dict[str, Any] = ({"resumed": resumed} if resumed else {}) | ({"note": note} if note else {})
        self.event("progress", what=what, done=done, total=total, unit=unit, seconds=round(seconds, 3), **extra)


def watcher_for(*, json_lines: bool, quiet: bool) -> Watcher:
    """The watcher that fits where the output goes."""
    if json_lines:
        return JsonWatcher()
    if quiet:
        return Watcher()
    return TerminalWatcher() if sys.stderr.isatty() else LineWatcher()


def tick_line(what: str, done: int, total: int | None, unit: str, seconds: float, note: str, resumed: int = 0) -> str:
    """``generating: 578 of 1,318 images, 18.1 images/s, 41 s left``."""
    return f"{what}: {standing(done, total, unit, seconds, resumed)}{f'; {note}' if note else ''}"


def standing(done: int, total: int | None, unit: str, seconds: float, resumed: int) -> str:
    """``578 of 1,318 images, 18.1 images/s, 41 s left``: the rate counts this attempt only."""
    rate = (done - resumed) / max(seconds, 1e-9)
    remaining = f", {duration((total - done) / rate)} left" if total is not None and rate > 0 else ""
    return f"{portion(done, total, unit)}, {amount(rate, unit)}/s{remaining}"


def duration(seconds: float) -> str:
    """``0.4 s``, ``12 s``, ``3 min 20 s``, ``2 h 05 min``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    total = round(seconds)
    if total < 60:
        return f"{total} s"
    minutes, remainder = divmod(total, 60)
    if minutes < 60:
        return f"{minutes} min {remainder:02} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min"


def local_time(moment: str) -> str:
    """A time in UTC, as in records, in local time: ``2026-11-21 17:45``."""
    return datetime.fromisoformat(moment).astimezone().strftime("%Y-%m-%d %H:%M")


def size(count: int) -> str:
    """Bytes in a readable unit: ``950 B``, ``1.4 MB``."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def portion(done: int, total: int | None, unit: str) -> str:
    """``578 of 1,318 images``, or ``578 images`` where the total is not known."""
    if total is None:
        return amount(done, unit)
    return f"{size(done) if unit == 'bytes' else format(done, ',')} of {amount(total, unit)}"


def amount(count: float, unit: str) -> str:
    """``1,200 prompts``; bytes in a readable unit."""
    if unit == "bytes":
        return size(round(count))
    return f"{count:,.1f} {unit}" if count < 100 and count != int(count) else f"{count:,.0f} {unit}"
