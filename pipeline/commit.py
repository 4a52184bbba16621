"""From a finished run's folder to an artifact: everything durable first, then one rename.

Killed at any point, the store is as before or as after. What was finished in work/ is published by the next run.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from irpipe.pipeline.errors import DamageError, StageError
from irpipe.pipeline.hashing import file_digest
from irpipe.pipeline.manifest import (
    MANIFEST_FILE,
    Manifest,
    Record,
    TableEntry,
    list_files,
    manifest_json,
    manifest_of,
    read_manifest,
    read_record,
    read_typed,
    record_json,
)
from irpipe.pipeline.progress import Watcher
from irpipe.pipeline.store import Store, sync_folder, write_durably

_RECORD_FILE = "record.json"
_CODE_FILE = "code"
_THREADS = 8  # waiting for the disk, not computing


def begin(store: Store, key: str, code: str, *, anew: bool = False) -> tuple[Path, Path]:
    """An empty `out` folder and the `scratch` folder of a run. The caller holds the key's lock.

    Args:
        code: digest of the stage's code; files that other code left in `scratch` are deleted.
        anew: delete everything that an earlier run left.
    """
    work = store.work_path(key)
    out, scratch, made_by = work / "out", work / "scratch", work / _CODE_FILE
    same_code = made_by.exists() and made_by.read_text(encoding="utf-8") == code
    if work.is_symlink() or (work.exists() and (anew or not same_code)):
        remove(work)
    if out.exists():
        remove(out)
    out.mkdir(parents=True)
    scratch.mkdir(exist_ok=True)
    write_durably(made_by, code)
    return out, scratch


def commit(store: Store, key: str, describe: Callable[[Manifest], Record], watcher: Watcher) -> Record:
    """Publish work/<key>/out as an artifact. The caller holds the key's lock.

    Args:
        describe: makes the run's record once the content is known.

    Raises:
        StageError: the run wrote nothing.
    """
    work = store.work_path(key)
    manifest = seal(work / "out", watcher, "committing")
    record = describe(manifest)
    write_durably(work / _RECORD_FILE, record_json(record))
    _publish(store, work, record)
    return record


def seal(out: Path, watcher: Watcher, doing: str) -> Manifest:
    """Hash the files of a folder, make them durable and read-only, and write their manifest beside them.

    Raises:
        StageError: there is no file, or something else than files.
    """
    paths = list_files(out)
    if not paths:
        raise StageError("the stage wrote no file")
    total = sum((out / path).stat().st_size for path in paths)
    with ThreadPoolExecutor(_THREADS) as pool, watcher.progress(doing, total, "bytes") as bar:
        digests = []
        for path, sha in zip(paths, pool.map(lambda path: _seal(out / path), paths), strict=True):
            digests.append((path, sha))
            bar.advance((out / path).stat().st_size)
    for folder in sorted({out, *(out / parent for path in paths for parent in Path(path).parents)}):
        sync_folder(folder)
    manifest = manifest_of(out, digests)
    write_durably(out / MANIFEST_FILE, manifest_json(manifest))
    (out / MANIFEST_FILE).chmod(0o444)
    return manifest


def recover(store: Store, key: str) -> Record | None:
    """Publish the result of a process that was killed between finishing and publishing, if there is one."""
    path = store.work_path(key) / _RECORD_FILE
    try:
        record = read_record(path)
    except DamageError:
        return None
    _publish(store, path.parent, record)
    return store.lookup(key)


def _seal(path: Path) -> str:
    """Hash a file, make it durable and read-only."""
    sha = file_digest(path)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.fchmod(descriptor, 0o444)
    finally:
        os.close(descriptor)
    return sha


def _publish(store: Store, work: Path, record: Record) -> None:
    target = place(store, work / "out", record.content_id)
    if target.exists():
        path = store.record_path(record.key)
        path.parent.mkdir(parents=True, exist_ok=True)
        (work / _RECORD_FILE).replace(path)
        sync_folder(path.parent)
    remove(work)


def place(store: Store, out: Path, content_id: str) -> Path:
    """Give a sealed folder its name; a damaged object of that name is moved aside, a whole one stays. Where the object lies."""
    target = store.object_path(content_id)
    if target.exists() and out.exists() and next(faults(target), None) is not None:
        set_aside(store, target)
    if not target.exists() and out.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        out.rename(target)
        sync_folder(target.parent)
        _close_folders(target)
    return target


def _close_folders(target: Path) -> None:
    """Make an object's folders read-only, the outer last."""
    for entry in reversed(read_manifest(target).files):
        for folder in (target / entry.path).parents:
            folder.chmod(0o555)
            if folder == target:
                break


def faults(folder: Path) -> Iterator[str]:
    """Differences between an object's folder and its manifest and name; every file is hashed."""
    try:
        manifest = read_manifest(folder)
        present = list_files(folder)
    except (DamageError, StageError) as error:
        yield error.what
        return
    entries = {entry.path: entry for entry in manifest.files}
    yield from (f"{path} is missing" for path in entries if path not in present)
    yield from (f"{path} is not in the manifest" for path in present if path not in entries)
    if manifest.content_id != folder.name or not manifest.is_whole:
        yield "its manifest is of another artifact"
    both = [path for path in present if path in entries]
    with ThreadPoolExecutor() as pool:
        for path, sha in zip(both, pool.map(lambda path: file_digest(folder / path), both), strict=True):
            if sha != entries[path].sha256:
                yield f"{path} has other bytes"
                return
    found = manifest_of(folder, [(path, entries[path].sha256) for path in both]).tables
    if shapes(found) != shapes(manifest.tables):
        yield "its manifest tells of other tables than its files hold"


def shapes(tables: Mapping[str, TableEntry]) -> dict[str, tuple[tuple[str, ...], int, list[str]]]:
    """Files, rows and columns of tables; how a type is written depends on the library's version."""
    return {name: (table.files, table.rows, sorted(table.columns)) for name, table in tables.items()}


def set_aside(store: Store, source: Path) -> None:
    """Move a damaged object away, so that the next run makes it again."""
    target = store.root / "damaged" / source.name
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir() and not source.is_symlink():
        source.chmod(0o700)
    if target.exists() or target.is_symlink():
        remove(target)
    source.rename(target)


def remove(path: Path) -> None:
    """Delete a file, a link, or a folder whose folders are read-only. What a link points to is never touched."""
    if path.is_symlink() or not path.is_dir():
        path.unlink()
        return
    path.chmod(0o700)
    for folder, below, _ in os.walk(path):
        for inner in (Path(folder, name) for name in below):
            if not inner.is_symlink():
                inner.chmod(0o700)
    shutil.rmtree(path)


@dataclass(frozen=True)
class Attempt:
    """The state file of an unfinished run: its process, its start, and its error if it failed."""

    stage: str
    node: str
    recipe: str
    pid: int
    started: str
    error: str = "killed"


def attempt(store: Store, key: str) -> Attempt | None:
    """The state of an unfinished run of this key; None where there is none that can be read."""
    try:
        found: Attempt = read_typed(store.work_path(key) / "attempt.json", Attempt)
    except DamageError:
        return None
    return found
