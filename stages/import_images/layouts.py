"""One reader per layout of existing images. Each lists every image of a source and reads none."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa

from irpipe.pipeline.errors import InputError
from irpipe.schemas.discovery import is_hidden
from irpipe.schemas.files import check_columns, open_parquet, parse_json, read_csv, read_jsonl, read_rows
from irpipe.stages.import_images.sources import Cell, Fetched, Zips, fetch_files, members, parquet_files

_WHERE = "import-images.image_root"
_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_TABLES = (".jsonl", ".csv", ".parquet")
_TEXTS = ("prompt", "caption", "text")
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
    """The rows (`prompt`, `path`) of the one table that a folder holds beside its images."""
    if root.is_file():  # the key hashes image_root: a table alone would leave out its images
        raise InputError(f"{root.name} is a file", where=_WHERE, expected="the folder that holds the table and its images")
    tables = [root / name for name in sorted(_names(root)) if Path(name).suffix.lower() in _TABLES and name[0] != "."]
    if len(tables) != 1:
        names = ", ".join(table.name for table in tables[:3]) or "none"
        raise InputError(f"{root} holds {len(tables)} tables: {names}", where=_WHERE, expected=f"one of {', '.join(_TABLES)}")
    return _READ_TABLE[tables[0].suffix.lower()](tables[0])


def _read_jsonl(table: Path) -> Iterator[Listed]:
    any_image = False
    for _, record, fault in read_jsonl(table):
        if fault is not None:
            yield Listed(None, fault, None, fault="not JSON")
        elif not isinstance(record, dict) or not {"prompt", "path"} <= record.keys():
            yield Listed(None, repr(record)[:80], None, fault="no field 'prompt' or 'path'")
        else:
            any_image = True
            yield Listed(record["prompt"], record["path"], record["path"])
    if not any_image:
        raise InputError("no line is a JSON object with the fields 'prompt' and 'path'", where=str(table))


def _read_csv(table: Path) -> Iterator[Listed]:
    for _, cells in read_csv(table, ["prompt", "path"]):
        yield Listed(cells["prompt"], cells["path"], cells["path"], fault="more cells than columns" if None in cells else None)


def _read_paths(table: Path, path: str = "path") -> Iterator[Listed]:
    for number, row, fault in read_rows(table, ["prompt", path]):
        told = f"row {number} of {table.name}: {fault}" if fault is not None else row[path]
        yield Listed(row["prompt"], told, row[path], fault=None if fault is None else "a cell cannot be read")


_READ_TABLE = {".jsonl": _read_jsonl, ".csv": _read_csv, ".parquet": _read_paths}


def read_imagerewarddb(root: Path) -> Iterator[Listed]:
    """The rows of `metadata-*.parquet`, of all splits."""
    tables = sorted(root.glob("metadata-*.parquet"))
    if not tables:
        raise InputError(f"{root} holds no metadata-*.parquet", where=_WHERE, expected="ImageRewardDB's folder as published")
    for table in tables:
        yield from _read_paths(table, "image_path")


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
