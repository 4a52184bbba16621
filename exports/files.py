"""The Parquet files of an exported table, and annotators without names."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

MOST_BYTES = 4_500_000_000  # of a file, after which there is another; with its last row group it stays below 5 GB


class Numbered:
    """Annotators by number, in the order in which they are met: the same in all tables of an export."""

    def __init__(self) -> None:
        self._numbers: dict[str, str] = {}

    def __call__(self, rows: Any) -> Any:
        """Rows whose annotators have numbers for names."""
        for column in ("annotator", "label", "detail"):
            if column in rows.column_names:
                rows = self._without_names(rows, column)
        return rows

    def _without_names(self, rows: Any, column: str) -> Any:
        """Rows without the names in a column: labels are names where the part says so; details of rejected rows may hold any."""
        at = rows.schema.get_field_index(column)
        if column == "detail" and "reason" in rows.column_names:
            return rows.set_column(at, rows.schema.field(at), pa.nulls(len(rows), rows.schema.field(at).type))
        if column == "detail" or (column == "label" and "part" not in rows.column_names):
            return rows
        parts = rows["part"].to_pylist() if column == "label" else ["annotator"] * len(rows)
        names = rows[column].to_pylist()
        numbers = [self._number(name) if part == "annotator" else name for name, part in zip(names, parts, strict=True)]
        return rows.set_column(at, rows.schema.field(at), pa.array(numbers, rows.schema.field(at).type))

    def _number(self, name: str | None) -> str | None:
        return None if name is None else self._numbers.setdefault(name, f"annotator-{len(self._numbers):04}")


class SplitFiles:
    """The files of one split, each of at most some bytes: what is larger is slow to load, and servers refuse it."""

    def __init__(self, folder: Path, name: str, schema: Any) -> None:
        self._folder, self._name, self._schema = folder, name, schema
        self._number = 0
        self._file: Any = None
        self._writer: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def write(self, rows: Any) -> None:
        """Append rows as a row group."""
        if self._writer is None:
            self._folder.mkdir(exist_ok=True)
            self._file = (self._folder / f"{self._name}-{self._number:05}.parquet").open("wb")
            self._writer = pq.ParquetWriter(self._file, self._schema, compression="zstd")
        self._writer.write_table(rows, row_group_size=len(rows))
        if self._file.tell() >= MOST_BYTES:
            self._close()
            self._number += 1

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._file.close()
            self._writer = None
