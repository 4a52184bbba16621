"""When a run is asked to stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from irpipe.pipeline.interrupt import sigterm_interrupts, undisturbed


@pytest.fixture(autouse=True)
def heeded():
    """SIGTERM as the command line has it."""
    with sigterm_interrupts():
        yield


def ask() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def interrupted(work) -> bool:
    """Whether an interrupt comes out of some work."""
    try:
        work()
    except KeyboardInterrupt:
        return True
    return False


def test_an_interrupt_waits_for_the_end_of_the_block():
    done = []

    def work():
        with undisturbed():
            ask()
            ask()
            done.append("whole")
        done.append("gone on")

    assert interrupted(work) and done == ["whole"]
    assert interrupted(ask)


def test_a_block_within_a_block_leaves_it_to_the_outer_one():
    done = []

    def work():
        with undisturbed():
            with undisturbed():
                ask()
            done.append("whole")

    assert interrupted(work) and done == ["whole"]


def test_an_error_in_the_block_is_told_rather_than_the_interrupt():
    def work():
        with undisturbed():
            ask()
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        work()


def test_what_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with undisturbed():
            ask()
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("stderr", ["a pipe that nobody reads", "closed"])
def test_nobody_has_to_listen(stderr):
    """Ctrl-C ends `tee` first."""
    code = (
        "import os, signal\n"
        "from irpipe.pipeline.interrupt import sigterm_interrupts, undisturbed\n"
        "with sigterm_interrupts():\n"
        "    try:\n"
        "        with undisturbed():\n"
        "            os.kill(os.getpid(), signal.SIGTERM)\n"
        "            print('whole', flush=True)\n"
        "    except KeyboardInterrupt:\n"
        "        print('interrupted', flush=True)\n"
    )
    read, write = os.pipe()
    os.close(read)
    command = ["bash", "-c", f'exec "$0" -c "$1"{" 2>&-" if stderr == "closed" else ""}', sys.executable, code]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=write, text=True, check=False)
    os.close(write)
    assert done.stdout.split() == ["whole", "interrupted"]


def test_an_interrupted_import_ends_as_any_interrupt(monkeypatch, capsys):
    """Compiled modules that are being imported turn an interrupt into an ImportError."""
    from irpipe.cli import commands, main

    def interrupted_import() -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as interrupt:
            raise ImportError("a module failed to initialise") from interrupt

    monkeypatch.setattr(commands, "app", interrupted_import)
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 130 and "interrupted: finished work is kept" in capsys.readouterr().err
