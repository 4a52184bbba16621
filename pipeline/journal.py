"""What a run says, kept beside the store: one JSON object a line in `logs/<key>.jsonl`, for `irpipe log` and `irpipe status`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from irpipe.pipeline.progress import Progress, Watcher, tick_line
from irpipe.pipeline.text import visible

_LONGEST_LINE = 4000  # characters
_TAIL_BYTES = 8192  # more than the longest line that progress writes


class Journal(Watcher):
    """Passes everything on to the one who watches, and writes it down. Progress is written every few seconds."""

    def __init__(self, path: Path, watcher: Watcher) -> None:
        self._path = path
        self._watcher = watcher
        self._torn = _ends_torn(path)
        self._told = False

    def event(self, event: str, **fields: Any) -> None:
        """Something happened: it is told and written."""
        self._watcher.event(event, **fields)
        self.keep(event, **fields)

    def say(self, text: str) -> None:
        """One line: it is told and written."""
        self._watcher.say(text)
        self.keep("message", text=text)

    @contextmanager
    def progress(self, what: str, total: int | None, unit: str) -> Iterator[Progress]:
        """A bar of the one who watches, and lines in the log."""
        with self._watcher.progress(what, total, unit) as shown, super().progress(what, total, unit) as written:
            yield _Both(shown, written)

    def tick(self, what: str, done: int, total: int | None, unit: str, seconds: float, note: str, resumed: int = 0) -> None:
        """Work goes on: written only; the one who watches has a bar of his own."""
        earlier = {"resumed": resumed} if resumed else {}
        self.keep("progress", what=what, done=done, total=total, unit=unit, seconds=round(seconds, 1), note=note, **earlier)

    def keep(self, event: str, **fields: Any) -> None:
        """Something is written only: whoever watches learns it otherwise."""
        told = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "event": event, **fields}
        line = (json.dumps(told, ensure_ascii=False, default=str) + "\n").encode("utf-8", "replace")
        try:
            self._append(b"\n" + line if self._torn else line)
        except OSError as error:  # a run must not fail, nor a finished one be lost, for want of its log
            self._torn = True
            if not self._told:
                self._told = True
                self._watcher.say(f"  the log cannot be written: {error.strerror}")

    def _append(self, line: bytes) -> None:
        """One write: a kill leaves whole lines, and a reader meanwhile sees none that is half."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            self._torn = os.write(descriptor, line) < len(line)
        finally:
            os.close(descriptor)


def _ends_torn(path: Path) -> bool:
    """Whether a log ends within a line, as a full disk leaves it."""
    if not path.exists() or not path.stat().st_size:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() != b"\n"


class _Both:
    def __init__(self, shown: Progress, written: Progress) -> None:
        self._shown, self._written = shown, written

    def advance(self, amount: int, note: str = "") -> None:
        self._shown.advance(amount, note)
        self._written.advance(amount, note)

    def resume(self, amount: int) -> None:
        self._shown.resume(amount)
        self._written.resume(amount)

    @contextmanager
    def aside(self) -> Iterator[None]:
        with self._shown.aside(), self._written.aside():
            yield


def read_journal(path: Path, start: int = 0) -> tuple[list[dict[str, Any]], int]:
    """The whole lines of a log from a byte on, and the byte after them. What is no JSON object is left out."""
    if not path.exists():
        return [], start
    with path.open("rb") as file:
        file.seek(start)
        text = file.read()
    whole = text[: text.rfind(b"\n") + 1]
    return _parsed(whole), start + len(whole)


def last_progress(path: Path) -> dict[str, Any] | None:
    """How far a run is, by the end of its log; None if the last line tells of something else."""
    if not path.exists():
        return None
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        lines = _parsed(file.read())
    return lines[-1] if lines and lines[-1]["event"] == "progress" else None


def _parsed(text: bytes) -> list[dict[str, Any]]:
    found = []
    for line in text.splitlines():
        try:
            told = json.loads(line)
        except ValueError:
            continue  # the rest of a line that began before the part that was read
        if isinstance(told, dict) and "event" in told:
            found.append(told)
    return found


def latest_run(told: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines from the last start on: a key may have run before, forced or after a failure."""
    starts = [place for place, line in enumerate(told) if line["event"] == "started"]
    return told[starts[-1] :] if starts else told


def as_line(told: dict[str, Any]) -> str:
    """One event as people read it."""
    fields = {name: value for name, value in told.items() if name not in ("time", "event")}
    match told["event"]:
        case "message":
            text = str(told["text"]).strip()
        case "progress":
            text = tick_line(**{"note": "", **fields})
        case "started":
            text = f"started, since {'; '.join(told['reasons'])}, by process {told['pid']}: {' '.join(told['command'])}"
        case "ended":
            text = f"ended after {told['seconds']} s: {told['content_id']}"
        case "failed":
            text = f"failed: {told['error']}"
        case _:
            text = f"{told['event']}: {json.dumps(fields, ensure_ascii=False)}"
    return f"{told.get('time', '')}  {visible(text, _LONGEST_LINE)}"
