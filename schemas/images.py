"""Images in Parquet shards of encoded bytes, in the layout of Hugging Face's `Image` feature."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa

from irpipe.schemas.table import Column, Table, TableWriter

ROWS_PER_SHARD = 1024
ROWS_PER_GROUP = 64  # small, so that one image is read without its thousand neighbours


@dataclass(frozen=True)
class ImageTable(Table):
    """A table that `datasets`, pandas and DuckDB open as images."""

    @property
    def schema(self) -> Any:
        features = {column.name: _feature(column) for column in self.columns}
        return super().schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}}, sort_keys=True)})


def _feature(column: Column) -> dict[str, str]:
    return {"_type": "Image"} if column.name == "image" else {"_type": "Value", "dtype": str(column.type)}


IMAGES = ImageTable(
    "images",
    "Images as they were encoded.",
    (
        Column("image_id", pa.uint64(), "Id of the image: of its prompt and the path it was given by.", distinct=True),
        Column("prompt_id", pa.uint64(), "Id of the prompt's text."),
        Column("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]), "Encoded bytes, and the given path."),
        Column("image_digest", pa.string(), "SHA-256 of the encoded bytes, 64 hex digits."),
        Column("width", pa.int32(), "Pixels."),
        Column("height", pa.int32(), "Pixels."),
        Column("format", pa.string(), "PNG, JPEG, WEBP, ..."),
    ),
)


class ImageShards:
    """Writes rows of `images` into `images/00000.parquet`, `images/00001.parquet`, ...; memory holds one row group."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / IMAGES.name
        self._rows: list[dict[str, Any]] = []
        self._shard = ExitStack()
        self._writer: TableWriter | None = None
        self._shards = 0

    def __enter__(self) -> Self:
        self._open_shard()
        return self

    def append(self, row: dict[str, Any]) -> None:
        """Add an image."""
        self._rows.append(row)
        if len(self._rows) == ROWS_PER_GROUP:
            if self._writer is None or self._writer.rows == ROWS_PER_SHARD:
                self._open_shard()
            self._write()

    def _open_shard(self) -> None:
        self._shard.close()
        path = self._folder / f"{self._shards:05}.parquet"
        self._writer = self._shard.enter_context(IMAGES.writer(path, ROWS_PER_GROUP))
        self._shards += 1

    def _write(self) -> None:
        assert self._writer is not None
        self._writer.append({column.name: [row[column.name] for row in self._rows] for column in IMAGES.columns})
        self._rows.clear()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._shard:
            if kind is None and self._rows:
                if self._writer is not None and self._writer.rows == ROWS_PER_SHARD:
                    self._open_shard()
                self._write()
