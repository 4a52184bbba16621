"""The built-in executors: this process, or several processes of this machine."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

from irpipe.pipeline.cpus import set_threads, threads
from irpipe.pipeline.errors import IrpipeError, StageError
from irpipe.pipeline.interrupt import ignore_interrupts
from irpipe.pipeline.machines import Machines
from irpipe.pipeline.processes import end_with
from irpipe.pipeline.shards import Worker

_NUMBER = "IRPIPE_WORKER"
_GRACE_SECONDS = 5.0


def worker_number() -> int | None:
    """Which of several worker processes this one is, from 0; None where it is none."""
    number = os.environ.get(_NUMBER)
    return None if number is None else int(number)


class Inline:
    """Makes one shard after the other in this process."""

    def __init__(self, machines: Machines) -> None:
        del machines  # this process, whatever was asked for

    def map(self, worker: Worker, shards: Mapping[str, tuple[Any, Path]], done: Callable[[str], None]) -> None:
        for name in shards:
            worker(*shards[name])
            done(name)


class Processes:
    """Makes shards in several processes of one thread each."""

    def __init__(self, machines: Machines) -> None:
        self._processes = machines.processes

    def map(self, worker: Worker, shards: Mapping[str, tuple[Any, Path]], done: Callable[[str], None]) -> None:
        names = iter(shards)
        running: dict[Any, str] = {}  # a process's pipe -> the shard it makes

        def give_next(pipe: Any) -> None:
            name = next(names, None)
            if name is not None:
                pipe.send(shards[name])
                running[pipe] = name

        with _started(worker, min(self._processes, len(shards))) as pipes:
            try:
                for pipe in pipes:
                    give_next(pipe)
                while running:
                    answered: list[Any] = wait(list(running))
                    for pipe in answered:
                        error = pipe.recv()
                        if error is not None:
                            raise error
                        done(running.pop(pipe))
                        give_next(pipe)
            except (EOFError, BrokenPipeError, ConnectionResetError):
                raise StageError(
                    "one of the processes that make shards ended without an error message; perhaps there was not enough memory",
                    fix="fewer processes (num_processes), or a smaller batch_size; finished shards are kept",
                ) from None


@contextmanager
def _started(worker: Worker, count: int) -> Iterator[list[Connection]]:
    """Processes that make shards, each at the other end of a pipe. They end with the block, however it ends."""
    spawn, here = get_context("spawn"), threads()
    pipes: list[Connection] = []
    processes = []
    try:
        for number in range(count):
            mine, its = spawn.Pipe()
            pipes.append(mine)
            process = spawn.Process(target=_serve, args=(worker, its, os.getpid()), daemon=True)
            os.environ[_NUMBER] = str(number)
            set_threads(1)  # in the child's environment, before it loads what computes
            try:
                process.start()
            finally:
                del os.environ[_NUMBER]
                set_threads(here)
            processes.append(process)
            its.close()  # so that the pipe ends when the process does
        yield pipes
        for pipe in pipes:
            pipe.close()
        for process in processes:  # one that is killed leaves what its libraries share, and Python warns of it
            process.join(_GRACE_SECONDS)
    finally:
        for process in processes:
            process.kill()  # a shard may take minutes, and its result is not needed any more
        for process in processes:
            process.join()
        for pipe in pipes:
            pipe.close()


def _serve(worker: Worker, pipe: Connection, parent: int) -> None:
    """Make the shards that come through a pipe, and answer each with None or with the error."""
    ignore_interrupts()
    end_with(parent)
    while True:
        try:
            shard, path = pipe.recv()
        except EOFError:
            return
        try:
            worker(shard, path)
        except Exception as error:  # noqa: BLE001 # it is raised in the other process
            pipe.send_bytes(pickled_error(error))
        else:
            pipe.send(None)


def pickled_error(error: Exception) -> bytes:
    """An error for another process. Ours is sent as it is; any other one takes its traceback along."""
    trace = "".join(traceback.format_exception(error))
    if not isinstance(error, IrpipeError):
        error.add_note(f"in a worker process:\n{trace}")
    try:
        data = bytes(ForkingPickler.dumps(error))
        ForkingPickler.loads(data)
    except Exception:  # noqa: BLE001 # another package's exception may fail in any way
        return bytes(ForkingPickler.dumps(RuntimeError(f"in a worker process:\n{trace}")))
    return data
