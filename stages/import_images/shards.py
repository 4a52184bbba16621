"""The two maps of import-images: checking every image, then writing the kept ones."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, field
from itertools import groupby, islice
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, UnidentifiedImageError

from irpipe.models.pictures import is_turned, of_8_bits
from irpipe.pipeline.cpus import threads
from irpipe.pipeline.errors import InputError
from irpipe.schemas.images import ImageShards, image_row
from irpipe.stages.import_images.selection import ImageToImport
from irpipe.stages.import_images.sources import Fetched, Location, Zips, fetch

_BLOCK = 64  # images in memory at once
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")


@dataclass(frozen=True)
class Checked:
    """The result of checking an image: its properties, or its fault.

    Attributes:
        turned: its EXIF orientation says that people saw it turned. Reward models take it as it is stored, as published.
    """

    digest: str = ""
    width: int = 0
    height: int = 0
    format: str = ""
    fault: str | None = None
    detail: str | None = None
    turned: bool = False


_CHECKED = pa.schema(
    [
        ("digest", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("format", pa.string()),
        ("fault", pa.string()),
        ("detail", pa.string()),
        ("turned", pa.bool_()),
    ]
)


@dataclass(frozen=True)
class Checker:
    """Decodes images and writes the results, one row per image."""

    root: Path
    max_bytes: int
    max_pixels: int
    zips: Zips = field(default_factory=Zips, repr=False, compare=False)

    def __call__(self, locations: Sequence[Location], draft: Path) -> None:
        fetched = fetch(self.root, locations, self.max_bytes, self.zips)
        rows = [astuple(row) for row in checked(fetched, self.max_pixels)]
        pq.write_table(pa.table(list(map(list, zip(*rows, strict=True))), schema=_CHECKED), draft)


def read_checked(shard: Path) -> list[Checked]:
    """The results in a finished shard."""
    return [Checked(**row) for row in pq.read_table(shard, partitioning=None).to_pylist()]


def checked(fetched: Iterable[Fetched], max_pixels: int) -> Iterator[Checked]:
    """Decode images, a few at a time, in order."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # our own limit is checked before anything is decoded
    images = iter(fetched)
    try:
        with ThreadPoolExecutor(threads()) as pool:
            while block := list(islice(images, _BLOCK)):
                yield from pool.map(lambda image: check(image, max_pixels), block)
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def check(fetched: Fetched, max_pixels: int) -> Checked:
    """Whether an image can be decoded whole, within the limit of pixels."""
    if fetched.fault is not None:
        return Checked(fault=fetched.fault)
    if not fetched.data:
        return Checked(fault="empty")
    try:
        with Image.open(io.BytesIO(fetched.data), formats=_FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                return Checked(fault="too many pixels")
            image.load()
            kind, turned = image.format or "", is_turned(image)
            of_8_bits(image)
    except UnidentifiedImageError:
        return Checked(fault="no image of a known format")
    except InputError as error:
        return Checked(fault=error.what)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 # damaged bytes make decoders raise anything; this is where they come in
        return Checked(fault=f"cannot be decoded: {error}"[:120])
    return Checked(hashlib.sha256(fetched.data).hexdigest(), width, height, kind, turned=turned)


class KeptImage(NamedTuple):
    """A kept image: where its bytes are, the check's result, and its ids."""

    location: Location
    checked: Checked
    image: ImageToImport


@dataclass(frozen=True)
class ImageWriter:
    """Writes images into a folder as the table `images`; rows of one location are together.

    Raises:
        InputError: an image has changed since it was checked.
    """

    root: Path
    max_bytes: int
    zips: Zips = field(default_factory=Zips, repr=False, compare=False)

    def __call__(self, images: Sequence[KeptImage], draft: Path) -> None:
        locations = [(location, list(rows)) for location, rows in groupby(images, key=lambda row: row.location)]
        with ImageShards(draft) as shards:
            for (_, rows), fetched in zip(
                locations, fetch(self.root, [location for location, _ in locations], self.max_bytes, self.zips), strict=True
            ):
                digest = hashlib.sha256(fetched.data).hexdigest()
                for _, checked_image, image in rows:
                    if checked_image.digest != digest:
                        raise InputError(f"{image.path} changed while it was read", fix="run again")
                    size = checked_image.width, checked_image.height
                    shards.append(
                        image_row(
                            image.image_id,
                            image.prompt_id,
                            fetched.data,
                            image.path,
                            digest,
                            size,
                            checked_image.format,
                            **image.columns,
                        )
                    )
