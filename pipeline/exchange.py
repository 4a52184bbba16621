"""Push and pull between a store and a remote, and the remote's upkeep. A kill at any moment leaves both as before, or ahead."""

from __future__ import annotations

import hashlib
import platform
import shutil
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

from irpipe.pipeline.bucket import Entry
from irpipe.pipeline.commit import place, remove, seal, shapes
from irpipe.pipeline.errors import DamageError, StoreError
from irpipe.pipeline.hashing import file_digest
from irpipe.pipeline.lineage import lineage
from irpipe.pipeline.manifest import Manifest, Record, parse_typed, record_json, to_json
from irpipe.pipeline.progress import Watcher, size
from irpipe.pipeline.remote import THREADS, Part, Remote, object_path, parts_of, record_path
from irpipe.pipeline.store import Store, write_durably
from irpipe.pipeline.verify import key_fault

_DAY = 86_400.0  # seconds
_MOST_ROOT = 64 << 20  # bytes


@dataclass(frozen=True)
class Root:
    """What a recipe of one store refers to: runs by key with their content ids; `pinned` are those that were pushed by id."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    runs: Mapping[str, str]
    pinned: Mapping[str, str]


@dataclass
class Moved:
    """What a push or a pull moved."""

    artifacts: int = 0
    records: int = 0
    bytes: int = 0


def with_ancestors(store: Store, records: Iterable[Record]) -> list[Record]:
    """Runs and all that they were made from, each after its inputs."""
    found: dict[str, Record] = {}
    for record in records:
        for run in (*lineage(store, record).ancestors, record):
            found.setdefault(run.key, run)
    return list(found.values())


# -- push -------------------------------------------------------------------------------------------------------------


def push(
    remote: Remote,
    store: Store,
    recipe: str,
    newest: Sequence[Record],
    pinned: Sequence[Record],
    records: Sequence[Record],
    watcher: Watcher,
) -> Moved:
    """Upload what the remote lacks: first what is referred to, then files, manifests and records.

    A manifest that is older than a day is written again, and so younger than any grace time of `collect`.

    Args:
        newest: the runs that the recipe refers to, with their ancestors. pinned: others that are to stay.
        records: those to upload, each after its inputs.

    Raises:
        StoreError: the remote cannot be written, or is another tool's.
        DamageError: an artifact of the store is not what its manifest says.
    """
    remote.begin()
    _write_root(remote, store, recipe, newest, pinned)
    moved = send(remote, store, [record.content_id for record in records], watcher)
    now = remote.clock()
    with ThreadPoolExecutor(THREADS) as pool:
        moved.records = sum(pool.map(lambda run: _settle(remote, record_path(run.key), record_json(run), now), records))
    return moved


def send(remote: Remote, store: Store, content_ids: Iterable[str], watcher: Watcher) -> Moved:
    """Upload artifacts that the remote lacks, without records: in reach of `collect` after its grace time. See `push`."""
    remote.begin()
    now = remote.clock()
    manifests = {identity: store.open(identity).manifest for identity in dict.fromkeys(content_ids)}
    with ThreadPoolExecutor(THREADS) as pool:
        lacking = {identity: _lacking(remote, manifest, pool) for identity, manifest in manifests.items()}
        moved = Moved(bytes=sum(part.size for parts in lacking.values() for part in parts))
        with watcher.progress("pushing", moved.bytes, "bytes") as bar:
            for identity, parts in lacking.items():
                jobs = [pool.submit(_upload, remote, store.object_path(identity), part) for part in parts]
                for job in jobs:
                    bar.advance(job.result())
                text = to_json(asdict(manifests[identity]))
                moved.artifacts += _settle(remote, object_path(identity), text, now) or bool(parts)
    return moved


def _write_root(remote: Remote, store: Store, recipe: str, newest: Sequence[Record], pinned: Sequence[Record]) -> None:
    """Say what this store's recipe refers to."""
    path = f"roots/{recipe}/{store_name(store)}.json"
    before = _root(remote, path)
    kept = dict(before.pinned) if before is not None else {}
    root = Root({run.key: run.content_id for run in newest}, kept | {run.key: run.content_id for run in pinned})
    remote.bucket.write(path, to_json(asdict(root)).encode())


def _root(remote: Remote, path: str) -> Root | None:
    data = remote.bucket.read(path, _MOST_ROOT)
    root: Root | None = None if data is None else parse_typed(data.decode("utf-8", "replace"), Root, path)
    return root


def store_name(store: Store) -> str:
    """A name that no other store has: a copy of a store, or a moved one, has another."""
    path = store.root / "store-id"
    if not path.exists():
        write_durably(path, uuid.uuid4().hex + "\n")
    where = f"{path.read_text(encoding='utf-8')}{platform.node()}:{store.root}"
    return hashlib.sha256(where.encode()).hexdigest()[:16]


def _lacking(remote: Remote, manifest: Manifest, pool: ThreadPoolExecutor) -> list[Part]:
    """The parts of an artifact that the remote lacks, or has cut off."""
    parts = parts_of(manifest)
    known = pool.map(lambda part: remote.bucket.entry(part.path), parts)
    return [part for part, entry in zip(parts, known, strict=True) if entry is None or entry.size != part.size]


def _upload(remote: Remote, folder: Path, part: Part) -> int:
    """Upload a part of an artifact; its size."""
    data = bytearray()
    for piece in part.pieces:
        with (folder / piece.file.path).open("rb") as file:
            file.seek(piece.start)
            data += file.read(piece.size)
    if len(data) != part.size:
        raise DamageError("its files are not those of its manifest", where=str(folder), fix="irpipe verify")
    remote.bucket.write(part.path, bytes(data))
    return part.size


def _settle(remote: Remote, path: str, text: str, now: float) -> bool:
    """Write a small file unless it is there as it should be and was written lately; whether it was not there."""
    known, data = remote.bucket.entry(path), text.encode()
    if known is None or known.size != len(data) or now - known.written > _DAY:
        remote.bucket.write(path, data)
    return known is None


# -- pull -------------------------------------------------------------------------------------------------------------


def pull(remote: Remote, store: Store, records: Sequence[Record], watcher: Watcher) -> Moved:
    """Bring artifacts and records that the store lacks; every byte is checked before anything has its name.

    What an earlier attempt has brought whole is not brought again.

    Raises:
        DamageError: the remote's bytes are not what their names say; nothing of that artifact is kept.
        StoreError: the remote cannot be read, or the disk is too small.
    """
    moved = bring(remote, store, [record.content_id for record in records], watcher)
    for record in records:
        if store.record(record.key) is None:
            write_durably(store.record_path(record.key), record_json(record))
            moved.records += 1
    return moved


def bring(remote: Remote, store: Store, content_ids: Iterable[str], watcher: Watcher) -> Moved:
    """Bring artifacts that the store lacks, without records; see `pull`."""
    wanted = [identity for identity in dict.fromkeys(content_ids) if not store.holds(identity)]
    manifests = {identity: _manifest(remote, identity) for identity in wanted}
    moved = Moved(bytes=sum(manifest.size for manifest in manifests.values()))
    _check_room(store, moved.bytes)
    with ThreadPoolExecutor(THREADS) as pool, watcher.progress("pulling", moved.bytes, "bytes") as bar:
        for identity, manifest in manifests.items():
            with store.lock(identity, lambda: watcher.say("another process is pulling it; waiting")):
                if not store.holds(identity):
                    _bring(remote, store, manifest, pool, watcher, bar.advance)
                    moved.artifacts += 1
    return moved


def _manifest(remote: Remote, identity: str) -> Manifest:
    manifest = remote.manifest(identity)
    if manifest is None:
        raise StoreError(f"the artifact {identity[:12]} is not in the remote", where=remote.bucket.url)
    return manifest


def _check_room(store: Store, needed: int) -> None:
    store.root.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(store.root).free
    if needed > free:
        raise StoreError(f"{size(needed)} are to be pulled, and {size(free)} are free", where=str(store.root), fix="irpipe gc")


def _bring(
    remote: Remote,
    store: Store,
    manifest: Manifest,
    pool: ThreadPoolExecutor,
    watcher: Watcher,
    advance: Callable[[int], None],
) -> None:
    """One artifact into work/, and from there to its name. The caller holds its lock."""
    work = store.root / "work" / f"pull-{manifest.content_id}"
    out = work / "out"
    out.mkdir(parents=True, exist_ok=True)
    done = _whole(out, manifest)
    for file in manifest.files:
        if file.sha256 not in done:
            (out / file.path).parent.mkdir(parents=True, exist_ok=True)
            with (out / file.path).open("wb") as stream:
                stream.truncate(file.size)
    advance(sum(file.size for file in manifest.files if file.sha256 in done))
    missing = [part for part in parts_of(manifest) if any(piece.file.sha256 not in done for piece in part.pieces)]
    for job in [pool.submit(_download, remote, part, out, done) for part in missing]:
        advance(job.result())
    _copy_twins(manifest, out)
    found = seal(out, watcher, "checking")
    if found.content_id != manifest.content_id or shapes(found.tables) != shapes(manifest.tables):
        wrong = {(file.path, file.sha256) for file in found.files} ^ {(file.path, file.sha256) for file in manifest.files}
        name = min(wrong)[0] if wrong else "what its tables hold"
        remove(work)
        raise DamageError(
            f"{object_path(manifest.content_id)} of the remote is damaged: {name} is otherwise than it tells",
            where=remote.bucket.url,
            fix="irpipe verify --remote names all damage",
        )
    place(store, out, manifest.content_id)
    remove(work)


def _whole(out: Path, manifest: Manifest) -> set[str]:
    """Digests of the files that an earlier attempt brought whole."""
    paths = {file.path: file for file in manifest.files if (out / file.path).is_file()}
    return {file.sha256 for path, file in paths.items() if file_digest(out / path) == file.sha256}


def _download(remote: Remote, part: Part, out: Path, done: set[str]) -> int:
    """Write a part's bytes to where they belong; how many."""
    data, at, written = remote.part(part), 0, 0
    for piece in part.pieces:
        if piece.file.sha256 not in done:
            with (out / piece.file.path).open("r+b") as file:
                file.seek(piece.start)
                file.write(data[at : at + piece.size])
            written += piece.size
        at += piece.size
    return written


def _copy_twins(manifest: Manifest, out: Path) -> None:
    """Files of one content came once: copy the others."""
    brought = {file.sha256: file for file in manifest.files}  # the last of each, as in `parts_of`
    for file in manifest.files:
        if brought[file.sha256] is not file:
            shutil.copyfile(out / brought[file.sha256].path, out / file.path)


def checked(remote: Remote, record: Record) -> Record:
    """A remote's record whose key is that of the settings and inputs that it tells.

    Raises:
        DamageError: it is not.
    """
    fault = key_fault(record)
    if fault is not None:
        raise DamageError(f"{record_path(record.key)} of the remote {fault}", where=remote.bucket.url)
    return record


# -- upkeep -----------------------------------------------------------------------------------------------------------


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
                fault = _fault(remote, _manifest(remote, identity))
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
    now = remote.clock()
    old = [(folder, identity, entry) for folder, identity, entry in files if now - entry.written > grace]
    dropped = [entry for folder, key, entry in old if folder == "keys" and key not in keys]
    gone = {identity for folder, identity, _ in old if folder == "objects" and identity not in objects}
    dropped += [entry for folder, identity, entry in old if folder == "objects" and identity in gone]
    kept = [identity for folder, identity, _ in files if folder == "objects" and identity not in gone]
    used = set()
    with watcher.progress("reading manifests", len(kept), "artifacts") as bar, ThreadPoolExecutor(THREADS) as pool:
        for manifest in pool.map(lambda identity: _manifest(remote, identity), kept):
            used |= {part.path for part in parts_of(manifest)}
            bar.advance(1)
    return dropped + [entry for folder, _, entry in old if folder == "parts" and entry.path not in used]


def _needed_root(remote: Remote, path: str) -> Root:
    root = _root(remote, path)
    if root is None:
        raise StoreError(
            f"{path} of the remote was there and is not any more", where=remote.bucket.url, fix="the same command again"
        )
    return root


def drop(remote: Remote, entries: Sequence[Entry]) -> int:
    """Delete files of `collect`, but for those that somebody has written again since. Returns the bytes freed."""
    freed = 0
    for entry in entries:
        now = remote.bucket.entry(entry.path)
        if now is not None and now.written == entry.written:
            remote.bucket.delete(entry.path)
            freed += entry.size
    return freed
