"""One durable map over shards: a kill costs only the shards that were being made.

A stage gives a worker and its shards; the result of each is a file (or a folder) in the run's work folder with its digest beside
it. An executor decides where the workers run; it knows nothing of files, digests or earlier attempts.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from irpipe.pipeline.commit import remove
from irpipe.pipeline.cpus import usable_cpus
from irpipe.pipeline.errors import RecipeError, did_you_mean
from irpipe.pipeline.hashing import content_id, file_digest
from irpipe.pipeline.machines import Machines
from irpipe.pipeline.manifest import list_files
from irpipe.pipeline.registry import EXECUTORS, declared
from irpipe.pipeline.settings import Config, setting
from irpipe.pipeline.store import sync_folder, write_durably


class Worker(Protocol):
    """Makes shards one after the other. It can be pickled, and loads what it needs (such as a model) at its first shard."""

    def __call__(self, shard: Any, draft: Path, /) -> None:
        """Write the result of one shard.

        Args:
            shard: what to make, as the stage describes it.
            draft: the file to write, or the folder to make; it does not exist yet.
        """


class Executor(Protocol):
    """Runs a worker over shards, in this process or in others.

    A package declares one under the entry-point group `irpipe.executors`: a function from `Machines` to an executor.
    """

    def map(self, worker: Worker, shards: Mapping[str, tuple[Any, Path]], done: Callable[[str], None]) -> None:
        """Call `worker(*shards[name])` once for every name, in any order and in any process that sees the same disk.

        Args:
            worker: picklable; a process keeps it for all its shards.
            shards: each is taken out of the mapping only when it is handed to a worker, so that memory holds few of them.
            done: called in this process with the name of each finished shard.

        Raises:
            Exception: what a worker raised. The workers have ended then, as they have after KeyboardInterrupt.
        """


class MapConfig(Config):
    """The settings of a stage that maps over shards."""

    num_processes: int = setting(
        1,
        ge=1,
        le=256,
        role="execution",
        meaning="Number of worker processes, of one thread each; process i uses GPU i, if there are GPUs."
        " 1: this process, with all its threads.",
    )
    executor: str | None = setting(
        None,
        role="execution",
        meaning="Where shards are made: inline, processes, or an executor that an installed package declares as irpipe.executors."
        " Unset: the recipe's [executor], or by num_processes.",
    )

    def unused(self) -> dict[str, str]:
        return {"num_processes": "executor = 'inline' is one process"} if self.executor == "inline" else {}


@dataclass(frozen=True)
class Durable:
    """A worker whose results are complete and synced to disk, with digests beside them. It runs where the worker runs."""

    worker: Worker

    def __call__(self, shard: Any, path: Path) -> None:
        draft = path.with_name(f"{path.name}.draft-{os.getpid()}")
        self.worker(shard, draft)
        files = [draft / name for name in list_files(draft)] if draft.is_dir() else [draft]
        for file in files:
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
        for folder in {file.parent for file in files} - {path.parent}:
            sync_folder(folder)
        digest = digest_of(draft)
        if path.exists():
            remove(path)
        draft.rename(path)
        write_durably(_digest_file(path), digest)


def digest_of(path: Path) -> str:
    """The digest of a shard: of a file's bytes, or of a folder's paths and files."""
    if not path.is_dir():
        return file_digest(path)
    return content_id((name, (path / name).stat().st_size, file_digest(path / name)) for name in list_files(path))


def map_shards(
    worker: Worker, shards: Mapping[str, Any], folder: Path, executor: Callable[[int], Executor], done: Callable[[str], None]
) -> list[Path]:
    """Make the shards that no earlier attempt has finished, or that are damaged.

    Args:
        worker: makes one shard.
        shards: by name, a file name. Two shards of one name in one run's work folder are the same work: the name holds
            whatever changes a shard and is not in the run's key.
        folder: where the results go.
        executor: makes the executor for a number of shards; not called where nothing is missing.
        done: called with the name of each finished shard, those of earlier attempts first.

    Returns:
        the results, in the order of `shards`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for draft in folder.glob("*.draft*"):
        remove(draft)  # of an attempt that was killed
    paths = {name: folder / name for name in shards}
    missing = []
    with ThreadPoolExecutor(usable_cpus()) as threads:
        for name, whole in zip(paths, threads.map(is_whole, paths.values()), strict=True):
            if whole:
                done(name)
            else:
                missing.append(name)
    if missing:
        executor(len(missing)).map(Durable(worker), _Missing(shards, paths, missing), done)
    return list(paths.values())


def is_whole(path: Path) -> bool:
    """Whether a shard is complete and unchanged: its digest fits."""
    try:
        return _digest_file(path).read_text(encoding="utf-8") == digest_of(path)
    except (OSError, ValueError):
        return False  # never made, or cut off by a kill or a power loss


def _digest_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


@dataclass(frozen=True)
class _Missing(Mapping[str, tuple[Any, Path]]):
    """The shards that are to be made, each looked up when it is asked for."""

    shards: Mapping[str, Any]
    paths: Mapping[str, Path]
    names: Sequence[str]

    def __getitem__(self, name: str) -> tuple[Any, Path]:
        return self.shards[name], self.paths[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def make_executor(name: str | None, machines: Machines) -> Executor:
    """An executor by name, else the recipe's; without either, `inline` for one process, `processes` for several.

    Raises:
        RecipeError: no installed package declares it.
    """
    name = name or machines.settings.name or ("inline" if machines.processes == 1 else "processes")
    executors = declared(EXECUTORS)
    if name not in executors:
        raise RecipeError(
            f"there is no executor {name!r}{did_you_mean(name, executors)}",
            fix=f"install the package that declares it under the entry-point group {EXECUTORS!r}",
        )
    try:
        executor: Executor = executors[name].load()(machines)
    except ModuleNotFoundError as error:
        raise RecipeError(
            f"the executor {name!r} needs the package {error.name}, which is not installed", fix=f"pip install 'irpipe[{name}]'"
        ) from None
    return executor


def put_in_place(source: Path, target: Path) -> None:
    """Link (or copy) a finished file to its place; the shard stays, so that a kill meanwhile loses nothing."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
