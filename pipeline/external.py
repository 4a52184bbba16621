"""Files from outside the store, and models: their digests, hashed once and remembered by what `stat` tells."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import struct
import time
from contextlib import closing
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from irpipe.pipeline.endings import whole_ending
from irpipe.pipeline.errors import InputError, IrpipeError, ModelError, UnreadError, did_you_mean
from irpipe.pipeline.hashing import content_id, digest, file_digest
from irpipe.pipeline.progress import Watcher, size
from irpipe.pipeline.registry import MODELS, declared
from irpipe.pipeline.settings import Config, hashed_names, role_of, value_of
from irpipe.pipeline.stage import Model
from irpipe.pipeline.store import Store

_BESIDE_A_FILE = (".json", ".txt")  # tokenizers: a model that is one file counts with those that lie beside it
_WEIGHTS = (".pt", ".pth", ".safetensors")  # of a model that is one file
_LFS_POINTER = b"version https://git-lfs"
# A file changed twice within the clock's resolution keeps its `stat`: younger files are not remembered.
_SETTLED_SECONDS = 2.0
_STAT = struct.Struct(">QQQQ")


@dataclass(frozen=True)
class Externals:
    """The external settings of one stage: what counts towards its key, where it is, and the entries of the run's record."""

    digests: dict[str, Any] = field(default_factory=dict)
    paths: dict[str, tuple[Path, ...]] = field(default_factory=dict)
    models: dict[str, tuple[Model, ...]] = field(default_factory=dict)
    entries: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Source:
    """One thing from outside: its identity, its path, and the artifact it belongs to, if any."""

    digest: Any
    path: Path
    artifact: str | None = None


def resolve(
    stage: str, config: Config, root: Path, store: Store, watcher: Watcher, *, remember: bool, most_bytes: int | None = None
) -> Externals:
    """Digest everything from outside that a stage's settings name.

    Args:
        remember: whether digests may be written to the store's memory (a plan writes nothing).
        most_bytes: larger files whose digest is not remembered are not read; None: all are read.

    Raises:
        InputError: a file is missing, empty or a Git LFS pointer.
        ModelError: a model is named without a revision.
        UnreadError: something is larger than `most_bytes`.
    """
    externals = Externals()
    memory = Memory(store.root / "digests.sqlite", watcher, remember=remember, most_bytes=most_bytes)
    for name in hashed_names(config, ("external", "model")):
        value, where = value_of(config, name), f"{stage}.{name}"
        if value is None or value == ():
            continue
        values = value if isinstance(value, tuple) else (value,)
        if role_of(type(config), name) == "model":
            resolved = [_model(str(item), root, store, memory, where) for item in values]
            externals.models[name] = tuple(model for model, _ in resolved)
            digests: Any = [digest_ for _, digest_ in resolved] if isinstance(value, tuple) else resolved[0][1]
            within = [_artifact_of(model.folder, store, where) for model, _ in resolved if model.folder is not None]
            artifacts = [artifact for artifact in within if artifact is not None]
        else:
            sources = [_source(str(item), root, store, memory, where) for item in values]
            digests = [source.digest for source in sources]
            externals.paths[name] = tuple(source.path for source in sources)
            artifacts = [source.artifact for source in sources if source.artifact is not None]
        externals.digests[name] = digests
        externals.entries[name] = {"given": _plain(value), "digest": digests, "artifacts": artifacts}
    return externals


def _plain(value: Any) -> Any:
    return [str(item) for item in value] if isinstance(value, tuple) else str(value)


def _model(value: str, root: Path, store: Store, memory: Memory, where: str) -> tuple[Model, Any]:
    """A model and its part of the key."""
    folder = root / value
    if value and folder.is_dir():
        _refuse_store(folder, value, store, where)
        digest_ = memory.digest(folder, where)
        return Model(f"folder:{digest_[:12]}", digest_, folder, where, value), digest_
    if value and folder.is_file():
        beside = [path for path in sorted(folder.parent.iterdir()) if path.suffix in _BESIDE_A_FILE and path.is_file()]
        digest_ = digest(["file", *([path.name, memory.digest(path, where)] for path in (folder, *beside))])
        return Model(f"file:{digest_[:12]}", digest_, folder, where, value), digest_
    if value in declared(MODELS):
        folder = shipped_folder(value)
        digest_ = memory.digest(folder, where)
        return Model(value, digest_, folder, where, value), ["shipped", value, digest_]
    if value.startswith((".", "/", "~")) or Path(value).suffix in _WEIGHTS:
        raise ModelError(f"{where} = {value!r} does not exist", fix="give a path relative to irpipe.toml's folder")
    name, at, revision = value.partition("@")
    if not (at and len(revision) == 40 and all(digit in "0123456789abcdef" for digit in revision)):
        raise ModelError(
            f"{where} = {value!r} is neither a local folder, a shipped model, nor a hub id with a pinned revision"
            + (did_you_mean(value, declared(MODELS)) if "/" not in value else ""),
            expected="name/model@<40 hex digits of a commit>, or a folder or file with the weights",
            fix="take the commit from the model page's history, or give the folder that holds the weights",
        )
    return Model(name, revision, None, where, name), ["hub", name, revision]


def shipped_folder(name: str) -> Path:
    """The folder of a model that an installed package ships.

    Raises:
        ModelError: the package is broken.
    """
    point = declared(MODELS)[name]
    spec = find_spec(point.module)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    folder = Path(folders[0], *point.attr.split(".")) if folders else None
    if folder is None or not folder.is_dir():
        raise ModelError(f"the package that ships {point.name!r} has no folder {point.value!r}", fix="install it again")
    return folder


def _source(value: str, root: Path, store: Store, memory: Memory, where: str) -> _Source:
    """A path, or the (short) id of an artifact of the store.

    A file counts by its ending as well: the ending tells how it is read.
    """
    path = root / value
    if path.exists():
        _refuse_store(path, value, store, where)
        artifact_ = _artifact_of(path, store, where)
        digest_ = memory.digest(path, where)
        return _Source([whole_ending(path), digest_] if path.is_file() else digest_, path, artifact_)
    try:
        artifact = store.open(store.resolve(value).content_id)
    except IrpipeError:
        raise InputError(f"{value} does not exist", where=where, fix="give a path relative to irpipe.toml's folder") from None
    return _Source(artifact.content_id, artifact.path, artifact.content_id)


def _refuse_store(path: Path, value: str, store: Store, where: str) -> None:
    if store.root.is_relative_to(path.resolve()):
        raise InputError(f"{value} holds the store itself", where=where, fix="name a folder beside it, or inside it a file")


def _artifact_of(path: Path, store: Store, where: str) -> str | None:
    """The artifact that a path reaches into, if any.

    Raises:
        InputError: the path is in the store, but not in one artifact, so that its lineage is not known.
    """
    if not path.resolve().is_relative_to(store.root):
        return None
    parts = path.resolve().relative_to(store.root).parts
    if len(parts) < 3 or parts[0] != "objects":
        raise InputError(f"{path} is a part of the store and no artifact", where=where, fix="name an artifact by its id")
    return parts[2]


class Memory:
    """Digests of files and folders, remembered by (path, inode, size, mtime_ns, ctime_ns)."""

    def __init__(self, path: Path, watcher: Watcher, *, remember: bool, most_bytes: int | None = None) -> None:
        self._path = path
        self._watcher = watcher
        self._remember = remember
        self._most_bytes = most_bytes

    def digest(self, path: Path, where: str) -> str:
        """SHA-256 of a file, or the Merkle digest of a folder.

        Cost: one `stat` per file when nothing changed; else one read of each file that did.
        """
        path = path.resolve()
        if path.is_file():
            _refuse(path, where)
            stat = path.stat()
            return self._remembered_or(path, _stat(stat), stat.st_size, lambda: self._hash_file(path))
        entries = _walk(path, self._path.parent)
        if not entries:
            raise InputError(f"{path} holds no files", where=where)
        signature = hashlib.sha256(b"".join([part for entry in entries for part in (entry[0], b"\0", entry[1])])).digest()
        total = sum(size_ for _, _, size_ in entries)
        return self._remembered_or(path, signature, total, lambda: self._hash_folder(path, entries))

    def _hash_file(self, path: Path) -> str:
        with self._watcher.progress(f"hashing {path.name}", path.stat().st_size, "bytes") as bar:
            return file_digest(path, bar.advance)

    def _hash_folder(self, folder: Path, entries: list[_File]) -> str:
        with self._watcher.progress("hashing files from outside", len(entries), "files") as bar:
            files = []
            for encoded, _, _ in entries:
                name = os.fsdecode(encoded)
                file = folder / name
                if encoded != name.encode("utf-8", "replace"):
                    raise InputError(f"{encoded!r} has a name that is not UTF-8", where=str(folder))
                if file.is_file():  # neither a link to nowhere nor a socket
                    files.append((name, file.stat().st_size, file_digest(file)))
                bar.advance(1)
        return digest(["folder", content_id(files)])

    def _remembered_or(self, path: Path, signature: bytes, count: int, compute: Any) -> str:
        remembered = self._lookup(str(path), signature)
        if remembered is not None:
            return remembered
        if self._most_bytes is not None and count > self._most_bytes:
            raise UnreadError(f"{path.name} ({size(count)}) was not read yet, or has changed")
        fresh: str = compute()
        if self._remember and time.time() - path.stat().st_ctime > _SETTLED_SECONDS:
            self._store(str(path), signature, fresh)
        return fresh

    def _lookup(self, path: str, signature: bytes) -> str | None:
        """The remembered digest, if any: a memory that is missing, locked or broken only costs a read."""
        try:
            with closing(sqlite3.connect(f"file:{self._path}?mode=ro", uri=True, timeout=30)) as connection:
                query = "SELECT digest FROM digests WHERE path = ? AND signature = ?"
                row = connection.execute(query, (path, signature)).fetchone()
        except sqlite3.Error:
            return None
        return None if row is None else str(row[0])

    def _store(self, path: str, signature: bytes, fresh: str) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self._path, timeout=30)) as connection, connection:
                connection.execute("CREATE TABLE IF NOT EXISTS digests (path TEXT PRIMARY KEY, signature BLOB, digest TEXT)")
                connection.execute("INSERT OR REPLACE INTO digests VALUES (?, ?, ?)", (path, signature, fresh))
        except (sqlite3.Error, OSError):
            return  # a read-only or full store remembers nothing; the next run reads the file again


def _stat(stat: os.stat_result) -> bytes:
    return _STAT.pack(stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


_File = tuple[bytes, bytes, int]
"""A file below a folder: its relative path as the system writes it, its `stat` packed, and its size."""


def _walk(folder: Path, store: Path) -> list[_File]:
    """Every file below a folder, in the order of paths.

    Links are followed, but not into a folder that is already being walked; a link to nowhere counts as the link it is. Names are
    bytes and nothing is made of a plain file but its `stat`, since 100,000 files are looked at before a run that does nothing.

    Raises:
        InputError: a link leads into the store: the lineage would miss that.
    """
    files: list[_File] = []
    top, root = folder.stat(), os.fsencode(folder) + b"/"
    pending = [(b"", (top.st_dev, top.st_ino), frozenset[tuple[int, int]]())]
    while pending:
        below, here, above = pending.pop()
        with os.scandir(root + below) as entries:
            for entry in entries:
                link, is_folder = entry.is_symlink(), entry.is_dir()
                if link and Path(os.fsdecode(entry.path)).resolve().is_relative_to(store):
                    raise InputError(f"{os.fsdecode(entry.path)} leads into the store", fix="name the artifact by its id")
                if not is_folder:
                    stat = entry.stat(follow_symlinks=not (link and not Path(os.fsdecode(entry.path)).exists()))
                    files.append((below + entry.name, _stat(stat), stat.st_size))
                    continue
                stat = entry.stat()
                if (stat.st_dev, stat.st_ino) not in {here, *above}:
                    pending.append((below + entry.name + b"/", (stat.st_dev, stat.st_ino), above | {here}))
    files.sort()
    return files


def _refuse(path: Path, where: str) -> None:
    with path.open("rb") as file:
        head = file.read(len(_LFS_POINTER))
    if not head:
        raise InputError(f"{path} is empty", where=where)
    if head == _LFS_POINTER:
        raise InputError(f"{path} is a Git LFS pointer, not the data", where=where, fix=f"git lfs pull --include {path.name}")
