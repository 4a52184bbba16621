"""100,000 images of 40 kB written as shards and read back by id, against a plain copy of as many bytes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.common import peak_in_child, show, timed
from irpipe.schemas.images import ImageReader, ImageShards, image_row


class Size(NamedTuple):
    """How many images, and the bytes of each."""

    images: int
    bytes: int


FULL, TINY = Size(100_000, 40_000), Size(300, 400)


def main(folder: Path, size: Size) -> None:
    (written, write), peak = peak_in_child(_write, folder, size)
    show(
        "written",
        rate=f"{size.images * size.bytes / 1e6 / write:,.0f} MB/s",
        images=f"{size.images / write:,.0f}/s",
        peak=f"{peak:.2f} GB",
    )
    source, copy = folder / "images", folder / "copy"
    copied, _ = timed(lambda: (shutil.copytree(source, copy), os.sync()))
    show("plain copy of the shards", rate=f"{written / 1e6 / copied:,.0f} MB/s", writing_takes=f"{write / copied:.2f}x its time")
    shutil.rmtree(copy)
    plain, _ = timed(lambda: _read_plainly(source))
    (found, read), peak = peak_in_child(_read_all, source, size)
    assert found == size.images
    show(
        "read by id, all",
        rate=f"{size.images * size.bytes / 1e6 / read:,.0f} MB/s",
        plain_read=f"{read / plain:.2f}x its time",
        peak=f"{peak:.2f} GB",
    )
    (found, some), peak = peak_in_child(_read_some, source, size)
    show("read by id, 1 of 100", images=f"{found / some:,.0f}/s", peak=f"{peak:.2f} GB")


def _write(folder: Path, size: Size) -> tuple[int, float]:
    rng = np.random.default_rng(0)
    pool = rng.bytes(size.bytes * 64)

    def write() -> None:
        with ImageShards(folder) as shards:
            for number in range(size.images):
                start = (number * 7919) % (len(pool) - size.bytes)
                data = pool[start : start + size.bytes]
                shards.append(image_row(_id(number), number // 6, data, f"{number}.png", "0" * 64, (512, 512), "PNG"))
        os.sync()

    seconds, _ = timed(write)
    return sum(path.stat().st_size for path in (folder / "images").iterdir()), seconds


def _id(number: int) -> int:
    return (number * 0x9E3779B97F4A7C15) % (1 << 64)


def _reader(source: Path) -> ImageReader:
    return ImageReader(sorted(source.iterdir()))


def _count(rows: Any, size: Size) -> int:
    return sum(len(row["image"]["bytes"]) == size.bytes for row in rows)


def _read_all(source: Path, size: Size) -> tuple[int, float]:
    ids = [_id(number) for number in range(size.images)]
    seconds, found = timed(lambda: _count(_reader(source).rows(["image"], ids), size))
    return found, seconds


def _read_some(source: Path, size: Size) -> tuple[int, float]:
    ids = [_id(number) for number in range(0, size.images, 100)]
    seconds, found = timed(lambda: _count(_reader(source).rows(["image"], ids), size))
    return found, seconds


def _read_plainly(source: Path) -> None:
    for path in source.iterdir():
        with path.open("rb") as file:
            while file.read(1 << 22):
                pass
