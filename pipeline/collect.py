"""Finding and deleting what the store does not need any more."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from irpipe.pipeline.commit import attempt, remove
from irpipe.pipeline.errors import StoreError
from irpipe.pipeline.lineage import with_ancestors
from irpipe.pipeline.manifest import Record
from irpipe.pipeline.store import Store

_OF_THE_RECIPE = "irpipe.toml's, but a newer result is of a --set: irpipe run makes it the newest again"


@dataclass(frozen=True)
class Garbage:
    """Something that can be deleted: its path, its size in bytes, a readable name, and why nothing needs it."""

    path: Path
    size: int
    name: str
    why: str


def garbage(store: Store, present: Iterable[Record] = ()) -> Iterator[Garbage]:
    """Objects and work that no recipe's newest results were made from, with the records that point to them.

    What lies behind a link is left alone.

    Args:
        present: results of the recipe at hand as it stands. A newer one, of a `--set`, takes their place; they are told apart.
    """
    return (item for item in _unneeded(store, present) if store.owns(item.path))


def _unneeded(store: Store, present: Iterable[Record]) -> Iterator[Garbage]:
    needed = _needed(store)
    by_recipe = {record.key: record for record in present}
    objects_of_recipe = {record.content_id for record in by_recipe.values()}
    needed_keys = {record.key for record in needed}
    needed_objects = {record.content_id for record in needed}
    for record in store.records():
        if record.key not in needed_keys:
            path = store.record_path(record.key)
            why = _OF_THE_RECIPE if record.key in by_recipe else "no newest result was made from it"
            yield Garbage(path, _size(path), f"record of {record.node} {record.key[:12]}", why)
    makers: dict[str, Record] = {record.content_id: record for record in store.records()}
    for folder in store.objects():
        if folder.name not in needed_objects:
            maker = makers.get(folder.name)
            name = f"{maker.node} {folder.name[:12]}" if maker else folder.name[:12]
            why = "no newest result was made from it" if maker else "no record points to it"
            yield Garbage(folder, _size(folder), name, _OF_THE_RECIPE if folder.name in objects_of_recipe else why)
    for folder in store.children("damaged"):
        yield Garbage(folder, _size(folder), f"damaged {folder.name[:12]}", "it failed verification")
    for path in store.children("logs"):
        if path.suffix == ".jsonl" and path.stem not in needed_keys and not store.is_locked(path.stem):
            yield Garbage(path, _size(path), f"log {path.stem[:12]}", "of a run that no newest result needs")
    for folder in store.children("work"):
        if not store.is_locked(folder.name):
            unfinished = attempt(store, folder.name)
            name = f"unfinished {unfinished.stage} {folder.name[:12]}" if unfinished else f"work {folder.name[:12]}"
            yield Garbage(folder, _size(folder), name, "an unfinished run; deleting it loses its work")


def _needed(store: Store) -> list[Record]:
    """The newest result of every stage of every recipe, and all ancestors."""
    newest = (store.newest(path.parent.name, path.stem) for path in store.children("refs", "*"))
    return with_ancestors(store, (record for record in newest if record is not None))


def _refuse_unreadable(store: Store) -> None:
    """Refuse to delete while it is not known what is needed: what an unreadable record was made from would look unneeded.

    Raises:
        StoreError: a record cannot be read.
    """
    unread = [path for path in store.record_files() if store.record(path.stem) is None]
    if unread:
        raise StoreError(
            f"{len(unread):,} records cannot be read, so what they were made from would be deleted",
            where=str(unread[0]),
            fix="irpipe verify, which moves them aside; irpipe run what is missing then; and again",
        )


def drop(store: Store, items: list[Garbage]) -> int:
    """Delete; records before the objects they point to. Returns the bytes freed.

    Raises:
        StoreError: a record cannot be read, so it is not known what is needed.
    """
    _refuse_unreadable(store)
    for item in sorted(items, key=lambda item: item.path.is_dir()):
        remove(item.path)
    return sum(item.size for item in items)


def _size(path: Path) -> int:
    """Bytes of a file, or of those of a folder; what links point to does not count."""
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size
    return sum(Path(folder, name).lstat().st_size for folder, _, names in os.walk(path) for name in names)
