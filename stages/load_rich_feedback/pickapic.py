"""Images and prompts of Pick-a-Pic, by uid: RichHF-18K has neither."""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from irpipe.pipeline.stage import Context
from irpipe.schemas.discovery import data_files
from irpipe.schemas.files import check_columns, open_parquet

_SIDES = ("0", "1")


@dataclass(frozen=True)
class Picture:
    """An image of Pick-a-Pic: its uid, its prompt, and its encoded bytes; None in the sets without images."""

    uid: str
    caption: str
    data: bytes | None


def find_pictures(path: Path, wanted: Container[str], context: Context) -> Iterator[Picture]:
    """The images with some uids, each once, in the order of the files. Bytes are read only of row groups that have one.

    Raises:
        InputError: a file is no Parquet, or of other columns.
    """
    files = data_files(path, (".parquet",), "load-rich-feedback.pickapic").files if path.is_dir() else [path]
    seen: set[str] = set()
    with context.progress("reading Pick-a-Pic", len(files), "files") as bar:
        for file in files:
            parquet = open_parquet(file)
            present = parquet.schema_arrow.names
            check_columns(present, ["caption", *(f"image_{side}_uid" for side in _SIDES)], str(file))
            for group in range(parquet.num_row_groups):
                for picture in _of_group(parquet, group, present, wanted):
                    if picture.uid not in seen:
                        seen.add(picture.uid)
                        yield picture
            bar.advance(1)


def _of_group(parquet: pq.ParquetFile, group: int, present: list[str], wanted: Container[str]) -> Iterator[Picture]:
    names = parquet.read_row_group(group, ["caption", *(f"image_{side}_uid" for side in _SIDES)]).to_pydict()
    keep = {side: [uid in wanted for uid in names[f"image_{side}_uid"]] for side in _SIDES}
    for side in _SIDES:
        if not any(keep[side]):
            continue
        jpg: list[Any] = [None] * sum(keep[side])
        if f"jpg_{side}" in present:
            jpg = parquet.read_row_group(group, [f"jpg_{side}"])[f"jpg_{side}"].filter(pa.array(keep[side])).to_pylist()
        rows = [row for row, kept in enumerate(keep[side]) if kept]
        for row, data in zip(rows, jpg, strict=True):
            caption = names["caption"][row]
            if isinstance(caption, str):
                yield Picture(names[f"image_{side}_uid"][row], caption, data or None)
