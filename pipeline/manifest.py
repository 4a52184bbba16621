"""The manifest of an artifact (its content) and the record of a run (how it was made)."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from pydantic import TypeAdapter, ValidationError

from irpipe.pipeline.errors import DamageError, StageError, StoreError
from irpipe.pipeline.hashing import content_id, file_digest

MANIFEST_FILE = "manifest.json"
_DIGEST = "digest"
_STRICT: Any = {"extra": "forbid"}


@dataclass(frozen=True)
class FileEntry:
    """One file of an artifact: relative path, size in bytes, SHA-256 in hex."""

    __pydantic_config__: ClassVar = _STRICT

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class TableEntry:
    """One table of an artifact: its Parquet files in order, number of rows, and columns with their types."""

    __pydantic_config__: ClassVar = _STRICT

    files: tuple[str, ...]
    rows: int
    columns: Mapping[str, str]


@dataclass(frozen=True)
class Manifest:
    """The files and tables of an artifact. It describes the content only, so two runs with the same result share it."""

    __pydantic_config__: ClassVar = _STRICT

    content_id: str
    files: tuple[FileEntry, ...]
    tables: Mapping[str, TableEntry]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.files)

    @property
    def is_whole(self) -> bool:
        """Whether its content id is that of its files."""
        return content_id((entry.path, entry.size, entry.sha256) for entry in self.files) == self.content_id


@dataclass(frozen=True)
class InputEntry:
    """An input artifact of a run, by both ids, and the stage and node that made it."""

    __pydantic_config__: ClassVar = _STRICT

    stage: str
    node: str
    key: str
    content_id: str


@dataclass(frozen=True)
class Record:
    """One run: settings, inputs, environment and result. Readable without irpipe.

    `config` holds every setting by name (`group.setting` in a group), `given` the names of those that are given. `node` is the
    stage's name in the recipe.
    """

    __pydantic_config__: ClassVar = _STRICT

    key: str
    content_id: str
    stage: str
    node: str
    stage_version: int
    recipe: str
    config: Mapping[str, Any]
    given: tuple[str, ...]
    inputs: Mapping[str, InputEntry]
    external: Mapping[str, Any]
    code_digest: str
    packages: Mapping[str, str]
    git: Mapping[str, Any] | None
    host: str
    device: str
    command: tuple[str, ...]
    started: str
    ended: str
    seconds: float
    rows: Mapping[str, int]
    metrics: Mapping[str, Any] = field(default_factory=dict)
    processes: int = 1  # that worked on it together
    threads: int | None = None  # that each process computed with
    numerics: Mapping[str, str] = field(default_factory=dict)  # determinism, and the libraries that computed


def to_json(value: Any) -> str:
    """Sorted keys, indented, one trailing newline: diffable and readable without irpipe."""
    return json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def describe(folder: Path) -> Manifest:
    """Hash every file below a folder.

    Raises:
        StageError: the folder holds a link, or something that is neither file nor folder.
    """
    return manifest_of(folder, [(path, file_digest(folder / path)) for path in list_files(folder)])


def manifest_of(folder: Path, digests: list[tuple[str, str]]) -> Manifest:
    """The manifest of a folder whose files have these digests, in the order of their paths."""
    entries = tuple(FileEntry(path, (folder / path).stat().st_size, sha) for path, sha in sorted(digests))
    identity = content_id((entry.path, entry.size, entry.sha256) for entry in entries)
    return Manifest(identity, entries, _tables(folder, [entry.path for entry in entries]))


def list_files(folder: Path) -> list[str]:
    """Relative paths of all files below a folder but its manifest, sorted."""
    paths: list[str] = []
    pending = [""]
    while pending:
        below = pending.pop()
        with os.scandir(folder / below) as entries:
            for entry in entries:
                path = f"{below}/{entry.name}" if below else entry.name
                if entry.is_dir(follow_symlinks=False):
                    pending.append(path)
                elif entry.is_file(follow_symlinks=False):
                    paths.append(path)
                else:
                    raise StageError(f"{path} is a link or a special file: an artifact holds files only", where=str(folder))
    return sorted(path for path in paths if path != MANIFEST_FILE)


def _tables(folder: Path, paths: list[str]) -> dict[str, TableEntry]:
    """`pairs.parquet` is the table pairs; so are the shards `pairs/00000.parquet`, `pairs/00001.parquet`, ..."""
    shards: dict[str, list[str]] = {}
    for path in paths:
        if path.endswith(".parquet"):
            name = path.rpartition("/")[0] or path.removesuffix(".parquet")
            shards.setdefault(name, []).append(path)
    if not shards:
        return {}
    import pyarrow.parquet as pq

    tables = {}
    for name, parts in shards.items():
        columns = {field.name: str(field.type) for field in pq.read_schema(folder / parts[0])}
        rows = sum(pq.read_metadata(folder / part).num_rows for part in parts)
        tables[name] = TableEntry(tuple(parts), rows, columns)
    return tables


def manifest_json(manifest: Manifest) -> str:
    return to_json(asdict(manifest))


def read_manifest(folder: Path) -> Manifest:
    """The manifest of an artifact's folder.

    Raises:
        DamageError: there is none, or it cannot be read.
    """
    return _confined(read_typed(folder / MANIFEST_FILE, Manifest), str(folder / MANIFEST_FILE))


def parse_manifest(text: str, where: str) -> Manifest:
    """A manifest from its text; see `read_manifest`."""
    return _confined(parse_typed(text, Manifest, where), where)


def _confined(manifest: Manifest, where: str) -> Manifest:
    files = {entry.path for entry in manifest.files}
    outside = [path for path in files if not _is_below(path)]
    outside += [path for table in manifest.tables.values() for path in table.files if path not in files]
    if outside:
        why = f"{outside[0]!r} is no file of the artifact"
        raise DamageError(f"{MANIFEST_FILE} cannot be read: {why}", where=where, fix="irpipe verify")
    return manifest


def _is_below(path: str) -> bool:
    """Whether a relative path stays below its folder."""
    parts = PurePosixPath(path).parts
    return bool(parts) and not path.startswith("/") and ".." not in parts and "\\" not in path


def record_json(record: Record) -> str:
    """A record as it is stored; see `with_digest`."""
    return with_digest(asdict(record))


def with_digest(data: Mapping[str, Any]) -> str:
    """A JSON object with a digest of itself, by which a change shows; `without_digest` reads it."""
    data = json.loads(json.dumps(data, allow_nan=False))  # as it is read again: names of figures are text there
    return to_json({**data, _DIGEST: _digest_of(data)})


def read_record(path: Path) -> Record:
    """A run's record.

    Raises:
        DamageError: it cannot be read, or was changed after it was written.
    """
    record: Record = read_typed(path, Record, without_digest)
    return record


def parse_record(text: str, where: str) -> Record:
    """A run's record from its text; see `read_record`."""
    record: Record = parse_typed(text, Record, where, without_digest)
    return record


def without_digest(text: str) -> str:
    """What `with_digest` was given, as JSON.

    Raises:
        ValueError: it is not what was written.
    """
    data = json.loads(text)
    if not isinstance(data, dict) or data.pop(_DIGEST, None) != _digest_of(data):
        raise ValueError("it was changed after it was written")
    return json.dumps(data)


def _digest_of(data: Mapping[str, Any]) -> str:
    return hashlib.sha256(to_json(data).encode("utf-8")).hexdigest()


def read_typed(path: Path, kind: Any, prepare: Callable[[str], str] = str) -> Any:
    """A JSON object of the store as a dataclass, its types checked.

    Args:
        prepare: takes out of the text what is not the dataclass's.

    Raises:
        DamageError: there is none, or it is of another form.
        StoreError: it may not be read, or the disk fails.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, UnicodeDecodeError) as error:
        raise DamageError(f"{path.name} cannot be read: {error}"[:400], where=str(path), fix="irpipe verify") from None
    except OSError as error:
        raise unreadable(path, error) from None
    return parse_typed(text, kind, str(path), prepare)


def parse_typed(text: str, kind: Any, where: str, prepare: Callable[[str], str] = str) -> Any:
    """A JSON object as a dataclass; see `read_typed`."""
    try:
        return _adapter(kind).validate_json(prepare(text), strict=True)  # of JSON: only there a list is a tuple
    except (ValueError, RecursionError) as error:
        why = "; ".join(_faults(error)) if isinstance(error, ValidationError) else str(error)
        raise DamageError(f"{Path(where).name} cannot be read: {why}"[:400], where=where, fix="irpipe verify") from None


def unreadable(path: Path, error: OSError) -> StoreError:
    """The error of a part of the store that is there and cannot be read: it must not be taken for absent."""
    return StoreError(f"{path} cannot be read: {error.strerror}", fix="make the store readable for this user")


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _faults(error: ValidationError) -> Iterator[str]:
    for fault in error.errors(include_url=False)[:3]:
        yield f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}"
