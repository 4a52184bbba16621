"""One reader per layout of existing images. Each lists every image of a source and reads none."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa

from irpipe.pipeline.errors import InputError
from irpipe.schemas.discovery import files_below, is_hidden
from irpipe.schemas.files import check_columns, open_parquet, parse_json, read_csv, read_jsonl, read_rows
from irpipe.stages.import_images.sources import Cell, Fetched, Zips, fetch_files, members, parquet_files

_WHERE = "import-images.image_root"
_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_TABLES = (".jsonl", ".csv", ".parquet")
_TEXTS = ("prompt", "caption", "text")
_METADATA = "metadata"  # of an image folder of `datasets`
_PATHS = ("path", "file_name")
_EXPECTED = f"one column of {', '.join(_TEXTS)}, and one of {', '.join(_PATHS)}"
_PART = re.compile(r"part-\d+")
_MAX_PART_BYTES = 100_000_000  # of JSON; a published part has 1,000 images and less than a megabyte


@dataclass(frozen=True, slots=True)
class Listed:
    """An image as a source lists it.

    Attributes:
        prompt: text of its prompt (its id in 16 hex digits, in a folder of prompts), as yet unchecked.
        path: its path, as yet unchecked; for a row with a fault, its text.
        location: where its bytes are, a `Location` as yet unchecked.
        columns: further columns of the table `images`.
        fault: why the row names no image.
    """

    prompt: Any
    path: Any
    location: Any
    columns: Mapping[str, Any] = field(default_factory=dict)
    fault: str | None = None


def read_folder(root: Path) -> Iterator[Listed]:
    """`<prompt id>/<image>` below a folder, or anywhere in a zip."""
    if root.is_dir():
        folders = sorted(folder for folder in root.iterdir() if folder.is_dir() and not folder.name.startswith("."))
        names: Iterator[str] = (f"{folder.name}/{name}" for folder in folders for name in sorted(_names(folder)))
    else:
        names = iter(sorted(members(root)))
    for name in names:
        path = PurePosixPath(name)
        if path.suffix.lower() in _ENDINGS and not is_hidden(path):
            yield Listed(path.parent.name, name, name)


def _names(folder: Path) -> list[str]:
    return [entry.name for entry in folder.iterdir()]


def read_table(root: Path) -> Iterator[Listed]:
    """The rows (prompt and path) of the one table that a folder holds beside its images, or of an image folder's `metadata.*`.

    An image folder, as `datasets` knows it, may have its metadata in several folders, each naming the files of its own.
    """
    if root.is_file():  # the key hashes image_root: a table alone would leave out its images
        raise InputError(f"{root.name} is a file", where=_WHERE, expected="the folder that holds the table and its images")
    tables = [table for table in files_below(root, _TABLES) if table.parent == root or table.stem == _METADATA]
    folders = {table.parent for table in tables}
    of_an_image_folder = len(folders) == len(tables) and all(table.stem == _METADATA for table in tables)
    if not tables or (len(tables) > 1 and not of_an_image_folder):
        names = ", ".join(table.name for table in tables[:3]) or "none"
        raise InputError(f"{root} holds {len(tables)} tables: {names}", where=_WHERE, expected=f"one of {', '.join(_TABLES)}")
    for table in tables:
        folder = table.parent.relative_to(root)
        for row in _READ_TABLE[table.suffix.lower()](table):
            inside = row.fault is None and isinstance(row.path, str) and folder != Path()
            path = str(PurePosixPath(folder, row.path)) if inside else row.path
            yield replace(row, path=path, location=path if inside else row.location)


def _read_jsonl(table: Path) -> Iterator[Listed]:
    any_image = False
    for _, record, fault in read_jsonl(table):
        named = _names_of(record, table) if isinstance(record, dict) else None
        if fault is not None:
            yield Listed(None, fault, None, fault="not JSON")
        elif named is None:
            yield Listed(None, repr(record)[:80], None, fault="no field 'prompt' or 'path'")
        else:
            any_image = True
            yield Listed(record[named[0]], record[named[1]], record[named[1]])
    if not any_image:
        raise InputError("no line is a JSON object with the fields 'prompt' and 'path'", where=str(table), expected=_EXPECTED)


def _read_csv(table: Path) -> Iterator[Listed]:
    for _, cells in read_csv(table, []):
        text, path = _columns_of([name for name in cells if name is not None], table)
        yield Listed(cells[text], cells[path], cells[path], fault="more cells than columns" if None in cells else None)


def _read_parquet_table(table: Path) -> Iterator[Listed]:
    yield from _read_paths(table, *_columns_of(open_parquet(table).schema_arrow.names, table))


def _read_paths(table: Path, text: str, path: str) -> Iterator[Listed]:
    for number, row, fault in read_rows(table, [text, path]):
        told = f"row {number} of {table.name}: {fault}" if fault is not None else row[path]
        yield Listed(row[text], told, row[path], fault=None if fault is None else "a cell cannot be read")


def _columns_of(names: Sequence[str], table: Path) -> tuple[str, str]:
    """The columns of prompts and of paths.

    Raises:
        InputError: one is missing, or there are several.
    """
    named = _names_of(names, table)
    if named is None:
        lacking = "path" if any(name in names for name in _TEXTS) else "prompt"
        raise InputError(f"there is no column {lacking!r}", where=str(table), expected=_EXPECTED)
    return named


def _names_of(names: Collection[str], table: Path) -> tuple[str, str] | None:
    """The names of prompt and path among some; None where one is missing.

    Raises:
        InputError: there are several.
    """
    found = []
    for candidates in (_TEXTS, _PATHS):
        present = [name for name in candidates if name in names]
        if len(present) > 1:
            raise InputError(f"{' and '.join(present)}: which is meant?", where=str(table), expected=_EXPECTED)
        found += present
    return (found[0], found[1]) if len(found) == 2 else None


_READ_TABLE = {".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_parquet_table}


def read_imagerewarddb(root: Path) -> Iterator[Listed]:
    """The rows of `metadata-*.parquet`, of all splits."""
    tables = sorted(root.glob("metadata-*.parquet"))
    if not tables:
        raise InputError(f"{root} holds no metadata-*.parquet", where=_WHERE, expected="ImageRewardDB's folder as published")
    for table in tables:
        yield from _read_paths(table, "prompt", "image_path")


def read_diffusiondb(root: Path) -> Iterator[Listed]:
    """The images that the JSON of each part names; a part is known by its number, wherever it is.

    Raises:
        InputError: there is no part, or one has no readable JSON.
    """
    lists = _parts_of_folder(root) if root.is_dir() else [name for name in members(root) if _lists_part(name)]
    if not lists:
        raise InputError(
            f"{root} holds no part of DiffusionDB",
            where=_WHERE,
            expected="folders or zips part-000001, ..., each with its part-000001.json; in a zip, folders",
        )
    for fetched in fetch_files(root, lists, _MAX_PART_BYTES, Zips()):
        part = PurePosixPath(str(fetched.location))
        for name, entry in _entries(fetched, root).items():
            location = str(PurePosixPath(part.parent, name))
            if isinstance(entry, dict) and "p" in entry:
                yield Listed(entry["p"], f"{part.stem}/{name}", location, _made_by(entry))
            else:
                yield Listed(None, f"{part.stem}/{name}", location, fault="its part names no prompt")


def _parts_of_folder(root: Path) -> list[str]:
    """Paths of the JSON of each part (for a part's zip, as if it were a folder): in the root or in a folder of it."""
    others = [folder for folder in root.iterdir() if folder.is_dir() and not is_hidden(PurePosixPath(folder.name))]
    parents = [root, *(folder for folder in others if not _PART.fullmatch(folder.name))]
    lists = {name for name in _names(root) if _lists_part(name)}  # the root is a part itself
    for parent in parents:
        parts = {name.removesuffix(".zip") for name in _names(parent)}
        lists |= {str((parent / part / f"{part}.json").relative_to(root)) for part in parts if _PART.fullmatch(part)}
    return sorted(lists)


def _lists_part(name: str) -> bool:
    path = PurePosixPath(name)
    return not is_hidden(path) and path.suffix == ".json" and _PART.fullmatch(path.stem) is not None


def _entries(fetched: Fetched, root: Path) -> Mapping[str, Any]:
    where = f"{root}: {fetched.location}"
    if fetched.fault is not None:
        raise InputError(f"the list of a part cannot be read: {fetched.fault}", where=where)
    try:
        entries, fault = parse_json(fetched.data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(f"the list of a part is not UTF-8 text: {error.reason}", where=where) from None
    if fault is not None or not isinstance(entries, dict):
        raise InputError("the list of a part is not a JSON object", where=where, fix="fetch the part again")
    return entries


def _made_by(entry: Mapping[str, Any]) -> dict[str, Any]:
    """The columns on how an image was made; the release does not name the model's revision."""
    seed = entry.get("se")
    settings = {"guidance": entry.get("c"), "sampler": entry.get("sa"), "steps": entry.get("st")}
    given = {name: value for name, value in settings.items() if _plain(value)}
    return {
        "generator": "diffusiondb",
        "seed": seed if type(seed) is int and 0 <= seed < 1 << 64 else None,
        "settings": json.dumps(given, sort_keys=True) if given else None,
    }


def _plain(value: object) -> bool:
    """Whether a value is valid in JSON: the reader also accepts NaN."""
    return isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))


def read_parquet(root: Path) -> Iterator[Listed]:
    """The rows of Parquet with the images in them.

    An image without a path is known by its file and row; so is one whose path is a bare name, since `datasets` keeps no more of a
    path when it embeds images, and `0.png` is then the name of an image of every prompt.

    Raises:
        InputError: a file has no column of images, or not one of prompts.
    """
    for name, file in parquet_files(root):
        schema = open_parquet(file).schema_arrow
        check_columns(schema.names, ["image"], str(file))
        kind = schema.field("image").type
        texts = [text for text in _TEXTS if text in schema.names]
        if len(texts) != 1:
            names = " and ".join(texts) or "none"
            raise InputError(f"which column holds the prompts? {names}", where=str(file), expected=f"one of {', '.join(_TEXTS)}")
        fields = {kind.field(number).name for number in range(kind.num_fields)} if pa.types.is_struct(kind) else set()
        if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or "bytes" in fields):
            raise InputError(
                f"the column 'image' holds no images but {kind}", where=str(file), expected="bytes, or struct<bytes, path>"
            )
        for row, cells, fault in read_rows(file, [*texts, *(["image.path"] if "path" in fields else [])]):
            path = (cells.get("image") or {}).get("path")
            known = isinstance(path, str) and "/" in path
            wrong = None if fault is None else "a cell cannot be read"
            yield Listed(cells[texts[0]], path if known else f"{name}/{row}", Cell(file, "image", row), fault=wrong)


# How each layout lists its images.
LAYOUTS: Mapping[str, Callable[[Path], Iterator[Listed]]] = {
    "folder": read_folder,
    "table": read_table,
    "diffusiondb": read_diffusiondb,
    "imagerewarddb": read_imagerewarddb,
    "parquet": read_parquet,
}
