"""The store on disk: paths, records, locks.

objects/ab/<content_id>/   manifest.json and files, read-only
keys/ab/<key>.json         a run's record: key -> content id
refs/<recipe>/<stage>.json the newest result by name
work/<key>/                a run in progress: out/, scratch/, attempt.json
logs/<key>.jsonl           a run's log; no part of its result
locks/<key>                held by the process that runs the key
damaged/<content_id>       objects that failed verification
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO

from irpipe.pipeline.errors import DamageError, InputError, StoreError
from irpipe.pipeline.manifest import Manifest, Record, read_manifest, read_record, read_typed, to_json, unreadable

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}
_DISK_ERRORS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EFBIG,
    errno.EIO,
    errno.ENOENT,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.ENAMETOOLONG,
}


@dataclass(frozen=True)
class Artifact:
    """One immutable folder of the store."""

    path: Path
    manifest: Manifest

    @property
    def content_id(self) -> str:
        return self.manifest.content_id

    def file(self, name: str) -> Path:
        """The path of one of its files."""
        return self.path / name

    def table(self, name: str) -> list[Path]:
        """The Parquet files of one of its tables, in order."""
        return [self.path / part for part in self.manifest.tables[name].files]


@dataclass(frozen=True)
class Store:
    """A folder of artifacts and of the records of the runs that made them."""

    root: Path

    def object_path(self, content_id: str) -> Path:
        return self.root / "objects" / content_id[:2] / content_id

    def record_path(self, key: str) -> Path:
        return self.root / "keys" / key[:2] / f"{key}.json"

    def ref_path(self, recipe: str, node: str) -> Path:
        return self.root / "refs" / recipe / f"{node}.json"

    def work_path(self, key: str) -> Path:
        return self.root / "work" / key

    def lock_path(self, key: str) -> Path:
        return self.root / "locks" / key

    def log_path(self, key: str) -> Path:
        return self.root / "logs" / f"{key}.jsonl"

    def children(self, *parts: str) -> list[Path]:
        """What lies in a folder of the store, in order; a `*` stands for each of its folders. Nothing where there is none.

        Raises:
            StoreError: it may not be read: that is not the same as empty.
        """
        folders = [self.root]
        for part in parts:
            folders = [inner for folder in folders for inner in _entries(folder)] if part == "*" else [f / part for f in folders]
        return [inner for folder in folders for inner in _entries(folder)]

    def objects(self) -> list[Path]:
        """The folders of all artifacts, whole or not."""
        return [path for path in self.children("objects", "*") if _is_filed(path)]

    def record_files(self) -> list[Path]:
        """The files of all records, readable or not."""
        return [path for path in self.children("keys", "*") if path.suffix == ".json" and _is_filed(path)]

    def owns(self, path: Path) -> bool:
        """Whether a path of the store may be changed: what lies behind a link may be somebody else's, and is only read."""
        above = path.relative_to(self.root).parts[:-1]
        return not any(self.root.joinpath(*above[: depth + 1]).is_symlink() for depth in range(len(above)))

    def lookup(self, key: str) -> Record | None:
        """The record of a run whose artifact exists, or None."""
        record = self.record(key)
        return record if record is not None and self.holds(record.content_id) else None

    def record(self, key: str) -> Record | None:
        """A run's record, or None where there is none that can be read. `irpipe verify` names those that cannot."""
        try:
            record = read_record(self.record_path(key))
        except DamageError:
            return None
        return record if record.key == key else None

    def holds(self, content_id: str) -> bool:
        """Whether an object exists with all its files at their sizes. `irpipe verify` checks the bytes."""
        folder = self.object_path(content_id)
        try:
            manifest = read_manifest(folder)
            return all((folder / entry.path).stat().st_size == entry.size for entry in manifest.files)
        except (DamageError, FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise unreadable(folder, error) from None

    def open(self, content_id: str) -> Artifact:
        """An artifact by its full content id."""
        folder = self.object_path(content_id)
        manifest = read_manifest(folder)
        if manifest.content_id != content_id:
            raise DamageError("the manifest is of another artifact", where=str(folder), fix="irpipe verify")
        return Artifact(folder, manifest)

    def records(self) -> Iterator[Record]:
        """Every run's record that can be read, in the order of keys."""
        for path in self.record_files():
            record = self.record(path.stem)
            if record is not None:
                yield record

    def newest(self, recipe: str, node: str) -> Record | None:
        """The record behind a recipe's newest result of a node, or None."""
        try:
            ref: Ref = read_typed(self.ref_path(recipe, node), Ref)
        except DamageError:
            return None
        record = self.record(ref.key)
        return record if record is None else replace(record, node=node)  # several nodes may share one run

    def point(self, recipe: str, node: str, record: Record) -> None:
        """Make a run's result the newest of a node. Writes nothing if it is already."""
        path = self.ref_path(recipe, node)
        text = to_json(asdict(Ref(record.key, record.content_id)))
        if path.exists() and path.read_bytes() == text.encode():
            return
        write_durably(path, text)

    def resolve(self, prefix: str) -> Record:
        """The run whose key or content id starts with a prefix; the newest where several runs made one object.

        Raises:
            StoreError: no id starts with it, or those of several artifacts do.
        """
        if len(prefix) < 4 or any(digit not in "0123456789abcdef" for digit in prefix):
            raise StoreError(f"{prefix!r} is not an id", expected="at least 4 of its hex digits", fix="irpipe status")
        matches = [record for record in self.records() if record.key.startswith(prefix) or record.content_id.startswith(prefix)]
        if not matches:
            raise StoreError(f"nothing in the store has an id that starts with {prefix!r}", fix="irpipe status")
        if len({record.content_id for record in matches}) > 1:
            listed = ", ".join(f"{record.content_id[:12]} ({record.node})" for record in matches)
            raise StoreError(f"the id {prefix!r} is ambiguous: {listed}", fix="give more digits")
        return max(matches, key=lambda record: record.ended)

    @contextmanager
    def lock(self, key: str, on_wait: Callable[[], None]) -> Iterator[None]:
        """Lock a key. The kernel frees it when the process ends, however it ends."""
        with _flock(self.lock_path(key), fcntl.LOCK_EX, on_wait):
            yield

    @contextmanager
    def lock_if_free(self, key: str) -> Iterator[bool]:
        """Lock a key if it is free, and yield whether that worked; never in a store that cannot be written."""

        def busy() -> None:
            raise BlockingIOError

        with ExitStack() as stack:
            try:
                stack.enter_context(self.lock(key, busy))
            except OSError as error:
                if not isinstance(error, BlockingIOError) and error.errno not in (errno.EROFS, errno.EACCES):
                    raise
                yield False
                return
            yield True

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep `irpipe gc` out while artifacts are read."""
        with ExitStack() as stack:
            try:
                stack.enter_context(_flock(self.root / "lock", fcntl.LOCK_SH, lambda: None))
            except OSError as error:
                if error.errno not in (errno.EROFS, errno.EACCES):
                    raise  # a store that cannot be written needs no lock
            yield

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Lock the whole store: no run may use it meanwhile.

        Raises:
            StoreError: a run is going on.
        """

        def refuse() -> None:
            raise StoreError("a run is using this store", where=str(self.root), fix="wait for it to end, then again")

        with ExitStack() as stack:
            try:
                stack.enter_context(_flock(self.root / "lock", fcntl.LOCK_EX, refuse))
            except OSError as error:
                if error.errno not in (errno.EROFS, errno.EACCES):
                    raise  # a store that cannot be written needs no lock
            yield

    def is_locked(self, key: str) -> bool:
        """Whether some process runs this key now."""
        path = self.lock_path(key)
        if not path.exists():
            return False
        with path.open("rb") as file:
            try:
                _lock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False


@contextmanager
def _flock(path: Path, mode: int, on_wait: Callable[[], None]) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        try:
            _lock(file, mode | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            _lock(file, mode)
        yield


def _lock(file: IO[bytes], mode: int) -> None:
    """`flock`, which some network mounts do not have.

    Raises:
        BlockingIOError: another process holds it.
        StoreError: files cannot be locked there.
    """
    try:
        fcntl.flock(file, mode)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        raise StoreError(
            f"files cannot be locked where the store lies: {error.strerror}",
            where=str(file.name),
            fix="a store on a local disk (store = ... in irpipe.toml), or a mount with locks",
        ) from None


@dataclass(frozen=True)
class Ref:
    """A recipe's newest result of a node."""

    key: str
    content_id: str


def _is_filed(path: Path) -> bool:
    """Whether a path is named by an id, below a folder of its first two digits."""
    name = path.name.removesuffix(".json")
    return len(name) == 64 and set(name) <= set("0123456789abcdef") and path.parent.name == name[:2]


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise unreadable(folder, error) from None


def write_durably(path: Path, text: str) -> None:
    """Write a small file so that a kill leaves either the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}.draft")
    try:
        with draft.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)  # of a full disk, too
        raise
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Sync the entries of a folder to disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def disk_errors(store: Path) -> Iterator[None]:
    """Turn the errors of a full, read-only or failing disk into an error with a fix."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        if error.filename is not None and not Path(os.fsdecode(error.filename)).resolve().is_relative_to(store.resolve()):
            raise InputError(f"{os.fsdecode(error.filename)} cannot be used: {error.strerror}") from error
        raise StoreError(
            f"the store cannot be written: {error.strerror or error}",
            where=str(error.filename or store),
            fix="free space or fix the permissions, then run the same command again: finished work is kept",
        ) from error
