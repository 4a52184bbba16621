"""What people and programs see of a run."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout

import pytest
from rich.console import Console

from irpipe.pipeline import progress
from irpipe.pipeline.progress import JsonWatcher, LineWatcher, TerminalWatcher, amount, duration, size


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_amounts():
    assert [size(950), size(1_400_000), size(3_200_000_000_000)] == ["950 B", "1.4 MB", "3.2 TB"]
    assert [amount(1200, "rows"), amount(1.5, "rows"), amount(2e6, "bytes")] == ["1,200 rows", "1.5 rows", "2.0 MB"]


def test_a_pipe_gets_lines_with_rate_and_time_left(monkeypatch, capsys):
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with LineWatcher().progress("embedding", 100, "prompts") as bar:
        for _ in range(4):
            bar.advance(10)
    assert capsys.readouterr().err.splitlines() == [
        "  embedding: 20 of 100 prompts, 2.5 prompts/s, 32 s left",
        "  embedding: 40 of 100 prompts, 2.5 prompts/s, 24 s left",
    ]


def test_what_was_done_before_and_other_work_between_count_towards_no_rate(monkeypatch, capsys):
    """60 steps, 20 of an earlier attempt: 1,000 seconds of rollouts, then a step per second."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with LineWatcher().progress("training", 60, "steps") as bar:
        bar.resume(20)
        with bar.aside():
            now[0] += 1000
        for _ in range(10):
            now[0] += 1
            bar.advance(1)
    assert capsys.readouterr().err.splitlines()[-1] == "  training: 26 of 60 steps, 1 steps/s, 34 s left"


def test_a_program_gets_events_even_while_stdout_is_redirected(monkeypatch, capsys):
    monkeypatch.setattr(progress, "_LINE_SECONDS", 0.0)
    watcher = JsonWatcher()
    with redirect_stdout(io.StringIO()), watcher.progress("searching", 4, "prompts") as bar:
        bar.advance(3)
    event = json.loads(capsys.readouterr().out)
    assert (event["event"], event["done"], event["total"]) == ("progress", 3, 4)


def test_a_terminal_gets_a_bar(capsys):
    watcher = TerminalWatcher()
    with watcher.progress("hashing", 2_000_000, "bytes") as bar:
        bar.advance(1_000_000)
    watcher.say("[not markup]")
    assert "[not markup]" in capsys.readouterr().err


def test_a_long_note_leaves_the_bar_its_room(monkeypatch):
    shown = io.StringIO()
    watcher = TerminalWatcher()
    monkeypatch.setattr(watcher, "_console", Console(file=shown, width=80, force_terminal=True, color_system=None))
    with watcher.progress("training", 4, "steps") as bar:
        bar.advance(1, note="loss .7, " * 20)
    (told,) = {line.strip() for line in shown.getvalue().splitlines() if "training" in line and "1 of 4 steps" in line}
    assert "━" * 5 in told and "loss" not in told and "    loss .7, loss .7" in shown.getvalue()
