"""The executor `ray`: shards are made by actors of a Ray cluster (https://docs.ray.io), on any number of machines.

The engine owns resumption: what is finished lies in the run's work folder, wherever it was made. A worker, a machine or a driver
that dies costs the shards that it was making. Where the store's folder lies at the same path everywhere, workers read and write
there. Elsewhere they get what they read from the remote, by content id, into a store of their own machine, and what they make
comes back through the cluster.
"""

from __future__ import annotations

import os
import pickle
import socket
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from irpipe.pipeline.cpus import set_threads
from irpipe.pipeline.errors import IrpipeError, RecipeError, StageError
from irpipe.pipeline.exchange import send
from irpipe.pipeline.executors import pickled_error
from irpipe.pipeline.machines import Machines
from irpipe.pipeline.manifest import list_files
from irpipe.pipeline.parcels import Desk, Home, Parcel, versions
from irpipe.pipeline.progress import Watcher
from irpipe.pipeline.remote import Remote
from irpipe.pipeline.shards import Durable, Worker
from irpipe.pipeline.store import Store, write_durably

_MOST_DEATHS = 3  # of workers that were making one shard
_WAIT_SECONDS, _ANSWER_SECONDS = 1.0, 10.0
_IDLE_WAITS = 20  # without any worker, after which it is said


class Ray:
    """Makes shards in the actors of a cluster.

    Raises:
        StageError: there is no cluster at the address, or it is of another version.
    """

    def __init__(self, machines: Machines) -> None:
        if machines.store is None:
            raise RecipeError("the executor 'ray' works for runs of a store")
        self._machines, self._settings = machines, machines.settings

    def map(self, worker: Worker, shards: Mapping[str, tuple[Any, Path]], done: Callable[[str], None]) -> None:
        """See `irpipe.pipeline.shards.Executor`. A shard that fails does not keep the others from being made."""
        assert self._machines.store is not None
        assert isinstance(worker, Durable)
        store = Store(self._machines.store)
        with _connected(self._settings.address), _probe(store) as probe:
            parcel = Parcel(store)
            sent, first = parcel.pack(worker.worker), next(iter(shards))
            parcel.pack(shards[first][0])  # what one shard names, all do
            if self._settings.share != "folder" and self._machines.remote is not None:
                send(Remote(self._machines.remote), store, sorted(parcel.objects), Watcher())
            home = Home(str(store.root), probe, self._settings.share, self._machines.remote, versions(), parcel.digests)
            pool = _Pool(lambda: self._actor(sent, home), self._count(len(shards)))
            try:
                self._drive(pool, store, shards, done)
            finally:
                pool.end()

    def _actor(self, worker: bytes, home: Home) -> Any:
        settings = self._settings
        options: dict[str, Any] = {"num_cpus": settings.num_cpus, "num_gpus": settings.num_gpus, "max_restarts": 0}
        if settings.memory_gb is not None:
            options["memory"] = int(settings.memory_gb * 1e9)
        return ray.remote(Maker).options(**options).remote(worker, home, max(1, int(settings.num_cpus)))

    def _count(self, shards: int) -> int:
        """How many actors: those that are asked for, or as many as the cluster has room for now."""
        wanted = self._settings.workers
        if wanted is None:
            there = ray.cluster_resources()
            room = [there.get("CPU", 0.0) / self._settings.num_cpus]
            room += [there.get("GPU", 0.0) / self._settings.num_gpus] if self._settings.num_gpus else []
            wanted = max(1, int(min(room)))
        return min(wanted, shards)

    def _asked(self) -> str:
        """What a worker asks for, and what there is."""
        settings, there = self._settings, ray.cluster_resources()
        memory = "" if settings.memory_gb is None else f", {settings.memory_gb:g} GB"
        has = f"{there.get('CPU', 0):g} CPUs, {there.get('GPU', 0):g} GPUs, {there.get('memory', 0) / 1e9:.0f} GB"
        return (
            f"no worker has begun: each asks for {settings.num_cpus:g} CPUs, {settings.num_gpus:g} GPUs{memory} ([executor]),"
            f" and all machines together have {has}, in part taken by others. A cluster that grows may be starting machines;"
            " Ctrl-C ends the wait, and what is made stays"
        )

    def _drive(self, pool: _Pool, store: Store, shards: Mapping[str, tuple[Any, Path]], done: Callable[[str], None]) -> None:
        """Hand out shards to whoever is free, again where a worker died, until all are made or have failed."""
        waiting, deaths, failed = iter(shards), dict[str, int](), dict[str, Exception]()
        again: list[str] = []
        running: dict[Any, tuple[Any, str]] = {}
        made = idle = 0
        while made + len(failed) < len(shards):
            for actor in pool.free():
                name = again.pop() if again else next(waiting, None)
                if name is None:
                    break
                shard, path = shards[name]
                running[actor.make.remote(Parcel(store).pack(shard), str(path.relative_to(store.root)))] = (actor, name)
                pool.busy(actor)
            idle = 0 if running else idle + 1
            if idle == _IDLE_WAITS:
                self._machines.say(self._asked())
            ready, _ = ray.wait([*running, *pool.starting], num_returns=1, timeout=_WAIT_SECONDS)
            for ref in ready:
                if ref not in running:
                    pool.started(ref)
                    continue
                actor, name = running.pop(ref)
                error, died = _outcome(ref, shards[name][1])
                (pool.lost if died else pool.give_back)(actor)
                deaths[name] = deaths.get(name, 0) + died
                if error is None:
                    made += 1
                    done(name)
                elif died and deaths[name] < _MOST_DEATHS:
                    again.append(name)
                else:
                    failed[name] = error
        if failed:
            raise _told(failed, len(shards))


@dataclass
class _Pool:
    """Actors: those that start, those that wait for work, those that work."""

    make: Callable[[], Any]
    count: int
    starting: dict[Any, Any] = field(default_factory=dict)
    _free: list[Any] = field(default_factory=list)
    _busy: list[Any] = field(default_factory=list)
    _deaths: int = 0  # of workers that were starting, one after the other

    def __post_init__(self) -> None:
        for _ in range(self.count):
            self._start()

    def _start(self) -> None:
        actor = self.make()
        self.starting[actor.ready.remote()] = actor

    def free(self) -> list[Any]:
        """Those that wait for work."""
        return list(self._free)

    def busy(self, actor: Any) -> None:
        self._free.remove(actor)
        self._busy.append(actor)

    def give_back(self, actor: Any) -> None:
        self._busy.remove(actor)
        self._free.append(actor)

    def lost(self, actor: Any) -> None:
        """Another takes the place of one that died."""
        self._busy.remove(actor)
        ray.kill(actor)  # only its answer may be lost
        self._start()

    def started(self, ref: Any) -> None:
        """One that started can work.

        Raises:
            IrpipeError: it cannot: its machine lacks something.
        """
        actor = self.starting.pop(ref)
        try:
            error = ray.get(ref)
        except RayTaskError:
            raise
        except RayError as death:  # its machine was lost before it could begin, or it asks for more than there is
            self._deaths += 1
            if self._deaths >= _MOST_DEATHS:
                raise StageError(f"{self._deaths} workers ended before they could begin: {death}"[:600]) from None
            self._start()
            return
        self._deaths = 0
        if error is not None:
            raise pickle.loads(error)  # noqa: S301 # of our own worker
        self._free.append(actor)

    def end(self) -> None:
        for actor in (*self.starting.values(), *self._free, *self._busy):
            ray.kill(actor)


class Maker:
    """An actor: makes shards one after the other, on whatever machine."""

    def __init__(self, worker: bytes, home: Home, threads: int) -> None:
        set_threads(threads)
        self._sent, self._home = worker, home
        self._worker: Worker | None = None
        self._desk: Desk | None = None

    def ready(self) -> bytes | None:
        """Unpack the worker; the error that keeps it from working here, or None."""
        try:
            self._desk = Desk.at(self._home)
            self._worker = self._desk.unpack(self._sent)
        except Exception as error:  # noqa: BLE001 # it is raised in the driver
            return pickled_error(error)
        return None

    def make(self, shard: bytes, path: str) -> bytes | dict[str, bytes] | None:
        """Make a shard: None where it lies in the shared folder, its files by relative path elsewhere, or the error."""
        assert self._desk is not None
        assert self._worker is not None
        try:
            given = self._desk.unpack(shard)
            if self._desk.shared:
                Durable(self._worker)(given, Path(self._home.store, path))
                return None
            with tempfile.TemporaryDirectory(prefix="irpipe-shard-") as folder:
                draft = Path(folder, Path(path).name)
                self._worker(given, draft)
                files = list_files(draft) if draft.is_dir() else [""]
                return {name: (draft / name if name else draft).read_bytes() for name in files}
        except Exception as error:  # noqa: BLE001 # it is raised in the driver
            return pickled_error(error)


@dataclass(frozen=True)
class _Sent:
    """A worker that writes the files that another machine has made."""

    files: Mapping[str, bytes]

    def __call__(self, shard: Any, draft: Path) -> None:  # noqa: ARG002 # it is made already
        for name, data in self.files.items():
            target = draft / name if name else draft
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)


def _outcome(ref: Any, path: Path) -> tuple[Exception | None, bool]:
    """The error of a shard that was asked for, None where it is made; and whether its worker was lost."""
    try:
        return _received(ray.get(ref), path), False
    except RayTaskError:
        raise
    except RayError as death:  # of the worker, its machine, or its memory
        return StageError(f"{_MOST_DEATHS} workers ended while they made it: {death}"[:400]), True


def _received(answer: bytes | dict[str, bytes] | None, path: Path) -> Exception | None:
    """Put what an actor has made in its place; the error where it made none."""
    if isinstance(answer, bytes):
        error: Exception = pickle.loads(answer)  # noqa: S301 # of our own worker
        return error
    if answer is not None:
        Durable(_Sent(answer))(None, path)
    return None


def _told(failed: Mapping[str, Exception], count: int) -> Exception:
    """The error of the first shard that failed, which says how many others did."""
    name, error = next(iter(failed.items()))
    others = f", as did {len(failed) - 1:,} others" if len(failed) > 1 else ""
    note = f"the shard {name} failed{others} of {count:,}; the rest is made and kept"
    if isinstance(error, IrpipeError):
        return type(error)(f"{note}: {error}")
    error.add_note(note)
    return error


@contextmanager
def _connected(address: str) -> Iterator[None]:
    """A connection to a cluster, or a cluster of this machine alone (`local`), for the length of a block."""
    quiet: dict[str, Any] = {"log_to_driver": False, "configure_logging": False, "namespace": f"irpipe-{uuid.uuid4().hex}"}
    mine = not ray.is_initialized()
    _check_answers(address)
    try:
        if mine:
            ray.init(address=address, **quiet)
    except ConnectionError as error:
        raise _no_cluster(address, error) from None
    except (RuntimeError, RayError) as error:
        raise StageError(
            f"Ray does not begin: {error}"[:600], fix="the same versions of ray and Python on all machines"
        ) from None
    try:
        yield
    finally:
        if mine:
            ray.shutdown()


def _check_answers(address: str) -> None:
    """Ask whether something listens at HOST:PORT: Ray itself would ask for eight minutes.

    The address of `auto` is in the environment, or in a file that Ray leaves, also where its cluster was killed.

    Raises:
        StageError: nothing does.
    """
    known = Path(tempfile.gettempdir(), "ray", "ray_current_cluster")
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS") or (known.read_text(encoding="utf-8").strip() if known.is_file() else "auto")
    host, _, port = address.rpartition(":")
    if not (host and port.isdigit()):
        return
    try:
        socket.create_connection((host, int(port)), _ANSWER_SECONDS).close()
    except OSError as error:
        raise _no_cluster(address, error) from None


def _no_cluster(address: str, error: OSError) -> StageError:
    return StageError(
        f"there is no Ray cluster at {address!r}: {error}"[:400],
        fix="ray start --head on this machine, --address HOST:PORT of another one, or --address local",
    )


@contextmanager
def _probe(store: Store) -> Iterator[tuple[str, str]]:
    """A file in the store by which another machine sees whether it sees the store."""
    token = uuid.uuid4().hex
    path = store.root / "work" / f"probe-{token}"
    write_durably(path, token)
    try:
        yield str(path), token
    finally:
        path.unlink(missing_ok=True)
