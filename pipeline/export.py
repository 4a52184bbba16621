"""Copies of artifacts out of the store."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from irpipe.pipeline.errors import DamageError, StoreError
from irpipe.pipeline.hashing import file_digest
from irpipe.pipeline.lineage import lineage
from irpipe.pipeline.manifest import MANIFEST_FILE, Record, record_json
from irpipe.pipeline.private import private
from irpipe.pipeline.store import Artifact, Store

LINEAGE = "lineage"


def export_files(store: Store, record: Record, folder: Path, *, hidden: bool = False) -> None:
    """An artifact's files, unchanged, and in `lineage/` the records of all its ancestors.

    Args:
        hidden: leave out of the records what `irpipe.pipeline.private` says.

    Raises:
        StoreError: the folder exists already.
    """
    artifact = store.open(record.content_id)
    with new_folder(folder) as draft:
        for file in artifact.manifest.files:
            copy_file(artifact, file.path, draft / file.path)
        shutil.copyfile(artifact.file(MANIFEST_FILE), draft / MANIFEST_FILE)
        write_lineage(origin_of(store, record, hidden=hidden), draft)


def copy_file(artifact: Artifact, name: str, target: Path) -> None:
    """Copy a file of an artifact, and see that it is what the manifest says before anybody gets it.

    Raises:
        DamageError: it has other bytes.
    """
    expected = {file.path: file.sha256 for file in artifact.manifest.files}[name]
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(artifact.file(name), target)
    if file_digest(target) != expected:
        raise DamageError(f"{name} has other bytes than it was made with", where=str(artifact.path), fix="irpipe verify")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A draft that becomes the folder when the block is done: it appears whole or not at all.

    A kill leaves a hidden draft beside it, which the next export of that name clears.

    Raises:
        StoreError: the folder exists already.
    """
    if folder.exists():
        raise StoreError(f"{folder} exists already", fix="name a folder that does not exist yet")
    draft = folder.with_name(f".{folder.name}.irpipe-draft")  # a reserved name: an old draft is removed
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        yield draft
        draft.rename(folder)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def origin_of(store: Store, record: Record, *, hidden: bool) -> tuple[Record, ...]:
    """A run after all its ancestors, upstream first; without what names people and places if `hidden`."""
    runs = (*lineage(store, record).ancestors, record)
    return tuple(map(private, runs)) if hidden else runs


def write_lineage(runs: Iterable[Record], folder: Path) -> None:
    """Write the records of some runs into `lineage/`, one file each."""
    (folder / LINEAGE).mkdir()
    for run in runs:
        node = run.node.replace("/", "-")
        (folder / LINEAGE / f"{node}-{run.key[:12]}.json").write_text(record_json(run), encoding="utf-8")
