"""Upkeep of a remote: reading it whole, and deleting what nobody refers to."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from irpipe.pipeline.bucket import Entry
from irpipe.pipeline.errors import DamageError, StoreError
from irpipe.pipeline.exchange import Root, manifest_in, root_in
from irpipe.pipeline.manifest import Manifest
from irpipe.pipeline.progress import Watcher
from irpipe.pipeline.remote import THREADS, Remote, object_path, parts_of
from irpipe.pipeline.verify import key_fault


def verify_remote(remote: Remote, watcher: Watcher) -> tuple[int, list[tuple[str, str]]]:
    """Read a remote whole.

    Returns:
        how many artifacts there are, and what is damaged, each with why.
    """
    remote.check_begun()
    files = remote.files()
    faults: list[tuple[str, str]] = []
    objects = [identity for folder, identity, _ in files if folder == "objects"]
    with watcher.progress("verifying", len(objects), "artifacts") as bar:
        for identity in objects:
            try:
                fault = _fault(remote, manifest_in(remote, identity))
            except DamageError as error:
                fault = error.what
            faults += [(object_path(identity), fault)] if fault else []
            bar.advance(1)
    there = set(objects)
    for folder, key, entry in files:
        if folder == "keys":
            fault = _record_fault(remote, key, there)
            faults += [(entry.path, fault)] if fault else []
    return len(objects), faults


def _fault(remote: Remote, manifest: Manifest) -> str | None:
    """The first file of an artifact whose bytes are others."""
    digests = {file.sha256: hashlib.sha256() for file in manifest.files}
    for part in parts_of(manifest):
        data, at = remote.part(part), 0
        for piece in part.pieces:
            digests[piece.file.sha256].update(data[at : at + piece.size])
            at += piece.size
    wrong = (file.path for file in manifest.files if digests[file.sha256].hexdigest() != file.sha256)
    return next((f"{path} has other bytes" for path in wrong), None)


def _record_fault(remote: Remote, key: str, there: set[str]) -> str | None:
    try:
        record = remote.record(key)
    except DamageError as error:
        return error.what
    if record is None:
        return None  # deleted meanwhile
    return key_fault(record) or (None if record.content_id in there else f"its artifact {record.content_id[:12]} is missing")


def collect(remote: Remote, grace: float, watcher: Watcher) -> list[Entry]:
    """What nobody refers to and nobody wrote within the grace time, in the order to delete it: what is needed by others last.

    Files that are not named as a remote's are never among it.

    Args:
        grace: seconds, by the remote's clock; longer than any push takes.

    Raises:
        DamageError: a root or a manifest cannot be read, so it is not known what is needed.
    """
    remote.check_begun()
    roots = [_needed_root(remote, entry.path) for entry in remote.bucket.entries("roots")]
    keys = {key for root in roots for key in (*root.runs, *root.pinned)}
    objects = {identity for root in roots for identity in (*root.runs.values(), *root.pinned.values())}
    files = remote.files()
    objects |= _told_by_records(remote, [key for folder, key, _ in files if folder == "keys" and key in keys])
    now = remote.clock()
    old = [(folder, identity, entry) for folder, identity, entry in files if now - entry.written > grace]
    dropped = [entry for folder, key, entry in old if folder == "keys" and key not in keys]
    gone = {identity for folder, identity, _ in old if folder == "objects" and identity not in objects}
    dropped += [entry for folder, identity, entry in old if folder == "objects" and identity in gone]
    kept = [identity for folder, identity, _ in files if folder == "objects" and identity not in gone]
    if objects - set(kept):
        return dropped  # somebody is pushing: what a manifest to come will need is not known
    used = _used(remote, kept, watcher)
    return dropped + [entry for folder, _, entry in old if folder == "parts" and entry.path not in used]


def _told_by_records(remote: Remote, keys: Sequence[str]) -> set[str]:
    """Content ids of some records: where two runs of one key differ, the record may tell another than a root."""
    with ThreadPoolExecutor(THREADS) as pool:
        return {record.content_id for record in pool.map(remote.record, keys) if record is not None}


def _used(remote: Remote, objects: Sequence[str], watcher: Watcher) -> set[str]:
    """The parts of some artifacts."""
    used: set[str] = set()
    with watcher.progress("reading manifests", len(objects), "artifacts") as bar, ThreadPoolExecutor(THREADS) as pool:
        for manifest in pool.map(lambda identity: manifest_in(remote, identity), objects):
            used |= {part.path for part in parts_of(manifest)}
            bar.advance(1)
    return used


def _needed_root(remote: Remote, path: str) -> Root:
    root = root_in(remote, path)
    if root is None:
        raise StoreError(
            f"{path} of the remote was there and is not any more", where=remote.bucket.url, fix="the same command again"
        )
    return root


def drop(remote: Remote, entries: Sequence[Entry]) -> int:
    """Delete files of `collect`, but for those that somebody has written again since. Returns the bytes freed."""
    freed, used = 0, None
    for entry in entries:
        now = remote.bucket.entry(entry.path)
        if entry.path.startswith("parts/"):
            if used is None:  # asked once all else is deleted: somebody may have pushed since `collect`
                used = _used(remote, [identity for folder, identity, _ in remote.files() if folder == "objects"], Watcher())
            if entry.path in used:
                continue
        if now is not None and now.written == entry.written:
            remote.bucket.delete(entry.path)
            freed += entry.size
    return freed
