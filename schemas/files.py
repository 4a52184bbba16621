"""Reading files from outside. Every broken file ends in an `InputError` that names it."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from irpipe.pipeline.errors import InputError, did_you_mean

Cells = dict[str | None, Any]  # a CSV row: text by column, surplus cells under None
_MAX_CSV_FIELD = 1 << 24  # characters; the library's own limit is 131,072


def is_text(value: object) -> bool:
    """Whether a value is a string that can be written as UTF-8 (JSON can spell half a character)."""
    try:
        return isinstance(value, str) and value.encode("utf-8") is not None
    except UnicodeEncodeError:
        return False


@contextmanager
def open_text(path: Path) -> Iterator[IO[str]]:
    """A UTF-8 text file, with or without a byte-order mark.

    Raises:
        InputError: it is missing, a folder, or not UTF-8.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield file
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}", where=str(path)) from None
    except (FileNotFoundError, IsADirectoryError) as error:
        raise InputError(f"{path} cannot be read: {error.strerror}", where=str(path)) from None


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
        return json.loads(text), None
    except (ValueError, RecursionError):
        return None, text[:80]


def read_json(path: Path) -> Any:
    """A whole JSON file.

    Raises:
        InputError: it is not JSON.
    """
    with open_text(path) as file:
        try:
            return json.load(file)
        except (json.JSONDecodeError, RecursionError) as error:
            raise InputError(f"{path} is not JSON: {error}", where=str(path)) from None


def read_csv(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, Cells]]:
    """The number (from 0) and the cells by column of every row; surplus cells are under None.

    Raises:
        InputError: an expected column is missing, or the file is no CSV.
    """
    csv.field_size_limit(_MAX_CSV_FIELD)
    with open_text(path) as file:
        try:
            reader = csv.DictReader(file)
            check_columns(list(reader.fieldnames or ()), columns, str(path))
            yield from enumerate(reader)
        except csv.Error as error:
            raise InputError(f"{path} is not CSV: {error}", where=str(path)) from None


def check_columns(present: Sequence[str], columns: Sequence[str], where: str) -> None:
    """Every expected column must be present.

    Raises:
        InputError: a column is missing; names it and the most similar present one.
    """
    for name in columns:
        if name not in present:
            raise InputError(f"there is no column {name!r}{did_you_mean(name, present)}", where=where)
        if list(present).count(name) > 1:
            raise InputError(f"the column {name!r} is there twice", where=where)


def open_parquet(path: Path) -> Any:
    """A Parquet file.

    Raises:
        InputError: it is missing, truncated, or no Parquet.
    """
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} is not a readable Parquet file: {error}", where=str(path)) from None


def read_batches(
    path: Path, columns: Sequence[str], batch_size: int = 1 << 16, row_groups: Sequence[int] | None = None
) -> Iterator[Any]:
    """Some columns of a Parquet file (or of some row groups), a batch at a time; `image.path` is one field of a struct.

    Raises:
        InputError: a column is missing, or the file is damaged.
    """
    file = open_parquet(path)
    names = file.schema_arrow.names
    check_columns(names, [name if name in names else name.partition(".")[0] for name in columns], str(path))
    batches = file.iter_batches(batch_size=batch_size, columns=list(columns), row_groups=row_groups)
    while True:
        try:
            batch = next(batches, None)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{path} is damaged: {error}", where=str(path)) from None
        if batch is None:
            return
        yield batch
