"""Several processes on one run: started here, or by torchrun, which sets the same environment.

The first process (rank 0) runs the recipe as ever. The others plan the same target, wait until the first one begins it, and take
part: the stage's own code meets over the addresses in the environment. They write no artifact.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import IO

from irpipe.pipeline.cpus import threads, usable_cpus
from irpipe.pipeline.errors import StageError
from irpipe.pipeline.interrupt import ignore_interrupts

_PARENT = "IRPIPE_PARENT"
_GRACE_SECONDS = 5.0
_MEETING = ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "RANK", "LOCAL_RANK")


def rank() -> int:
    """This process's number among those of a run; 0 where there is one."""
    return int(os.environ.get("RANK", "0")) if count() > 1 else 0


def count() -> int:
    """The number of processes of a run."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def together(processes: int, threads_each: int | None, arguments: Sequence[str]) -> Iterator[None]:
    """Start the other processes of a run, this one being the first, and end them with it.

    Args:
        threads_each: that each process computes with; None: its share of the processors, or what the environment says.
        arguments: of the command line that all run.

    Raises:
        StageError: one of the others failed.
    """
    own = {} if threads_each is None else {"OMP_NUM_THREADS": str(threads_each)}
    if processes == 1:
        with _environ(own):
            yield
        return
    shared = {**_environment(processes), **own}
    with _environ({**shared, "RANK": "0", "LOCAL_RANK": "0"}), tempfile.TemporaryFile("w+") as errors:
        others = [_start(number, arguments, shared, errors) for number in range(1, processes)]
        over = threading.Event()
        threading.Thread(target=_watch, args=(others, errors, over), daemon=True).start()
        try:
            yield
        except RuntimeError as error:
            time.sleep(1)  # a process that failed closes its connections a moment before it ends
            failure = _failure(others, errors)
            if failure is None:
                raise
            what, fix = failure
            raise StageError(f"{what}: {error}"[:400], fix=fix) from None
        finally:
            over.set()
            for other in others:
                other.kill()
                other.wait()


@contextmanager
def alone() -> Iterator[None]:
    """Work by itself, although others of the same run wait for a later stage."""
    with _environ({}):
        for name in _MEETING:
            os.environ.pop(name, None)
        yield


@contextmanager
def _environ(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables of this process's environment, and restore it."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _environment(processes: int) -> dict[str, str]:
    """The variables by which the processes of a run find each other, as torchrun sets them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "OMP_NUM_THREADS": str(min(threads(), max(1, usable_cpus() // processes))),
        _PARENT: str(os.getpid()),
    }


def _start(number: int, arguments: Sequence[str], shared: Mapping[str, str], errors: IO[str]) -> subprocess.Popen[bytes]:
    """Start one of the other processes of a run."""
    return subprocess.Popen(
        [sys.executable, "-m", "irpipe.cli", *arguments],
        env={**os.environ, **shared, "RANK": str(number), "LOCAL_RANK": str(number)},
        stdout=subprocess.DEVNULL,
        stderr=errors,
        start_new_session=True,
    )


def _failure(others: Sequence[subprocess.Popen[bytes]], errors: IO[str]) -> tuple[str, str] | None:
    """The number of a process that failed with its error, and what fixes it, if one did."""
    failed = [number for number, other in enumerate(others, 1) if other.poll() not in (None, 0)]
    if not failed:
        return None
    errors.seek(0)
    lines = errors.read().strip().splitlines()
    messages = (
        [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        or lines[-1:]
        or ["without an error message"]
    )
    fixes = [line.removeprefix("  fix:").strip() for line in lines if line.startswith("  fix:")] or ["the same command goes on"]
    return f"process {failed[0]} of {len(others) + 1} failed: {messages[0]}", fixes[0]


def _watch(others: Sequence[subprocess.Popen[bytes]], errors: IO[str], over: threading.Event) -> None:
    """End a run whose other processes failed: the first may wait for them where nothing can interrupt it."""
    while not over.wait(1):
        if any(other.poll() not in (None, 0) for other in others) and not over.wait(_GRACE_SECONDS):
            what, fix = _failure(others, errors) or ("another process failed", "the same command goes on")
            print(f"error: {what}\n  fix:      {fix}", file=sys.stderr, flush=True)
            for other in others:
                other.kill()
            os._exit(2)


def end_with_parent() -> None:
    """End this process, if `together` started it, when its parent is gone."""
    parent = os.environ.get(_PARENT)
    if parent is not None and rank() > 0:
        ignore_interrupts()
        end_with(int(parent))


def end_with(parent: int) -> None:
    """End this process soon after its parent is gone: a kill of the parent alone leaves its children running."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
