"""Reading files from outside: the one place where they come in. Every broken file ends in an `InputError` that names it."""

from __future__ import annotations

import csv
import io
import json
import lzma
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from irpipe.pipeline.endings import COMPRESSED
from irpipe.pipeline.errors import InputError, did_you_mean, nearest

Cells = dict[str | None, Any]  # a CSV row: text by column, surplus cells under None
_MAX_CSV_FIELD = 1 << 24  # characters; the library's own limit is 131,072
_MAX_JSON = 1 << 32  # characters of a file that is read whole: a compressed one may expand without bound
_NO_TEXT = 80  # characters that are shown of what is no JSON


def is_text(value: object) -> bool:
    """Whether a value is a string that can be written as UTF-8 (JSON can spell half a character)."""
    try:
        return isinstance(value, str) and value.encode("utf-8") is not None
    except UnicodeEncodeError:
        return False


@contextmanager
def open_text(path: Path) -> Iterator[IO[str]]:
    """A UTF-8 text file, with or without a byte-order mark, compressed or not (gzip, zstd, bzip2, xz, by its ending).

    Raises:
        InputError: it is missing, a folder, not UTF-8, or not compressed as its ending says.
    """
    kind = COMPRESSED.get(path.suffix.lower())
    try:
        if kind is None:
            with path.open(encoding="utf-8-sig", newline="") as file:
                yield file
        else:
            with (
                _unpacked(path, kind) as unpacked,
                io.TextIOWrapper(unpacked, encoding="utf-8-sig", newline="") as file,
            ):
                yield file
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}", where=str(path)) from None
    except (FileNotFoundError, IsADirectoryError) as error:
        raise InputError(f"{path} cannot be read: {error.strerror}", where=str(path)) from None
    except (OSError, EOFError, lzma.LZMAError) as error:
        if kind is None:
            raise  # a failing disk is no fault of the file
        raise InputError(f"{path} is not compressed as its ending says, or cut short: {error}", where=str(path)) from None


def _unpacked(path: Path, kind: str) -> Any:
    return lzma.LZMAFile(path) if kind == "xz" else pa.input_stream(str(path), compression=kind)


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The number (from 0) and the text of every line."""
    with open_text(path) as file:
        for number, line in enumerate(file):
            yield number, line.rstrip("\r\n")


def read_jsonl(path: Path) -> Iterator[tuple[int, Any, str | None]]:
    """The number (from 0), value, and fault of every row (with a fault the value is None). Blank lines are not counted."""
    number = 0
    for _, line in read_lines(path):
        if line.strip():
            value, fault = parse_json(line)
            yield number, value, fault
            number += 1


def parse_json(text: str) -> tuple[Any, str | None]:
    """A JSON value and None, or None and the text that is not JSON."""
    try:
        return _json(text), None
    except (ValueError, RecursionError):
        return None, text[:_NO_TEXT]


def _json(text: str) -> Any:
    """A JSON value. NaN, which Python and pandas write, is null.

    Raises:
        ValueError: it is not JSON, has a key twice, or a number of thousands of digits.
    """
    return json.loads(
        text, parse_constant=lambda name: None if name == "NaN" else float(name), object_pairs_hook=_without_repetition
    )


def _without_repetition(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} is there twice")
    return made


def read_json(path: Path) -> Any:
    """A whole JSON file.

    Raises:
        InputError: it is not JSON.
    """
    with open_text(path) as file:
        text = file.read(_MAX_JSON + 1)
    if len(text) > _MAX_JSON:
        raise InputError(f"{path} has more than {_MAX_JSON:,} characters", where=str(path), fix="give it as JSON Lines")
    try:
        return _json(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON: {error}"[:300], where=str(path)) from None


def read_csv(path: Path, columns: Sequence[str], setting: str = "") -> Iterator[tuple[int, Cells]]:
    """The number (from 0) and the cells by column of every row; surplus cells are under None.

    Args:
        setting: as that of `check_columns`.

    Raises:
        InputError: an expected column is missing, one is there twice, a quote is not closed, or the file is no CSV.
    """
    csv.field_size_limit(_MAX_CSV_FIELD)
    with open_text(path) as file:
        reader, begin = csv.DictReader(file, strict=True), 1
        try:
            names = list(reader.fieldnames or ())
            check_columns(names, columns, str(path), setting)
            check_columns(names, [name for name in names if name], str(path))
            begin = reader.line_num + 1
            for number, row in enumerate(reader):
                yield number, row
                begin = reader.line_num + 1
        except csv.Error as error:
            raise InputError(f"{path} is not CSV: {error}, in the row that begins in line {begin}", where=str(path)) from None


def check_columns(present: Sequence[str], columns: Sequence[str], where: str, setting: str = "") -> None:
    """Every expected column must be present.

    Args:
        setting: that names such a column, for the fix; `{}` in it stands for the column's usual name.

    Raises:
        InputError: a column is missing; names it and the most similar present one.
    """
    missing = [name for name in dict.fromkeys(columns) if name not in present]
    if missing:
        message = "\n".join(f"there is no column {name!r}{did_you_mean(name, present)}" for name in missing)
        given = (f"--set {setting.format(name)}={nearest(name, present) or 'NAME'}" for name in missing)
        raise InputError(message, where=where, fix=" ".join(given) if setting else None)
    for name in columns:
        if list(present).count(name) > 1:
            raise InputError(f"the column {name!r} is there twice", where=where)


def open_parquet(path: Path) -> Any:
    """A Parquet file.

    Raises:
        InputError: it is missing, truncated, or no Parquet.
    """
    try:
        file = pq.ParquetFile(path)
        _ = file.schema_arrow.names
        return file
    except Exception as error:  # noqa: BLE001 # damaged bytes make the library raise anything; this is where they come in
        raise InputError(f"{path} is not a readable Parquet file: {error}"[:400], where=str(path)) from None


def columns_of(path: Path) -> list[str]:
    """The columns of a Parquet file, or of an Arrow file as `datasets` keeps them on the disk.

    Raises:
        InputError: it cannot be read.
    """
    if path.suffix.lower() == ".arrow":
        with _arrow_stream(path) as stream:
            names: list[str] = stream.schema.names
            return names
    return list(open_parquet(path).schema_arrow.names)


@contextmanager
def _arrow_stream(path: Path) -> Iterator[Any]:
    try:
        with pa.memory_map(str(path)) as mapped, pa.ipc.open_stream(mapped) as stream:
            yield stream
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001 # damaged bytes make the library raise anything; this is where they come in
        raise InputError(f"{path} is not a readable Arrow file: {error}"[:400], where=str(path)) from None


def _arrow_batches(path: Path, columns: Sequence[str]) -> Iterator[Any]:
    with _arrow_stream(path) as stream:
        check_columns(stream.schema.names, columns, str(path))
        for batch in stream:
            yield batch.select(list(columns))


def read_batches(
    path: Path, columns: Sequence[str], batch_size: int = 1 << 16, row_groups: Sequence[int] | None = None
) -> Iterator[Any]:
    """Some columns of a Parquet file (or of some row groups), a batch at a time; `image.path` is one field of a struct.

    Raises:
        InputError: a column is missing, or the file is damaged.
    """
    if path.suffix.lower() == ".arrow":
        yield from _arrow_batches(path, columns)
        return
    file = open_parquet(path)
    names = file.schema_arrow.names
    check_columns(names, [name if name in names else name.partition(".")[0] for name in columns], str(path))
    batches = file.iter_batches(batch_size=batch_size, columns=list(columns), row_groups=row_groups)
    while True:
        try:
            batch = next(batches, None)
        except Exception as error:  # noqa: BLE001 # as above
            raise InputError(f"{path} is damaged: {error}"[:400], where=str(path)) from None
        if batch is None:
            return
        yield batch


def read_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, dict[str, Any], str | None]]:
    """The number (from 0), the values by column, and the fault of every row of a Parquet file; a value with a fault is None.

    Raises:
        InputError: as `read_batches`.
    """
    number = 0
    for batch in read_batches(path, columns):
        read = {name: cells(batch.column(name)) for name in batch.schema.names}
        for index in range(batch.num_rows):
            fault = next((f"{name}: {faults[index]}" for name, (_, faults) in read.items() if index in faults), None)
            yield number, {name: values[index] for name, (values, _) in read.items()}, fault
            number += 1


def cells(column: Any) -> tuple[list[Any], Mapping[int, str]]:
    """The values of a column of Parquet, and the faults of those that Python has no value for (bytes that are no UTF-8)."""
    try:
        return column.to_pylist(), {}
    except Exception:  # noqa: BLE001 # whatever it is, it is asked again cell by cell
        values, faults = [], {}
        for index, cell in enumerate(column):
            try:
                values.append(cell.as_py())
            except Exception as error:  # noqa: BLE001 # this is where cells come in
                values.append(None)
                faults[index] = f"{type(error).__name__}: {error}"[:_NO_TEXT]
        return values, faults
