"""The log of a run: one JSON object per line in `logs/<key>.jsonl`, for `irpipe log` and `irpipe status`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from irpipe.pipeline.progress import Progress, Watcher, tick_line
from irpipe.pipeline.text import visible

_LONGEST_LINE = 4000  # characters
_TAIL_BYTES = 8192  # more than the longest line that progress writes


class Journal(Watcher):
    """Passes everything on to a watcher and writes it to the log. Progress is written every few seconds."""

    def __init__(self, path: Path, watcher: Watcher) -> None:
        self._path = path
        self._watcher = watcher
        self._torn = _ends_torn(path)
        self._warned = False

    def event(self, event: str, **fields: Any) -> None:
        """Pass an event on and write it."""
        self._watcher.event(event, **fields)
        self.keep(event, **fields)

    def say(self, text: str) -> None:
        """Pass a line on and write it."""
        self._watcher.say(text)
        self.keep("message", text=text)

    @contextmanager
    def progress(self, what: str, total: int | None, unit: str) -> Iterator[Progress]:
        """A bar of the watcher, and lines in the log."""
        with self._watcher.progress(what, total, unit) as bar, super().progress(what, total, unit) as log:
            yield _Both(bar, log)

    def tick(self, what: str, done: int, total: int | None, unit: str, seconds: float, note: str, resumed: int = 0) -> None:
        """Write the progress; the watcher has its own bar."""
        earlier = {"resumed": resumed} if resumed else {}
        self.keep("progress", what=what, done=done, total=total, unit=unit, seconds=round(seconds, 1), note=note, **earlier)

    def keep(self, event: str, **fields: Any) -> None:
        """Write an event without passing it on."""
        entry = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "event": event, **fields}
        line = (json.dumps(entry, ensure_ascii=False, default=str) + "\n").encode("utf-8", "replace")
        try:
            self._append(b"\n" + line if self._torn else line)
        except OSError as error:  # a run must not fail, nor a finished one be lost, because its log cannot be written
            self._torn = True
            if not self._warned:
                self._warned = True
                self._watcher.say(f"  the log cannot be written: {error.strerror}")

    def _append(self, line: bytes) -> None:
        """One write, so that a kill leaves whole lines and a reader never sees half of one."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            self._torn = os.write(descriptor, line) < len(line)
        finally:
            os.close(descriptor)


def _ends_torn(path: Path) -> bool:
    """Whether a log ends in the middle of a line, for example after a full disk."""
    if not path.exists() or not path.stat().st_size:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() != b"\n"


class _Both:
    def __init__(self, bar: Progress, log: Progress) -> None:
        self._bar, self._log = bar, log

    def advance(self, amount: int, note: str = "") -> None:
        self._bar.advance(amount, note)
        self._log.advance(amount, note)

    def resume(self, amount: int) -> None:
        self._bar.resume(amount)
        self._log.resume(amount)

    @contextmanager
    def aside(self) -> Iterator[None]:
        with self._bar.aside(), self._log.aside():
            yield


def read_journal(path: Path, start: int = 0) -> tuple[list[dict[str, Any]], int]:
    """The complete lines of a log from a byte on, and the byte after them. Lines that are no JSON object are left out."""
    if not path.exists():
        return [], start
    with path.open("rb") as file:
        file.seek(start)
        text = file.read()
    complete = text[: text.rfind(b"\n") + 1]
    return _parsed(complete), start + len(complete)


def last_progress(path: Path) -> dict[str, Any] | None:
    """The progress of a run, from the end of its log; None if the last line is about something else."""
    if not path.exists():
        return None
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        lines = _parsed(file.read())
    return lines[-1] if lines and lines[-1]["event"] == "progress" else None


def _parsed(text: bytes) -> list[dict[str, Any]]:
    entries = []
    for line in text.splitlines():
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue  # the rest of a line that began before the part that was read
        if isinstance(entry, dict) and isinstance(entry.get("event"), str):
            entries.append(entry)
    return entries


def latest_run(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines from the last start on: a key may have run before, forced or after a failure."""
    starts = [index for index, entry in enumerate(entries) if entry["event"] == "started"]
    return entries[starts[-1] :] if starts else entries


def as_line(entry: dict[str, Any]) -> str:
    """One event as a line of text."""
    fields = {name: value for name, value in entry.items() if name not in ("time", "event")}
    try:
        text = _told(entry, fields)
    except (KeyError, TypeError, ValueError):  # of another release, or damaged: it is shown as it is
        text = f"{entry['event']}: {json.dumps(fields, ensure_ascii=False)}"
    return f"{entry.get('time', '')}  {visible(text, _LONGEST_LINE)}"


def _told(entry: Mapping[str, Any], fields: Mapping[str, Any]) -> str:
    match entry["event"]:
        case "message":
            return str(entry["text"]).strip()
        case "progress":
            return tick_line(**{"note": "", **fields})
        case "started":
            return f"started, since {'; '.join(entry['reasons'])}, by process {entry['pid']}: {' '.join(entry['command'])}"
        case "ended":
            return f"ended after {entry['seconds']} s: {entry['content_id']}"
        case "failed":
            return f"failed: {entry['error']}"
        case _:
            return f"{entry['event']}: {json.dumps(fields, ensure_ascii=False)}"
