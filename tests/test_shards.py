"""The durable map over shards: what survives a kill, in which order results come, and how errors arrive."""

from __future__ import annotations

import multiprocessing.util
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from irpipe.pipeline.cpus import set_threads, threads, usable_cpus
from irpipe.pipeline.errors import InputError, RecipeError, StageError
from irpipe.pipeline.executors import worker_number
from irpipe.pipeline.registry import EXECUTORS
from irpipe.pipeline.shards import is_whole
from irpipe.pipeline.stage import Context

EXECUTED = ("inline", "processes")
SHARDS = {f"{number:02}": number for number in range(6)}


@dataclass
class Square:
    """Writes the square of a number, and into a log that it did."""

    log: Path
    seconds: float = 0.0
    loaded: list[int] = field(default_factory=list)

    def __call__(self, shard: int, draft: Path) -> None:
        self.loaded.append(shard)
        time.sleep(self.seconds)
        draft.write_text(str(shard**2))
        with self.log.open("a") as log:
            log.write(f"{shard} {os.getpid()} {len(self.loaded)} {worker_number()} {os.environ.get('OMP_NUM_THREADS')}\n")


@dataclass
class Folder:
    """Makes a folder."""

    def __call__(self, shard: int, draft: Path) -> None:
        (draft / "deep").mkdir(parents=True)
        (draft / "deep" / "number").write_text(str(shard))


@dataclass
class Failing:
    """Fails at one shard."""

    error: Callable[[], BaseException]

    def __call__(self, shard: int, draft: Path) -> None:
        if shard == 3:
            raise self.error()
        draft.write_text(str(shard))


@dataclass
class Finalized:
    """Has its process write into a log when it ends by itself."""

    log: Path

    def __call__(self, shard: int, draft: Path) -> None:
        multiprocessing.util.Finalize(None, self.end, exitpriority=0)
        draft.write_text(str(shard))

    def end(self) -> None:
        with self.log.open("a") as log:
            log.write(f"{os.getpid()}\n")


class OddError(Exception):
    """Cannot be made again from its arguments."""

    def __init__(self, one: str, other: str) -> None:
        super().__init__(f"{one} and {other}")


def ours() -> BaseException:
    return InputError("the cat is missing", where="here", fix="bring it")


def others() -> BaseException:
    return ZeroDivisionError("by nothing")


def odd() -> BaseException:
    return OddError("a", "b")


def dying() -> BaseException:
    os.kill(os.getpid(), signal.SIGKILL)
    return AssertionError()


def made(log: Path) -> list[list[str]]:
    """Shard, process, how many shards the process had made, its number and its threads."""
    return [line.split() for line in log.read_text().splitlines()] if log.exists() else []


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("executor", EXECUTED)
class TestEveryExecutor:
    def test_order_is_kept_and_each_shard_is_made_once(self, context: Context, tmp_path, executor):
        paths = context.map(Square(tmp_path / "log"), SHARDS, "some squares", "numbers", executor=executor, processes=2)
        assert paths == [context.work / "some-squares" / name for name in SHARDS]
        assert [path.read_text() for path in paths] == [str(number**2) for number in SHARDS.values()]
        assert sorted(row[0] for row in made(tmp_path / "log")) == [str(number) for number in SHARDS.values()]
        context.map(Square(tmp_path / "log"), SHARDS, "some squares", "numbers", executor=executor, processes=2)
        assert len(made(tmp_path / "log")) == len(SHARDS), "finished shards are used again"

    def test_damaged_shards_are_made_again(self, context: Context, tmp_path, executor):
        paths = context.map(Square(tmp_path / "log"), SHARDS, "squares", "numbers")
        flip(paths[1])
        paths[2].unlink()
        paths[3].with_name("03.sha256").write_text("", encoding="utf-8")  # as a power loss may leave it
        context.map(Square(tmp_path / "log"), SHARDS, "squares", "numbers", executor=executor, processes=2)
        assert sorted(row[0] for row in made(tmp_path / "log")[len(SHARDS) :]) == ["1", "2", "3"]
        assert [path.read_text() for path in paths] == [str(number**2) for number in SHARDS.values()]

    def test_a_shard_may_be_a_folder(self, context: Context, executor):
        paths = context.map(Folder(), SHARDS, "folders", "folders", executor=executor, processes=2)
        flip(paths[1] / "deep" / "number")
        (paths[2] / "more").write_text("x")
        assert [is_whole(path) for path in paths] == [True, False, False, True, True, True]
        context.map(Folder(), SHARDS, "folders", "folders", executor=executor, processes=2)
        assert all(map(is_whole, paths)) and not (paths[2] / "more").exists()

    def test_our_errors_come_back_as_they_are(self, context: Context, executor):
        with pytest.raises(InputError) as raised:
            context.map(Failing(ours), SHARDS, "numbers", "numbers", executor=executor, processes=2)
        assert raised.value.what == "the cat is missing" and raised.value.fix == "bring it"
        assert "where:    here" in str(raised.value)
        assert list((context.work / "numbers").glob("*.sha256")), "what was finished is kept"

    def test_other_errors_come_with_their_traceback(self, context: Context, executor):
        with pytest.raises(ZeroDivisionError, match="by nothing") as raised:
            context.map(Failing(others), SHARDS, "numbers", "numbers", executor=executor, processes=2)
        if executor == "processes":
            assert "raise self.error()" in "".join(raised.value.__notes__)

    def test_progress_counts_what_shards_hold(self, tmp_path, context: Context, executor):
        counted: list[int] = []

        class Bar:
            def advance(self, amount, note=""):
                counted.append(amount)

            def __enter__(self):
                return self

            def __exit__(self, *_):
                pass

        here = Context(context.work, lambda what, total, unit: counted.append(total) or Bar(), context.say, {})
        here.map(Square(tmp_path / "log"), SHARDS, "squares", "units", size=lambda number: number, executor=executor, processes=2)
        assert counted[0] == 15 and sorted(counted[1:]) == [0, 1, 2, 3, 4, 5]


def test_an_error_that_cannot_be_sent_is_told(context: Context):
    with pytest.raises(RuntimeError, match=r"(?s)in a worker process:.*OddError: a and b"):
        context.map(Failing(odd), SHARDS, "numbers", "numbers", processes=2)


def test_a_process_that_is_killed_ends_the_run(context: Context):
    with pytest.raises(StageError, match="ended without an error message"):
        context.map(Failing(dying), SHARDS, "numbers", "numbers", processes=2)


def test_processes_compute_with_one_thread_and_keep_their_worker(context: Context, tmp_path):
    before = os.environ.get("OMP_NUM_THREADS")
    context.map(Square(tmp_path / "log", 0.2), SHARDS, "squares", "numbers", processes=2)
    rows = made(tmp_path / "log")
    assert {row[3] for row in rows} == {"0", "1"} and {row[4] for row in rows} == {"1"}
    assert str(os.getpid()) not in {row[1] for row in rows}
    assert max(int(row[2]) for row in rows) > 1, "what was loaded stays loaded"
    assert threads() == (int(before) if before else usable_cpus()) and worker_number() is None


def test_one_process_is_this_one(context: Context, tmp_path):
    context.map(Square(tmp_path / "log"), SHARDS, "squares", "numbers")
    assert {row[1] for row in made(tmp_path / "log")} == {str(os.getpid())}


def test_an_unknown_executor(context: Context, tmp_path):
    with pytest.raises(RecipeError, match="did you mean 'inline'"):
        context.map(Square(tmp_path / "log"), SHARDS, "squares", "numbers", executor="inlin")


def test_workers_end_by_themselves_when_all_is_made(context: Context, tmp_path):
    """One that is killed leaves what its libraries share: Python warned of leaked semaphores after every drawing of images."""
    context.map(Finalized(tmp_path / "log"), SHARDS, "some", "numbers", executor="processes", processes=2)
    assert len(set((tmp_path / "log").read_text().split())) == 2


def test_an_executor_of_another_package(context: Context, tmp_path, install, monkeypatch):
    """It needs one method and no more: files, digests and earlier attempts are not its matter."""
    (tmp_path / "backwards.py").write_text(
        textwrap.dedent("""
        class Backwards:
            def __init__(self, processes):
                self.processes = processes
            def map(self, worker, shards, done):
                for name in reversed(list(shards)):
                    worker(*shards[name])
                    done(name)
        """)
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    install({"backwards": "backwards:Backwards"}, EXECUTORS)
    paths = context.map(Square(tmp_path / "log"), SHARDS, "squares", "numbers", executor="backwards")
    assert [row[0] for row in made(tmp_path / "log")] == ["5", "4", "3", "2", "1", "0"]
    assert [path.read_text() for path in paths] == [str(number**2) for number in SHARDS.values()]


# Maps slow shards in a process of its own.
SCRIPT = """
import signal
import sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
from irpipe.pipeline.progress import Watcher
from irpipe.pipeline.interrupt import sigterm_interrupts
from irpipe.pipeline.stage import Context
from tests.test_shards import SHARDS, Square
if __name__ == "__main__":
    work, processes = Path(sys.argv[1]), int(sys.argv[2])
    context = Context(work, Watcher().progress, print, {})
    with sigterm_interrupts():
        context.map(Square(work / "log", 0.6), SHARDS, "squares", "numbers", processes=processes)
"""


def start(work: Path, processes: int, shards: int) -> subprocess.Popen[bytes]:
    """Map in another process, and wait until so many shards are made."""
    script = work / "script.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.Popen(
        [sys.executable, str(script), str(work), str(processes)], env=environment, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while len(list((work / "squares").glob("*.sha256"))) < shards and time.monotonic() < deadline:
        time.sleep(0.01)
    return process


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_kill_costs_the_shards_that_were_being_made(context: Context, processes, number):
    process = start(context.work, processes, 2)
    process.send_signal(number)
    assert process.wait(timeout=30) != 0
    workers = {int(row[1]) for row in made(context.work / "log")}
    deadline = time.monotonic() + 10
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, workers)), "nobody works on"
    kept = {path.name.removesuffix(".sha256") for path in (context.work / "squares").glob("*.sha256")}
    before = len(made(context.work / "log"))
    assert 2 <= len(kept) < len(SHARDS) and before <= len(kept) + processes
    paths = context.map(Square(context.work / "log"), SHARDS, "squares", "numbers")
    assert len(made(context.work / "log")) - before == len(SHARDS) - len(kept)
    assert [path.read_text() for path in paths] == [str(number**2) for number in SHARDS.values()]
    assert not list((context.work / "squares").glob("*.draft*"))


class TestProcessors:
    @pytest.fixture
    def machine(self, tmp_path, monkeypatch) -> Callable[..., int]:
        """What a machine with 8 processors tells, by the files of its control groups."""
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)

        def tell(**files: str) -> int:
            for name, text in files.items():
                path = tmp_path / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
            return usable_cpus(tmp_path)

        return tell

    def test_affinity(self, machine):
        assert machine() == 8

    @pytest.mark.parametrize(
        ("limit", "expected"), [("max 100000", 8), ("150000 100000", 2), ("1000 100000", 1), ("900000 100000", 8), ("junk", 8)]
    )
    def test_quota_version_2(self, machine, limit, expected):
        files: dict[str, Any] = {"proc/self/cgroup": "0::/user/job\n", "sys/fs/cgroup/user/job/cpu.max": f"{limit}\n"}
        assert machine(**files) == expected

    def test_the_quota_of_a_group_above(self, machine):
        files = {
            "proc/self/cgroup": "0::/user/job\n",
            "sys/fs/cgroup/user/job/cpu.max": "max 100000\n",
            "sys/fs/cgroup/user/cpu.max": "300000 100000\n",
        }
        assert machine(**files) == 3

    @pytest.mark.parametrize("folder", ["cpu,cpuacct/docker/x", "cpu/docker/x", "cpu"])
    def test_quota_version_1(self, machine, folder):
        files = {
            "proc/self/cgroup": "3:memory:/docker/x\n2:cpu,cpuacct:/docker/x\n",
            f"sys/fs/cgroup/{folder}/cpu.cfs_quota_us": "250000\n",
            f"sys/fs/cgroup/{folder}/cpu.cfs_period_us": "100000\n",
        }
        assert machine(**files) == 3
        (files[f"sys/fs/cgroup/{folder}/cpu.cfs_quota_us"]) = "-1\n"
        assert machine(**files) == 8

    def test_threads_are_what_the_environment_gives_or_all(self, monkeypatch):
        monkeypatch.setenv("OMP_NUM_THREADS", "3,1")
        assert threads() == 3 and set_threads() == 3 and os.environ["OMP_NUM_THREADS"] == "3"
        monkeypatch.delenv("OMP_NUM_THREADS")
        assert set_threads() == usable_cpus() == threads()

    def test_threads_that_wait_give_way_unless_somebody_says_otherwise(self, monkeypatch):
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
        monkeypatch.setenv("OMP_WAIT_POLICY", "active")
        set_threads()
        assert "GOMP_SPINCOUNT" not in os.environ
        monkeypatch.delenv("OMP_WAIT_POLICY")
        set_threads()
        assert os.environ["GOMP_SPINCOUNT"] == "10000"
        monkeypatch.setenv("GOMP_SPINCOUNT", "7")
        set_threads()
        assert os.environ["GOMP_SPINCOUNT"] == "7"
