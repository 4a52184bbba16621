"""Sources of encoded images: a folder with files and zips, one zip, or Parquet. Nothing is unpacked."""

from __future__ import annotations

import errno
import zipfile
from collections import OrderedDict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from irpipe.pipeline.errors import InputError
from irpipe.schemas.discovery import files_below
from irpipe.schemas.files import cells as cells_in
from irpipe.schemas.files import open_parquet, read_batches, read_rows


class Cell(NamedTuple):
    """The position of an image in Parquet."""

    file: Path
    column: str
    row: int


Location = str | Cell
"""A path below the root, or a cell of a Parquet file."""


def described(location: Location, root: Path) -> str:
    """Where an image below a root is, for people."""
    if isinstance(location, str):
        return location
    return f"{location.column} of row {location.row} of {location.file.relative_to(root.parent if root.is_file() else root)}"


@dataclass(frozen=True)
class Fetched:
    """The bytes of an image, or its fault."""

    location: Location
    data: bytes = b""
    fault: str | None = None


AMBIGUOUS = "several different images have this name"
_NO_SUCH_NAME = {errno.ENAMETOOLONG, errno.ENOTDIR, errno.ELOOP, errno.EINVAL}
_MOST_OPEN = 32  # archives
# zipfile expands a whole bzip2 or LZMA block, however few bytes are read; images are not stored so.
_BOUNDED = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}

# Columns that hold an image, and the column with its name (None: inside the image's struct).
_PARQUET_IMAGES = (("image", None), ("jpg_0", "image_0_uid"), ("jpg_1", "image_1_uid"))


def fetch(root: Path, locations: Sequence[Location], max_bytes: int, zips: Zips) -> Iterator[Fetched]:
    """Every image once, in the order of `locations`; cells of one file are in the order of rows.

    Args:
        zips: those that stay open between calls: the directory of a large one takes a second to read.

    Raises:
        InputError: the root is no folder or zip, or a Parquet file is damaged.
    """
    for in_parquet, part in groupby(locations, key=lambda location: isinstance(location, Cell)):
        if in_parquet:
            yield from _from_parquet([location for location in part if isinstance(location, Cell)], max_bytes)
        else:
            yield from fetch_files(root, [location for location in part if isinstance(location, str)], max_bytes, zips)


def fetch_files(root: Path, paths: Sequence[str], max_bytes: int, zips: Zips) -> Iterator[Fetched]:
    """The files `paths` of a folder (or of zips in it) or of one zip, in their order.

    Raises:
        InputError: the root is no folder or zip.
    """
    if root.is_dir():
        yield from _from_folder(root, paths, max_bytes, zips)
    elif zipfile.is_zipfile(root):
        yield from (zips.read(root, [path], path, max_bytes) if _inside(path) else _outside(path) for path in paths)
    else:
        raise InputError(f"{root} is no folder, zip or Parquet file", where="import-images.image_root")


def parquet_files(root: Path) -> list[tuple[str, Path]]:
    """Name and path of a Parquet file, or of all below a folder; a name is relative to the folder.

    Raises:
        InputError: there is none.
    """
    files = [root] if root.is_file() and root.suffix.lower() == ".parquet" else _tables_below(root)
    if not files:
        raise InputError(f"{root} is no Parquet file and holds none", where="import-images.image_root")
    return [(file.relative_to(root.parent if root.is_file() else root).as_posix(), file) for file in files]


def _is_of_the_machine(error: Exception) -> bool:
    """Whether a disk fails, memory or open files run out; a seek before a file's begin (EINVAL) is a fault of the zip."""
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno not in (None, errno.EINVAL))


def members(archive: Path) -> list[str]:
    """Names in a zip, in their order there.

    Raises:
        InputError: it is no zip, or a broken one.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            return opened.namelist()
    except Exception as error:  # damaged bytes make the library raise anything; this is where they come in
        if _is_of_the_machine(error):
            raise
        raise InputError(f"{archive} is no folder and no readable zip: {error}", where="import-images.image_root") from None


def _below(file: Path, root: Path) -> bool:
    return file.resolve().is_relative_to(root.resolve())


def _image_tables(root: Path) -> list[Path]:
    """The Parquet files below a folder that hold images; others and unreadable ones are skipped."""
    tables = []
    for file in _tables_below(root):
        try:
            names = open_parquet(file).schema_arrow.names
        except InputError:
            continue
        tables += [file] if _image_columns(names) else []
    return tables


def _tables_below(root: Path) -> list[Path]:
    """The Parquet files below a folder that are not hidden."""
    return [file for file in files_below(root, (".parquet",)) if _below(file, root)]


def _inside(path: str) -> bool:
    """Whether a given path stays below its root, judged by its text."""
    parts = PurePosixPath(path.replace("\\", "/")).parts
    return bool(parts) and not path.startswith("/") and ".." not in parts and ":" not in parts[0] and "\0" not in path


def _outside(path: str) -> Fetched:
    return Fetched(path, fault="path leaves the root")


def _from_folder(root: Path, paths: Sequence[str], max_bytes: int, zips: Zips) -> Iterator[Fetched]:
    real_root = root.resolve()
    for path in paths:
        file = root / path if _inside(path) else None
        try:
            if file is None or not file.resolve().is_relative_to(real_root):
                yield _outside(path)
            elif file.is_file():
                yield _read_file(file, path, max_bytes)
            else:
                yield _from_zip_above(root, path, zips, max_bytes)
        except OSError as error:
            if error.errno not in _NO_SUCH_NAME:
                raise  # a failing disk, or too many open files: no fault of the image
            yield Fetched(path, fault=f"cannot be read: {error.strerror}")


def _read_file(file: Path, path: str, max_bytes: int) -> Fetched:
    if file.stat().st_size > max_bytes:
        return Fetched(path, fault="file too large")
    return Fetched(path, file.read_bytes())


def _from_zip_above(root: Path, path: str, zips: Zips, max_bytes: int) -> Fetched:
    """`a/b/c.webp` may be the member `c.webp` (or `b/c.webp`) of `a/b.zip`, as ImageRewardDB publishes it."""
    parts = PurePosixPath(path).parts
    fetched = Fetched(path, fault="missing")
    for depth in range(len(parts) - 1, 0, -1):
        archive = root.joinpath(*parts[: depth - 1], f"{parts[depth - 1]}.zip")
        if fetched.fault != "missing" or not archive.is_file():
            continue
        if not archive.resolve().is_relative_to(root.resolve()):
            return _outside(path)
        fetched = zips.read(archive, ["/".join(parts[depth:]), "/".join(parts[depth - 1 :]), path], path, max_bytes)
    return fetched


@dataclass
class Zips:
    """A cache of open archives: each directory is read once, and few are open."""

    _open: OrderedDict[Path, zipfile.ZipFile | None] = field(default_factory=OrderedDict)
    _twice: dict[Path, frozenset[str]] = field(default_factory=dict)

    def read(self, archive: Path, names: Sequence[str], path: str, max_bytes: int) -> Fetched:
        opened = self._archive(archive)
        if opened is None:
            return Fetched(path, fault="broken zip")
        found = [opened.getinfo(name) for name in dict.fromkeys(names) if name in opened.NameToInfo]
        if not found:
            return Fetched(path, fault="missing")
        member = found[0]
        if member.filename in self._twice[archive] or any(_content(other) != _content(member) for other in found):
            return Fetched(path, fault=AMBIGUOUS)
        if member.file_size > max_bytes:
            return Fetched(path, fault="file too large")
        if member.compress_type not in _BOUNDED:
            return Fetched(path, fault="compressed as a bomb may be")
        try:
            with opened.open(member) as file:
                data = file.read(max_bytes + 1)
        except Exception as error:  # damaged bytes make the library raise anything; this is where they come in
            if _is_of_the_machine(error):
                raise
            return Fetched(path, fault="broken in its zip")
        return Fetched(path, data) if len(data) <= max_bytes else Fetched(path, fault="file too large")

    def _archive(self, path: Path) -> zipfile.ZipFile | None:
        """The open archive, or None for a broken one."""
        if path not in self._open:
            try:
                self._open[path] = archive = zipfile.ZipFile(path)
                self._twice[path] = _names_of_several(archive)
            except Exception as error:  # as above
                if _is_of_the_machine(error):
                    raise
                self._open[path] = None
            if len(self._open) > _MOST_OPEN:
                oldest = self._open.popitem(last=False)[1]
                if oldest is not None:
                    oldest.close()
        self._open.move_to_end(path)
        return self._open[path]


def _content(member: zipfile.ZipInfo) -> tuple[int, int]:
    return member.CRC, member.file_size


def _names_of_several(archive: zipfile.ZipFile) -> frozenset[str]:
    """Names that several members have whose contents differ."""
    members = archive.infolist()
    if len(members) == len(archive.NameToInfo):
        return frozenset()
    return frozenset(one.filename for one in members if _content(one) != _content(archive.NameToInfo[one.filename]))


def _image_columns(names: Sequence[str]) -> list[tuple[str, str | None]]:
    """The columns of a Parquet file that hold images, each with the column of their names."""
    return [(image, name) for image, name in _PARQUET_IMAGES if image in names and (name is None or name in names)]


def cells_of(root: Path, paths: Collection[Location]) -> dict[Location, list[Cell]]:
    """The cells of Parquet files that hold images of these paths, in the order of rows. Reads paths, no images."""
    cells: dict[Location, list[Cell]] = {}
    for file in [root] if is_parquet(root) else _image_tables(root):
        schema = open_parquet(file).schema_arrow
        columns = [(image, name or f"{image}.path") for image, name in _image_columns(schema.names)]
        name_columns = {image: name for image, name in columns if "." not in name or _has_path(schema.field(image).type)}
        for row, cell, _ in read_rows(file, sorted(set(name_columns.values()))) if name_columns else ():
            for image, name in name_columns.items():
                path = (cell[image] or {}).get("path") if "." in name else cell[name]
                if isinstance(path, str) and path in paths:  # one that cannot be read is the name of no image
                    cells.setdefault(path, []).append(Cell(file, image, row))
    return cells


def is_parquet(root: Path) -> bool:
    """Whether the root is one Parquet file."""
    return root.suffix.lower() == ".parquet" and root.is_file()


def _has_path(kind: Any) -> bool:
    return pa.types.is_struct(kind) and "path" in {kind.field(number).name for number in range(kind.num_fields)}


def _from_parquet(cells: Sequence[Cell], max_bytes: int) -> Iterator[Fetched]:
    """Images of cells, which are in the order of rows. Memory: 64 rows."""
    for file, part in groupby(cells, key=lambda cell: cell.file):
        by_row = {row: list(together) for row, together in groupby(part, key=lambda cell: cell.row)}
        columns = sorted({cell.column for together in by_row.values() for cell in together})
        for row, values in _rows(file, columns, sorted(by_row)):
            for cell in by_row[row]:
                value = values[cell.column]
                yield _judge(cell, (value.get("bytes") if isinstance(value, dict) else value) or b"", max_bytes)


def _rows(file: Path, columns: Sequence[str], rows: Sequence[int]) -> Iterator[tuple[int, Any]]:
    """Some rows of a Parquet file, in their order; row groups without any of them are not read."""
    metadata, start, row_numbers = open_parquet(file).metadata, 0, np.asarray(rows)
    for group in range(metadata.num_row_groups):
        stop = start + metadata.row_group(group).num_rows
        if np.any((row_numbers >= start) & (row_numbers < stop)):
            for batch in read_batches(file, columns, batch_size=64, row_groups=[group]):
                for row in row_numbers[(row_numbers >= start) & (row_numbers < start + batch.num_rows)].tolist():
                    yield row, {name: cells_in(batch[name].slice(row - start, 1))[0][0] for name in batch.schema.names}
                start += batch.num_rows
            if start != stop:
                raise InputError(f"{file} is damaged: it has other rows than it tells", where=str(file))
        start = stop


def _judge(cell: Cell, data: Any, max_bytes: int) -> Fetched:
    if not isinstance(data, bytes):
        return Fetched(cell, fault="no bytes")
    return Fetched(cell, data) if len(data) <= max_bytes else Fetched(cell, fault="file too large")
