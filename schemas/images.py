"""Images in Parquet shards of encoded bytes, in the layout of Hugging Face's `Image` feature."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from irpipe.schemas.annotations import image_id
from irpipe.schemas.table import Column, Table, TableWriter

ROWS_PER_SHARD = 1024
ROWS_PER_GROUP = 64  # small, so that one image is read without its thousand neighbours


@dataclass(frozen=True)
class ImageTable(Table):
    """A table whose column `image` `datasets` reads as images."""

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
        Column("generator", pa.string(), "The model that made it, where that is known.", nullable=True),
        Column("revision", pa.string(), "The model's commit, or the digest of its folder.", nullable=True),
        Column("seed", pa.uint64(), "Seed of its noise.", nullable=True),
        Column("settings", pa.string(), "How it was made: steps, guidance, scheduler, ..., as JSON.", nullable=True),
        Column("fault", pa.string(), "Why nobody should judge it: blackened, not finite, constant.", nullable=True),
    ),
)
OVERLONG_PROMPTS = Table(
    "overlong_prompts",
    "Prompts of which a text encoder took only the beginning.",
    (
        Column("prompt_id", pa.uint64(), "Id of the prompt's text."),
        Column("tokens", pa.int32(), "Its length, with the tokens at both ends."),
        Column("lost", pa.string(), "The part that was cut off."),
    ),
)
_MAYBE = ("generator", "revision", "seed", "settings", "fault")


def image_row(
    image_id: int, prompt_id: int, data: bytes, path: str, digest: str, size: tuple[int, int], kind: str, **origin: Any
) -> dict[str, Any]:
    """A row of the table `images`; unknown values are null."""
    width, height = size
    row = {
        "image_id": image_id,
        "prompt_id": prompt_id,
        "image": {"bytes": data, "path": path},
        "image_digest": digest,
        "width": width,
        "height": height,
        "format": kind,
    }
    return row | dict.fromkeys(_MAYBE) | origin


def encoded_row(picture: NDArray[np.uint8], prompt_id: int, path: str, **origin: Any) -> dict[str, Any]:
    """A row of the table `images` from a picture (height, width, 3), encoded as PNG; `origin` as of `image_row`."""
    buffer, image = io.BytesIO(), Image.fromarray(picture)
    image.save(buffer, "PNG")
    data = buffer.getvalue()
    digest = hashlib.sha256(data).hexdigest()
    return image_row(image_id(prompt_id, path), prompt_id, data, path, digest, image.size, "PNG", **origin)


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


class RowGroup(NamedTuple):
    """A row group: its file, its number in the file, and its number of rows."""

    file: Path
    number: int
    rows: int


def row_groups(files: Sequence[Path]) -> list[RowGroup]:
    """The row groups of a table `images`, from the files' metadata alone."""
    groups = []
    for file in files:
        metadata = pq.read_metadata(file)
        groups += [RowGroup(file, number, metadata.row_group(number).num_rows) for number in range(metadata.num_row_groups)]
    return groups


def in_shards(groups: Sequence[RowGroup], rows: int) -> Iterator[list[RowGroup]]:
    """Shards of consecutive row groups with at most this many rows; a larger group is a shard alone."""
    part: list[RowGroup] = []
    for group in groups:
        if part and sum(member.rows for member in part) + group.rows > rows:
            yield part
            part = []
        part.append(group)
    if part:
        yield part


class ImageReader:
    """Reads rows of `images` by image id, each row group once and one at a time.

    Cost: opening reads the ids, 8 bytes per image; reading n images reads at most n row groups of `ROWS_PER_GROUP`.

    Args:
        files: of the table.
        groups: the row groups that are read; None for all.
    """

    def __init__(self, files: Sequence[Path] = (), groups: Sequence[RowGroup] | None = None) -> None:
        self.groups = row_groups(files) if groups is None else list(groups)
        ids = [np.empty(0, dtype=np.uint64)]
        for file, together in groupby(self.groups, key=lambda group: group.file):
            with pq.ParquetFile(file) as shard:
                ids += [shard.read_row_group(group.number, ["image_id"])["image_id"].to_numpy() for group in together]
        self.ids = np.concatenate(ids)
        self._group_of = np.repeat(np.arange(len(self.groups)), [group.rows for group in self.groups])

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, columns: Sequence[str], image_ids: Iterable[int] | None = None) -> Iterator[Mapping[str, Any]]:
        """Rows in the table's order, all of them or those of some ids; unknown ids are ignored.

        Args:
            columns: of `IMAGES`; `image_id` always comes with them.
        """
        ids = None if image_ids is None else np.fromiter(image_ids, dtype=np.uint64)
        keep = np.ones(len(self.ids), dtype=bool) if ids is None else np.isin(self.ids, ids)
        names = ["image_id", *(name for name in columns if name != "image_id")]
        for number in np.unique(self._group_of[keep]).tolist():
            group = self.groups[number]
            with pq.ParquetFile(group.file) as shard:
                table = shard.read_row_group(group.number, names)
            yield from table.filter(pa.array(keep[self._group_of == number])).to_pylist()
