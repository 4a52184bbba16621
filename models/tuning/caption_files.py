"""Captioned images of a local data set, as `datasets` knows them: an image folder with its metadata, or Parquet."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from PIL import Image as Pillow
from PIL import ImageOps

from irpipe.models.pictures import decode, is_turned
from irpipe.pipeline.errors import InputError
from irpipe.schemas.discovery import files_below, splits_of
from irpipe.schemas.files import cells, check_columns, is_text, open_parquet, read_batches, read_csv, read_jsonl, read_rows
from irpipe.schemas.prompts import clean

_CHUNK = 64


@dataclass(frozen=True)
class LocalCaptions:
    """Captions of a local data set, and where its pictures are.

    Attributes:
        open: gives the encoded pictures in order.
    """

    captions: list[str]
    open: Callable[[], Iterator[bytes | None]]


def local_captions(path: Path, most: int) -> LocalCaptions:
    """Captioned images of a local data set: an image folder with its metadata, or Parquet, both as `datasets` knows them.

    Where names tell splits, only those of `train` are read. A picture may have several captions, in a list or in several rows.

    Raises:
        InputError: it is none, has no captions, or names pictures outside of it.
    """
    if path.suffix.lower() in (".jsonl", ".csv"):
        raise InputError(
            f"{path.name} lists pictures, and does not hold them",
            where="pretraining_data",
            fix="name the folder that holds it and the pictures",
        )
    if path.is_file():
        return _of_parquet([path], most)
    metadata = [file for file in files_below(path, (".jsonl", ".csv")) if file.stem == "metadata"]
    tables = files_below(path, (".parquet",))
    if not (metadata or tables):
        raise InputError(
            f"{path} holds no captioned images",
            where="pretraining_data",
            expected="metadata.jsonl or metadata.csv with file_name and text, or Parquet with image and text",
        )
    return _of_folder(_for_training(metadata, path), path, most) if metadata else _of_parquet(_for_training(tables, path), most)


def _for_training(files: Sequence[Path], root: Path) -> list[Path]:
    """The files of the split `train`, or all where no name tells a split.

    Raises:
        InputError: some files tell a split and others do not, or none is of `train`.
    """
    splits = splits_of(files, root)
    kept = [file for file, split in splits.items() if split in (None, "train")]
    if not kept:
        names = ", ".join(str(file.relative_to(root)) for file in splits)
        raise InputError(
            f"no captioned images are for training: {names}", where=str(root), expected="a file or folder named train"
        )
    return kept


def _of_parquet(files: Sequence[Path], most: int) -> LocalCaptions:
    rows: list[tuple[Path, int, str]] = []
    for file in files:
        check_columns(open_parquet(file).schema_arrow.names, ["image", "text"], str(file))
        for row, values, fault in read_rows(file, ["text"]):
            texts = _texts_of(None if fault is not None else values["text"], f"row {row} of {file}")
            rows += [(file, row, text) for text in texts]
            if len(rows) >= most:
                break
    rows = rows[:most]
    return LocalCaptions(_some([text for _, _, text in rows], files[0]), lambda: _pictures_of(rows))


def _pictures_of(rows: Sequence[tuple[Path, int, str]]) -> Iterator[bytes | None]:
    """The encoded picture of each row, (file, row, caption); rows of a file are in order, and several may have one picture."""
    for file, of_file in groupby(rows, key=lambda row: row[0]):
        wanted = [row for _, row, _ in of_file]
        images = (image for batch in read_batches(file, ["image"], _CHUNK) for image in cells(batch["image"])[0])
        places = iter(wanted)
        place = next(places, None)
        for row, image in enumerate(images):
            while place == row:
                yield image["bytes"] if isinstance(image, dict) else image
                place = next(places, None)
            if place is None:
                break


def _of_folder(files: Sequence[Path], root: Path, most: int) -> LocalCaptions:
    named: list[tuple[Path, str]] = []
    for file in files:
        for row, values in _metadata(file):
            where = f"row {row} of {file}"
            if not isinstance(values, dict) or not is_text(values.get("file_name")):
                raise InputError("a row names no picture", where=where, expected="file_name and text in every row")
            if None in values:
                raise InputError("a row has more cells than columns", where=where, fix="put texts with commas into quotes")
            picture = file.parent / values["file_name"]
            named += [(picture, text) for text in _texts_of(values.get("text"), where)]
    named = named[:most]
    for name in dict.fromkeys(name for name, _ in named):
        if not name.resolve().is_relative_to(root.resolve()):
            raise InputError(f"{name} lies outside of the data set", where=str(root))
        if not name.is_file():
            raise InputError(f"there is no {name}", where=str(root))
    return LocalCaptions(_some([text for _, text in named], root), lambda: (name.read_bytes() for name, _ in named))


def _metadata(file: Path) -> Iterator[tuple[int, Any]]:
    if file.suffix.lower() == ".csv":
        return read_csv(file, ["file_name", "text"])
    return ((row, value) for row, value, _ in read_jsonl(file))


def _texts_of(value: Any, where: str) -> list[str]:
    """The captions of a picture: a text, or a list of them.

    Raises:
        InputError: there is none, or one is no text.
    """
    texts = value if isinstance(value, list) and value else [value]
    if not all(is_text(text) and clean(text) for text in texts):
        raise InputError(f"{where} has no caption", where=where, expected="a text for every picture, or a list of them")
    return list(texts)


def _some(captions: list[str], where: Path) -> list[str]:
    if not captions:
        raise InputError("there are no captioned images", where=str(where))
    return captions


def decoded(data: Iterator[bytes | None]) -> Iterator[Pillow.Image]:
    """Pictures of encoded bytes.

    Raises:
        InputError: names the row of one that is none.
    """
    for row, one in enumerate(data):
        try:
            picture = decode(one or b"")
            # As `datasets` gives it to published scripts, and as those who captioned it saw it.
            yield ImageOps.exif_transpose(picture) if is_turned(picture) else picture
        except InputError as error:
            raise InputError(f"row {row} of the captioned images: {error.what}", fix="drop that row from the data set") from None
