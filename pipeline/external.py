"""Files from outside the store, and models: their digests, hashed once and remembered by what `stat` tells."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import struct
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from irpipe.pipeline.errors import InputError, IrpipeError, ModelError
from irpipe.pipeline.hashing import content_id, digest, file_digest
from irpipe.pipeline.progress import Watcher
from irpipe.pipeline.stage import Config, role_of
from irpipe.pipeline.store import Store

_LFS_POINTER = b"version https://git-lfs"
# A file changed twice within the clock's grain keeps its `stat`: what is younger than this is not remembered.
_SETTLED_SECONDS = 2.0
_STAT = struct.Struct(">QQQQ")


@dataclass(frozen=True)
class Externals:
    """The external settings of one stage: what counts towards its key, where it lies, and what people read."""

    digests: dict[str, Any] = field(default_factory=dict)
    paths: dict[str, tuple[Path, ...]] = field(default_factory=dict)
    shown: dict[str, Any] = field(default_factory=dict)


def resolve(stage: str, config: Config, root: Path, store: Store, watcher: Watcher, *, remember: bool) -> Externals:
    """Digest everything from outside that a stage's settings name.

    Args:
        remember: whether digests may be written to the store's memory (a plan writes nothing).

    Raises:
        InputError: a file is missing, empty or a Git LFS pointer.
        ModelError: a model is named without a revision.
    """
    found = Externals()
    memory = Memory(store.root / "digests.sqlite", watcher, remember=remember)
    for name in type(config).model_fields:
        role, value = role_of(type(config), name), getattr(config, name)
        if value is None or value == () or role not in ("external", "model"):
            continue
        where = f"{stage}.{name}"
        if role == "model":
            digests, paths = _model(str(value), root, memory, where)
        else:
            values = value if isinstance(value, tuple) else (value,)
            pairs = [_source(str(item), root, store, memory, where) for item in values]
            digests, paths = [sha for sha, _ in pairs], tuple(path for _, path in pairs)
        found.digests[name] = digests
        found.paths[name] = paths
        found.shown[name] = {"given": _plain(value), "digest": digests}
    return found


def _plain(value: Any) -> Any:
    return [str(item) for item in value] if isinstance(value, tuple) else str(value)


def _model(value: str, root: Path, memory: Memory, where: str) -> tuple[Any, tuple[Path, ...]]:
    folder = root / value
    if folder.is_dir():
        return memory.digest(folder, where), (folder,)
    name, at, revision = value.partition("@")
    if not (at and len(revision) == 40 and all(digit in "0123456789abcdef" for digit in revision)):
        raise ModelError(
            f"{where} = {value!r} is neither a local folder nor a hub id with a pinned revision",
            expected="name/model@<40 hex digits of a commit>, or a folder with the model's files",
            mend="take the commit from the model page's history, or give the folder that holds the weights",
        )
    return ["hub", name, revision], ()


def _source(value: str, root: Path, store: Store, memory: Memory, where: str) -> tuple[str, Path]:
    """A path, or the (short) id of an artifact of the store."""
    path = root / value
    if path.exists():
        return memory.digest(path, where), path
    try:
        artifact = store.open(store.resolve(value).content_id)
    except IrpipeError:
        raise InputError(f"{value} does not exist", where=where, mend="give a path relative to irpipe.toml's folder") from None
    return artifact.content_id, artifact.path


class Memory:
    """Digests of files and folders, remembered by (path, inode, size, mtime_ns, ctime_ns)."""

    def __init__(self, path: Path, watcher: Watcher, *, remember: bool) -> None:
        self._path = path
        self._watcher = watcher
        self._remember = remember

    def digest(self, path: Path, where: str) -> str:
        """SHA-256 of a file, or the Merkle digest of a folder.

        Cost: one `stat` a file when nothing changed; else one read of what did.
        """
        path = path.resolve()
        if path.is_file():
            _refuse(path, where)
            return self._known_or(path, _stat(path.stat()), lambda: self._hash_file(path))
        entries = sorted(_walk(path, ""))
        if not entries:
            raise InputError(f"{path} holds no files", where=where)
        signature = hashlib.sha256(b"".join(name.encode() + b"\0" + stat for name, stat in entries)).digest()
        return self._known_or(path, signature, lambda: self._hash_folder(path, entries))

    def _hash_file(self, path: Path) -> str:
        with self._watcher.progress(f"hashing {path.name}", path.stat().st_size, "bytes") as bar:
            return file_digest(path, bar.advance)

    def _hash_folder(self, folder: Path, entries: list[tuple[str, bytes]]) -> str:
        with self._watcher.progress("hashing files from outside", len(entries), "files") as bar:
            files = []
            for name, _ in entries:
                files.append((name, (folder / name).stat().st_size, file_digest(folder / name)))
                bar.advance(1)
        return digest(["folder", content_id(files)])

    def _known_or(self, path: Path, signature: bytes, compute: Any) -> str:
        known = self._lookup(str(path), signature)
        if known is not None:
            return known
        fresh: str = compute()
        if self._remember and time.time() - path.stat().st_ctime > _SETTLED_SECONDS:
            self._store(str(path), signature, fresh)
        return fresh

    def _lookup(self, path: str, signature: bytes) -> str | None:
        if not self._path.exists():
            return None
        with closing(sqlite3.connect(f"file:{self._path}?mode=ro", uri=True, timeout=30)) as connection:
            row = connection.execute("SELECT digest FROM digests WHERE path = ? AND signature = ?", (path, signature)).fetchone()
        return None if row is None else str(row[0])

    def _store(self, path: str, signature: bytes, fresh: str) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(self._path, timeout=30)) as connection, connection:
            connection.execute("CREATE TABLE IF NOT EXISTS digests (path TEXT PRIMARY KEY, signature BLOB, digest TEXT)")
            connection.execute("INSERT OR REPLACE INTO digests VALUES (?, ?, ?)", (path, signature, fresh))


def _stat(stat: os.stat_result) -> bytes:
    return _STAT.pack(stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


def _walk(folder: Path, below: str) -> Iterator[tuple[str, bytes]]:
    with os.scandir(folder / below) as entries:
        for entry in entries:
            name = f"{below}{entry.name}"
            if entry.is_dir():
                yield from _walk(folder, f"{name}/")
            else:
                yield name, _stat(entry.stat())


def _refuse(path: Path, where: str) -> None:
    with path.open("rb") as file:
        head = file.read(len(_LFS_POINTER))
    if not head:
        raise InputError(f"{path} is empty", where=where)
    if head == _LFS_POINTER:
        raise InputError(f"{path} is a Git LFS pointer, not the data", where=where, mend=f"git lfs pull --include {path.name}")
