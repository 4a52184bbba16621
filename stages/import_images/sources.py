"""Where encoded images lie: a folder with files and zips, one zip, or Parquet. Nothing is unpacked."""

from __future__ import annotations

import errno
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from irpipe.pipeline.errors import InputError
from irpipe.schemas.files import open_parquet, read_batches


@dataclass(frozen=True)
class Found:
    """The bytes of an image, or why there are none."""

    path: str
    data: bytes = b""
    fault: str | None = None


_NO_SUCH_NAME = {errno.ENAMETOOLONG, errno.ENOTDIR, errno.ELOOP, errno.EINVAL}
_MOST_OPEN = 32  # archives
# zipfile expands a bzip2 or LZMA block whole, however few bytes were asked for; images are never kept so.
_BOUNDED = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}

# Columns that hold an image, and the column that holds the name it is known by (None: inside the image's struct).
_PARQUET_IMAGES = (("image", None), ("jpg_0", "image_0_uid"), ("jpg_1", "image_1_uid"))


def fetch(root: Path, paths: Sequence[str], max_bytes: int) -> Iterator[Found]:
    """Every wanted image once, in the order of `paths` (of the rows, where they lie in Parquet).

    Raises:
        InputError: the root is no folder, zip or Parquet file.
    """
    lone = root.suffix.lower() == ".parquet" and root.is_file()
    left = dict.fromkeys(paths)
    for found in _from_parquet([root] if lone else _image_tables(root), paths, max_bytes):
        del left[found.path]
        yield found
    if lone:
        yield from (Found(path, fault="missing") for path in left)
    else:
        yield from fetch_files(root, list(left), max_bytes)


def fetch_files(root: Path, paths: Sequence[str], max_bytes: int) -> Iterator[Found]:
    """Every wanted file of a folder (or of zips in it) or of one zip, in the order of `paths`.

    Raises:
        InputError: the root is no folder or zip.
    """
    if root.is_dir():
        yield from _from_folder(root, paths, max_bytes)
    elif zipfile.is_zipfile(root):
        zips = _Zips()
        yield from (zips.read(root, [path], path, max_bytes) if _inside(path) else _outside(path) for path in paths)
    else:
        raise InputError(f"{root} is no folder, zip or Parquet file", where="import-images.image_root")


def fetch_rows(root: Path, places: Sequence[str], max_bytes: int) -> Iterator[Found]:
    """Every wanted image of a column `image`, each named `<file>/<row>` (see `parquet_files`), in the order of rows."""
    wanted = set(places)
    for name, file in parquet_files(root):
        row = 0
        for batch in read_batches(file, ["image"], batch_size=64):
            for cell in batch["image"]:
                place = f"{name}/{row}"
                row += 1
                if place in wanted:
                    data = _cell(cell.as_py(), place)[1]
                    yield _judge(place, data, max_bytes)


def parquet_files(root: Path) -> list[tuple[str, Path]]:
    """Name and path of a Parquet file, or of all below a folder; a name is relative to the folder.

    Raises:
        InputError: there is none.
    """
    found = [root] if root.is_file() else sorted(file for file in root.rglob("*") if file.is_file())
    files = [file for file in found if file.suffix.lower() == ".parquet" and _below(file, root)]
    if not files:
        raise InputError(f"{root} is no Parquet file and holds none", where="import-images.image_root")
    return [(file.relative_to(root.parent if root.is_file() else root).as_posix(), file) for file in files]


def members(archive: Path) -> list[str]:
    """Names in a zip, in their order there.

    Raises:
        InputError: it is no zip, or a broken one.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            return opened.namelist()
    except zipfile.BadZipFile as error:
        raise InputError(f"{archive} is no folder and no readable zip: {error}", where="import-images.image_root") from None


def _below(file: Path, root: Path) -> bool:
    return file.resolve().is_relative_to(root.resolve())


def _image_tables(root: Path) -> list[Path]:
    """The Parquet files below a folder that hold images. Others, and what is none for all its name, hide nothing."""
    found = []
    for file in sorted(root.rglob("*")):
        if file.suffix.lower() == ".parquet" and file.is_file() and _below(file, root):
            try:
                names = open_parquet(file).schema_arrow.names
            except InputError:
                continue
            found += [file] if _image_columns(names) else []
    return found


def _inside(path: str) -> bool:
    """Whether a given path stays below its root, as far as its text tells."""
    parts = PurePosixPath(path.replace("\\", "/")).parts
    return bool(parts) and not path.startswith("/") and ".." not in parts and ":" not in parts[0] and "\0" not in path


def _outside(path: str) -> Found:
    return Found(path, fault="path leaves the root")


def _from_folder(root: Path, paths: Sequence[str], max_bytes: int) -> Iterator[Found]:
    zips, real_root = _Zips(), root.resolve()
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
                raise  # a disk that fails, or no more open files: not the image's fault
            yield Found(path, fault=f"cannot be read: {error.strerror}")


def _read_file(file: Path, path: str, max_bytes: int) -> Found:
    if file.stat().st_size > max_bytes:
        return Found(path, fault="file too large")
    return Found(path, file.read_bytes())


def _from_zip_above(root: Path, path: str, zips: _Zips, max_bytes: int) -> Found:
    """`a/b/c.webp` may be the member `c.webp` (or `b/c.webp`) of `a/b.zip`, as ImageRewardDB publishes it."""
    parts = PurePosixPath(path).parts
    found = Found(path, fault="missing")
    for depth in range(len(parts) - 1, 0, -1):
        archive = root.joinpath(*parts[: depth - 1], f"{parts[depth - 1]}.zip")
        if found.fault != "missing" or not archive.is_file():
            continue
        if not archive.resolve().is_relative_to(root.resolve()):
            return _outside(path)
        found = zips.read(archive, ["/".join(parts[depth:]), "/".join(parts[depth - 1 :]), path], path, max_bytes)
    return found


@dataclass
class _Zips:
    """Archives that were used last, so that each directory is read once and few are open."""

    _open: OrderedDict[Path, zipfile.ZipFile | None] = field(default_factory=OrderedDict)

    def read(self, archive: Path, names: Sequence[str], path: str, max_bytes: int) -> Found:
        opened = self._archive(archive)
        if opened is None:
            return Found(path, fault="broken zip")
        name = next((name for name in names if name in opened.NameToInfo), None)
        if name is None:
            return Found(path, fault="missing")
        member = opened.getinfo(name)
        if member.file_size > max_bytes:
            return Found(path, fault="file too large")
        if member.compress_type not in _BOUNDED:
            return Found(path, fault="compressed as a bomb may be")
        try:
            with opened.open(member) as file:
                data = file.read(max_bytes + 1)
        except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError):
            return Found(path, fault="broken in its zip")
        return Found(path, data) if len(data) <= max_bytes else Found(path, fault="file too large")

    def _archive(self, path: Path) -> zipfile.ZipFile | None:
        """The open archive, or None for a broken one."""
        if path not in self._open:
            try:
                self._open[path] = zipfile.ZipFile(path)
            except zipfile.BadZipFile:
                self._open[path] = None
            if len(self._open) > _MOST_OPEN:
                oldest = self._open.popitem(last=False)[1]
                if oldest is not None:
                    oldest.close()
        self._open.move_to_end(path)
        return self._open[path]


def _image_columns(names: Sequence[str]) -> list[tuple[str, str | None]]:
    """The columns of a Parquet file that hold images, each with the column of their names."""
    return [(image, name) for image, name in _PARQUET_IMAGES if image in names and (name is None or name in names)]


def _from_parquet(files: Sequence[Path], paths: Sequence[str], max_bytes: int) -> Iterator[Found]:
    """Those of the wanted images that stand in Parquet files; a cell without bytes gives way to a later one that has some."""
    wanted = dict.fromkeys(paths)
    empty: dict[str, Found] = {}
    for file in files:
        columns = _image_columns(open_parquet(file).schema_arrow.names)
        read = sorted({column for pair in columns for column in pair if column is not None})
        for batch in read_batches(file, read, batch_size=64):
            for row in batch.to_pylist():
                for image, name in columns:
                    path, data = _cell(row[image], row[name] if name else None)
                    if path not in wanted:
                        continue
                    if not data:
                        empty[path] = Found(path, fault="empty")
                        continue
                    del wanted[path]
                    yield _judge(path, data, max_bytes)
    yield from (found for path, found in empty.items() if path in wanted)


def _judge(path: str, data: Any, max_bytes: int) -> Found:
    if not isinstance(data, bytes):
        return Found(path, fault="no bytes")
    return Found(path, data) if len(data) <= max_bytes else Found(path, fault="file too large")


def _cell(image: Any, name: str | None) -> tuple[Any, Any]:
    """Name and bytes of an image cell: a struct<bytes, path>, or bytes with the name beside."""
    if isinstance(image, dict):
        return name if name is not None else image.get("path"), image.get("bytes") or b""
    return name, image or b""
