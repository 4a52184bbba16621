"""The manifest of an artifact (its content) and the record of a run (how it was made)."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from irpipe.pipeline.errors import DamageError, StageError
from irpipe.pipeline.hashing import content_id, file_digest

MANIFEST_FILE = "manifest.json"


@dataclass(frozen=True)
class FileEntry:
    """One file of an artifact: relative path, size in bytes, SHA-256 in hex."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class TableEntry:
    """One table of an artifact: its Parquet files in order, number of rows, and columns with their types."""

    files: tuple[str, ...]
    rows: int
    columns: Mapping[str, str]


@dataclass(frozen=True)
class Manifest:
    """The files and tables of an artifact. It describes the content only, so two runs with the same result share it."""

    content_id: str
    files: tuple[FileEntry, ...]
    tables: Mapping[str, TableEntry]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.files)


@dataclass(frozen=True)
class InputEntry:
    """An input artifact of a run, by both ids, and the stage and node that made it."""

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
    data = _read(folder / MANIFEST_FILE)
    try:
        return Manifest(
            content_id=data["content_id"],
            files=tuple(FileEntry(**entry) for entry in data["files"]),
            tables={
                name: TableEntry(tuple(entry["files"]), entry["rows"], entry["columns"]) for name, entry in data["tables"].items()
            },
        )
    except (KeyError, TypeError) as error:
        raise _damaged(folder / MANIFEST_FILE, error) from None


def record_json(record: Record) -> str:
    return to_json(asdict(record))


def read_record(path: Path) -> Record:
    """A run's record.

    Raises:
        DamageError: it cannot be read.
    """
    data = _read(path)
    try:
        inputs = {kind: InputEntry(**entry) for kind, entry in data.pop("inputs").items()}
        return Record(inputs=inputs, **{**data, "command": tuple(data["command"]), "given": tuple(data["given"])})
    except (KeyError, TypeError) as error:
        raise _damaged(path, error) from None


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from None
    if not isinstance(data, dict):
        raise _damaged(path, "not a JSON object")
    return data


def _damaged(path: Path, why: object) -> DamageError:
    return DamageError(f"{path.name} cannot be read: {why}", where=str(path), fix="irpipe verify")
