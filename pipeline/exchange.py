"""Push and pull between a store and a remote. A kill at any moment leaves both as before, or ahead."""

from __future__ import annotations

import hashlib
import platform
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

from irpipe.pipeline.commit import place, remove, seal, shapes
from irpipe.pipeline.errors import DamageError, StoreError
from irpipe.pipeline.hashing import file_digest
from irpipe.pipeline.manifest import Manifest, Record, parse_typed, record_json, to_json, with_digest, without_digest
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


# -- push -------------------------------------------------------------------------------------------------------------


def push(
    remote: Remote,
    store: Store,
    recipe: str,
    newest: Sequence[Record],
    pinned: Sequence[Record],
    records: Sequence[Record],
    watcher: Watcher,
    *,
    repair: bool = False,
) -> Moved:
    """Upload what the remote lacks: first what is referred to, then files, manifests and records.

    A manifest that is older than a day is written again, and so younger than any grace time of `collect`.

    Args:
        newest: the runs that the recipe refers to, with their ancestors. pinned: others that are to stay.
        records: those to upload, each after its inputs.
        repair: also read what is there, and write again what has other bytes.

    Raises:
        StoreError: the remote cannot be written, or is another tool's.
        DamageError: an artifact of the store is not what its manifest says.
    """
    remote.begin()
    _write_root(remote, store, recipe, newest, pinned)
    moved = send(remote, store, [record.content_id for record in records], watcher, repair=repair)
    now = remote.clock()

    def settle(run: Record) -> bool:
        return _settle(remote, record_path(run.key), record_json(run), now, repair=repair)

    with ThreadPoolExecutor(THREADS) as pool:
        moved.records = sum(pool.map(settle, records))
    return moved


def send(remote: Remote, store: Store, content_ids: Iterable[str], watcher: Watcher, *, repair: bool = False) -> Moved:
    """Upload artifacts that the remote lacks, without records: in reach of `collect` after its grace time. See `push`."""
    remote.begin()
    now = remote.clock()
    manifests = {identity: store.open(identity).manifest for identity in dict.fromkeys(content_ids)}
    with ThreadPoolExecutor(THREADS) as pool:
        lacking = {identity: _lacking(remote, manifest, pool) for identity, manifest in manifests.items()}
        if repair:
            lacking = {
                identity: lacking[identity] + _damaged(remote, store, m, lacking[identity], pool)
                for identity, m in manifests.items()
            }
        moved = Moved(bytes=sum(part.size for parts in lacking.values() for part in parts))
        with watcher.progress("pushing", moved.bytes, "bytes") as bar, _cancelled(pool):
            for identity, parts in lacking.items():
                folder = store.object_path(identity)
                _check_files(folder, parts)
                jobs = [pool.submit(_upload, remote, folder, part) for part in parts]
                for job in jobs:
                    bar.advance(job.result())
                taken = _lacking(remote, manifests[identity], pool)  # by a `collect`, though it was there before
                _check_files(folder, taken)
                for part in taken:
                    _upload(remote, folder, part)
                text = to_json(asdict(manifests[identity]))
                moved.artifacts += _settle(remote, object_path(identity), text, now, repair=repair) or bool(parts)
    return moved


def _write_root(remote: Remote, store: Store, recipe: str, newest: Sequence[Record], pinned: Sequence[Record]) -> None:
    """Say what this store's recipe refers to."""
    path = f"roots/{recipe}/{store_name(store)}.json"
    before = root_in(remote, path)
    kept = dict(before.pinned) if before is not None else {}
    root = Root({run.key: run.content_id for run in newest}, kept | {run.key: run.content_id for run in pinned})
    remote.bucket.write(path, with_digest(asdict(root)).encode())


def root_in(remote: Remote, path: str) -> Root | None:
    """What a file of roots says; None where there is none.

    Raises:
        DamageError: it is not what was written, so it is not known what its store refers to.
    """
    data = remote.bucket.read(path, _MOST_ROOT)
    try:
        root: Root | None = None if data is None else parse_typed(data.decode("utf-8", "replace"), Root, path, without_digest)
    except DamageError as error:
        raise DamageError(
            f"{path} of the remote is damaged: {error.what}",
            where=remote.bucket.url,
            fix="delete it there, and irpipe push again from the store that wrote it, with the ids that were pushed by id",
        ) from None
    return root


def store_name(store: Store) -> str:
    """A name that no other store has: a copy of a store, or a moved one, has another."""
    path = store.root / "store-id"
    if not path.exists():
        write_durably(path, uuid.uuid4().hex + "\n")
    where = f"{path.read_text(encoding='utf-8')}{platform.node()}:{store.root}"
    return hashlib.sha256(where.encode()).hexdigest()[:16]


@contextmanager
def _cancelled(pool: ThreadPoolExecutor) -> Iterator[None]:
    """Leave out what waits in a pool when a block ends early: an interrupt must not wait for all of it."""
    try:
        yield
    except BaseException:
        pool.shutdown(wait=True, cancel_futures=True)
        raise


def _lacking(remote: Remote, manifest: Manifest, pool: ThreadPoolExecutor) -> list[Part]:
    """The parts of an artifact that the remote lacks, or has cut off."""
    parts = parts_of(manifest)
    known = pool.map(lambda part: remote.bucket.entry(part.path), parts)
    return [part for part, entry in zip(parts, known, strict=True) if entry is None or entry.size != part.size]


def _damaged(remote: Remote, store: Store, manifest: Manifest, lacking: Sequence[Part], pool: ThreadPoolExecutor) -> list[Part]:
    """The parts of an artifact that are there with other bytes. Reads all of them."""
    there = [part for part in parts_of(manifest) if part not in lacking]
    folder = store.object_path(manifest.content_id)
    _check_files(folder, there)  # or what is whole there would be replaced by what is damaged here
    same = pool.map(lambda part: remote.part(part) == _bytes_of(folder, part), there)
    return [part for part, good in zip(there, same, strict=True) if not good]


def _check_files(folder: Path, parts: Iterable[Part]) -> None:
    """Refuse to send parts of files that are damaged: a part alone does not show it.

    Raises:
        DamageError: a file is not that of the manifest.
    """
    for file in dict.fromkeys(piece.file for part in parts for piece in part.pieces):
        if file_digest(folder / file.path) != file.sha256:
            raise DamageError(f"{file.path} is not that of the manifest", where=str(folder), fix="irpipe verify")


def _upload(remote: Remote, folder: Path, part: Part) -> int:
    """Upload a part of an artifact; its size."""
    remote.bucket.write(part.path, _bytes_of(folder, part))
    return part.size


def _bytes_of(folder: Path, part: Part) -> bytes:
    """A part of an artifact of the store, whose files `_check_files` has seen."""
    data = bytearray()
    for piece in part.pieces:
        with (folder / piece.file.path).open("rb") as file:
            file.seek(piece.start)
            data += file.read(piece.size)
    return bytes(data)


def _settle(remote: Remote, path: str, text: str, now: float, *, repair: bool) -> bool:
    """Write a small file unless it is there as it should be and was written lately; whether it was not there, or was damaged."""
    known, data = remote.bucket.entry(path), text.encode()
    same_size = known is not None and known.size == len(data)
    damaged = repair and same_size and remote.bucket.read(path, len(data)) != data
    if known is None or not same_size or now - known.written > _DAY or damaged:
        remote.bucket.write(path, data)
    return known is None or damaged


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
        if store.lookup(record.key) is None:
            write_durably(store.record_path(record.key), record_json(record))
            moved.records += 1
    return moved


def bring(remote: Remote, store: Store, content_ids: Iterable[str], watcher: Watcher) -> Moved:
    """Bring artifacts that the store lacks, without records; see `pull`."""
    wanted = [identity for identity in dict.fromkeys(content_ids) if not store.holds(identity)]
    manifests = {identity: manifest_in(remote, identity) for identity in wanted}
    moved = Moved(bytes=sum(manifest.size for manifest in manifests.values()))
    _check_room(store, moved.bytes - sum(_brought(store, identity) for identity in manifests))
    with ThreadPoolExecutor(THREADS) as pool, watcher.progress("pulling", moved.bytes, "bytes") as bar:
        for identity, manifest in manifests.items():
            with store.lock(identity, lambda: watcher.say("another process is pulling it; waiting")):
                if not store.holds(identity):
                    _bring(remote, store, manifest, pool, watcher, bar.advance)
                    moved.artifacts += 1
    return moved


def manifest_in(remote: Remote, identity: str) -> Manifest:
    """An artifact's manifest.

    Raises:
        StoreError: the remote lacks it.
    """
    manifest = remote.manifest(identity)
    if manifest is None:
        raise StoreError(f"the artifact {identity[:12]} is not in the remote", where=remote.bucket.url)
    return manifest


def _brought(store: Store, identity: str) -> int:
    """Bytes that an earlier attempt has written to the disk."""
    out = store.root / "work" / f"pull-{identity}" / "out"
    return sum(path.stat().st_blocks * 512 for path in out.rglob("*") if path.is_file())


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
    for file in {file.sha256: file for file in manifest.files}.values():
        if file.sha256 not in done:
            _create(out / file.path, file.size)
    advance(sum(file.size for file in manifest.files if file.sha256 in done))
    missing = [part for part in parts_of(manifest) if any(piece.file.sha256 not in done for piece in part.pieces)]
    with _cancelled(pool):
        for job in [pool.submit(_download, remote, part, out, done) for part in missing]:
            advance(job.result())
    _copy_twins(manifest, out)
    # Before `seal` reads tables, which fails on damaged ones in a way of its own, and makes files read-only.
    wrong = [file.path for file in manifest.files if file_digest(out / file.path) != file.sha256]
    if not wrong and shapes(seal(out, watcher, "checking").tables) != shapes(manifest.tables):
        wrong = ["what its tables hold"]
    if wrong:
        name = wrong[0]
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
    brought = {file.sha256: file for file in manifest.files}  # the last of each content, as in `parts_of`
    return {sha for sha, file in brought.items() if (out / file.path).is_file() and file_digest(out / file.path) == sha}


def _create(path: Path, length: int) -> None:
    """A file of zeros, in place of what an earlier attempt has left, which may be read-only."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    with path.open("wb") as stream:
        stream.truncate(length)


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
            _create(out / file.path, 0)
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
