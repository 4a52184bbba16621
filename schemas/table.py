"""Parquet tables whose bytes depend on their rows only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from irpipe.schemas.files import check_columns

ROW_GROUP = 1 << 17  # rows, unless a table says otherwise; fixed, so that the file does not depend on how rows arrive


@dataclass(frozen=True)
class Column:
    """A column: name, Arrow type, meaning, whether it may be null, and whether its values are nearly all distinct."""

    name: str
    type: Any
    doc: str
    nullable: bool = False
    distinct: bool = False


@dataclass(frozen=True)
class Table:
    """A table's name, meaning and columns."""

    name: str
    doc: str
    columns: tuple[Column, ...]

    @property
    def schema(self) -> Any:
        """The Arrow schema, each column's meaning in its metadata."""
        return pa.schema([pa.field(column.name, column.type, column.nullable, {"doc": column.doc}) for column in self.columns])

    @property
    def distinct(self) -> list[str]:
        """Columns whose values are nearly all distinct."""
        return [column.name for column in self.columns if column.distinct]

    def write(self, folder: Path, columns: Mapping[str, Any]) -> int:
        """Write the whole table into a folder at once. Returns its number of rows."""
        with self.writer(folder / f"{self.name}.parquet") as writer:
            writer.append(columns)
        return writer.rows

    @contextmanager
    def writer(self, path: Path, row_group: int = ROW_GROUP) -> Iterator[TableWriter]:
        """A writer for one Parquet file, fed in pieces of any size; memory holds one row group."""
        path.parent.mkdir(parents=True, exist_ok=True)
        writer = TableWriter(path, self.schema, row_group, self.distinct)
        try:
            yield writer
            writer.flush()
        finally:
            writer.close()

    def read(self, files: Sequence[Path], columns: Sequence[str] | None = None) -> Any:
        """Rows of this table as an Arrow table.

        Raises:
            InputError: a file has other columns.
        """
        for file in files:
            check_columns(pq.read_schema(file).names, columns or [column.name for column in self.columns], str(file))
        return pa.concat_tables([pq.read_table(file, columns=columns, partitioning=None) for file in files])


class TableWriter:
    """Gathers rows and writes them in row groups of a fixed size."""

    def __init__(self, path: Path, schema: Any, row_group: int, distinct: Sequence[str]) -> None:
        self._schema = schema
        self._row_group = row_group
        # Distinct row ids are hashes: compressing or indexing them costs time and saves nothing.
        self._writer = pq.ParquetWriter(
            path,
            schema,
            version="2.6",
            compression={field.name: "none" if field.name in distinct else "zstd" for field in schema},
            use_dictionary=[field.name for field in schema if field.name not in distinct],
            write_statistics=True,
        )
        # Encoding runs in a thread while the next rows are made: it is a quarter of the time of building ten million pairs.
        self._thread = ThreadPoolExecutor(1)
        self._writing: Future[None] | None = None
        self._pending: list[Any] = []
        self._waiting = 0
        self.rows = 0

    def append(self, columns: Mapping[str, Any]) -> None:
        """Add rows, column by column (arrays, lists or Arrow arrays of one length)."""
        arrays = [_array(columns[field.name], field.type) for field in self._schema]
        self._add(pa.Table.from_arrays(arrays, schema=self._schema))

    def _add(self, table: Any) -> None:
        self._pending.append(table)
        self._waiting += table.num_rows
        self.rows += table.num_rows
        if self._waiting >= self._row_group:
            rows = pa.concat_tables(self._pending)
            count = rows.num_rows - rows.num_rows % self._row_group
            self._write(rows.slice(0, count))
            self._pending, self._waiting = [rows.slice(count)], rows.num_rows - count

    def _write(self, rows: Any) -> None:
        self._wait()
        self._writing = self._thread.submit(self._writer.write_table, rows, row_group_size=self._row_group)

    def _wait(self) -> None:
        if self._writing is not None:
            self._writing.result()
            self._writing = None

    def flush(self) -> None:
        """Write the remaining rows. An empty table still has its schema."""
        if self._waiting:
            self._write(pa.concat_tables(self._pending))
            self._pending, self._waiting = [], 0
        self._wait()

    def close(self) -> None:
        self._thread.shutdown()
        self._writer.close()


def _array(values: Any, kind: Any) -> Any:
    if isinstance(values, pa.Array | pa.ChunkedArray):
        return values if values.type == kind else values.cast(kind)
    return pa.array(values, type=kind)
