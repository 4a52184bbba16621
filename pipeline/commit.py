"""From a finished run's folder to an artifact: everything durable first, then one rename.

Killed at any point, the store is as before or as after. What was finished in work/ is published by the next run.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from irpipe.pipeline.errors import StageError
from irpipe.pipeline.hashing import file_digest
from irpipe.pipeline.manifest import (
    MANIFEST_FILE,
    Manifest,
    Record,
    list_files,
    manifest_json,
    manifest_of,
    read_manifest,
    read_record,
    record_json,
)
from irpipe.pipeline.progress import Watcher
from irpipe.pipeline.store import Store, sync_folder, write_durably

_RECORD_FILE = "record.json"
_THREADS = 8  # waiting for the disk, not computing


def begin(store: Store, key: str) -> tuple[Path, Path]:
    """Fresh `out` and kept `scratch` folders of a run. The caller holds the key's lock."""
    work = store.work_path(key)
    out, scratch = work / "out", work / "scratch"
    if out.exists():
        shutil.rmtree(out)
    out.mkdir(parents=True)
    scratch.mkdir(exist_ok=True)
    return out, scratch


def commit(store: Store, key: str, describe: Callable[[Manifest], Record], watcher: Watcher) -> Record:
    """Publish work/<key>/out as an artifact. The caller holds the key's lock.

    Args:
        describe: makes the run's record once the content is known.

    Raises:
        StageError: the run wrote nothing.
    """
    work = store.work_path(key)
    out = work / "out"
    paths = list_files(out)
    if not paths:
        raise StageError("the stage wrote no file")
    total = sum((out / path).stat().st_size for path in paths)
    with ThreadPoolExecutor(_THREADS) as pool, watcher.progress("committing", total, "bytes") as bar:
        digests = []
        for path, sha in zip(paths, pool.map(lambda path: _seal(out / path), paths), strict=True):
            digests.append((path, sha))
            bar.advance((out / path).stat().st_size)
    for folder in sorted({out, *(out / parent for path in paths for parent in Path(path).parents)}):
        sync_folder(folder)
    manifest = manifest_of(out, digests)
    write_durably(out / MANIFEST_FILE, manifest_json(manifest))
    (out / MANIFEST_FILE).chmod(0o444)
    record = describe(manifest)
    write_durably(work / _RECORD_FILE, record_json(record))
    _publish(store, work, record)
    return record


def recover(store: Store, key: str) -> Record | None:
    """Publish what a killed process had finished but not published, if it had."""
    path = store.work_path(key) / _RECORD_FILE
    if not path.exists():
        return None
    record = read_record(path)
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
    out, target = work / "out", store.object_path(record.content_id)
    if target.exists() and not store.holds(record.content_id):
        set_aside(store, record.content_id)
    if not target.exists() and out.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        out.rename(target)
        sync_folder(target.parent)
        _close_folders(target)
    if target.exists():
        path = store.record_path(record.key)
        path.parent.mkdir(parents=True, exist_ok=True)
        (work / _RECORD_FILE).replace(path)
        sync_folder(path.parent)
    shutil.rmtree(work)


def _close_folders(target: Path) -> None:
    """Make an object's folders read-only, the outer last."""
    for entry in reversed(read_manifest(target).files):
        for folder in (target / entry.path).parents:
            folder.chmod(0o555)
            if folder == target:
                break


def set_aside(store: Store, content_id: str) -> Path:
    """Move a damaged object out of the way, so that the next run makes it again."""
    source, target = store.object_path(content_id), store.root / "damaged" / content_id
    target.parent.mkdir(parents=True, exist_ok=True)
    source.chmod(0o700)
    if target.exists():
        remove(target)
    source.rename(target)
    return target


def remove(folder: Path) -> None:
    """Delete a folder whose folders are read-only."""
    for path in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        path.chmod(0o700)
    shutil.rmtree(folder)


def attempt(store: Store, key: str) -> dict[str, object] | None:
    """What an unfinished run of this key left behind: stage, recipe, process, when, and its error if it failed."""
    path = store.work_path(key) / "attempt.json"
    if not path.exists():
        return None
    data: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
    return data
