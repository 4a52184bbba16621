"""Encoded images as arrays. Loads no torch: processes that decode start fast."""

from __future__ import annotations

import io
import json
import shutil
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL.ExifTags import Base

from irpipe.pipeline.cpus import threads, usable_cpus
from irpipe.pipeline.errors import InputError, StageError
from irpipe.pipeline.hashing import digest
from irpipe.pipeline.progress import size as shown_size
from irpipe.pipeline.stage import Context
from irpipe.schemas.images import ImageReader, RowGroup, in_shards

MOST_PIXELS = 1 << 27
ORIENTATION = Base.Orientation
_ROWS_PER_SHARD = 256
_FEW = 4096  # fewer are decoded in this process: others would take longer to start
_MOST_PROCESSES, _MOST_THREADS = 16, 16

Pictures = list[NDArray[np.uint8]]
"""Each (height, width, 3)."""
Fit = Literal["crop", "pad"]
"""How a picture becomes a square. crop: its shorter side is resized and the centre cropped. pad: its longer side is resized, and
the rest is black."""


def decode(data: bytes) -> Pillow.Image:
    """A whole decoded picture.

    Raises:
        InputError: it is none, is cut off, or is larger than 134 million pixels.
    """
    try:
        image = Pillow.open(io.BytesIO(data))
        if image.width * image.height > MOST_PIXELS:
            raise InputError(f"{image.width} x {image.height} pixels are more than {MOST_PIXELS:,}")
        image.load()
        return of_8_bits(image)
    except (InputError, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 # damaged bytes make decoders raise anything; this is where they come in
        raise InputError(f"no image: {error}"[:200] if data else "no image: 0 bytes") from None


def of_8_bits(image: Pillow.Image) -> Pillow.Image:
    """A picture whose values are 0 to 255: 16-bit grey is scaled. Pillow would clip it, so that all but the darkest is white.

    Raises:
        InputError: it holds numbers whose white is not known.
    """
    sixteen = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")
    if sixteen:
        return Pillow.fromarray((np.asarray(image).astype(np.float64) / 257).round().clip(0, 255).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise InputError(f"a picture of mode {image.mode}, whose white is not known", fix="save it with 8 bits per channel")
    return image


def is_turned(image: Pillow.Image) -> bool:
    """Whether a picture's EXIF orientation says that people see it turned or mirrored."""
    return image.getexif().get(ORIENTATION, 1) not in (0, 1)


def resized_size(width: int, height: int, size: int) -> tuple[int, int]:
    """Width and height once the shorter side is `size`, the longer one cut to a whole number as torchvision does."""
    other = int(size * max(width, height) / min(width, height))
    return (size, other) if width <= height else (other, size)


def crop_offset(width: int, height: int, size: int) -> tuple[int, int]:
    """Left and top of the central square."""
    return round((width - size) / 2), round((height - size) / 2)


def resize_and_crop(image: Pillow.Image, size: int) -> NDArray[np.uint8]:
    """(size, size, 3): the shorter side resized (bicubic), the centre cropped, then converted to RGB, as published."""
    if min(image.size) != size:
        image = image.resize(resized_size(*image.size, size), Pillow.Resampling.BICUBIC)
    left, top = crop_offset(*image.size, size)
    return np.asarray(image.crop((left, top, left + size, top + size)).convert("RGB"))


def resize_and_pad(image: Pillow.Image, size: int) -> NDArray[np.uint8]:
    """(size, size, 3): converted to RGB, the longer side resized (bicubic), the whole of it in the middle of a black square.

    HPS resizes numbers from 0 to 1 (`Preprocessing`); here they are rounded to 8 bits.
    """
    image = image.convert("RGB")
    if max(image.size) != size:
        scale = size / max(image.size)
        width, height = (max(1, round(side * scale)) for side in image.size)
        image = image.resize((width, height), Pillow.Resampling.BICUBIC)
    square = Pillow.new("RGB", (size, size))
    square.paste(image, ((size - image.width) // 2, (size - image.height) // 2))
    return np.asarray(square)


def fit_of(preprocessing: Any) -> Fit:
    """How a model's preprocessing makes squares; another package's may not say."""
    fit: Fit = getattr(preprocessing, "fit", "crop")
    return fit


def squared(image: Pillow.Image, size: int, fit: Fit) -> NDArray[np.uint8]:
    """(size, size, 3) of a picture."""
    return resize_and_crop(image, size) if fit == "crop" else resize_and_pad(image, size)


@dataclass(frozen=True)
class PictureFiles:
    """Decoded pictures of one size, in finished shards.

    Read by plain reads: pages of a memory map would count as this process's memory.

    Attributes:
        shards: folders with the pictures of some images.
        places: (n, 2) for each image the number of its shard and its place there; a negative one for an image without picture.
        size: of the squares.
    """

    shards: Sequence[Path]
    places: NDArray[np.int64]
    size: int

    def read(self, rows: Sequence[int] | NDArray[np.int64]) -> NDArray[np.uint8]:
        """(len(rows), size, size, 3)."""
        pictures = np.zeros((len(rows), self.size, self.size, 3), dtype=np.uint8)
        for picture, (shard, place) in zip(pictures, self.places[np.asarray(rows, dtype=np.int64)].tolist(), strict=True):
            if shard < 0:
                continue
            with (self.shards[shard] / _PICTURES).open("rb", buffering=0) as file:
                file.seek(place * picture.nbytes)
                if file.readinto(picture.data.cast("B")) != picture.nbytes:
                    raise StageError(f"{file.name} ends before picture {place}", fix="run the same command again")
        return pictures


_PICTURES, _FAULTS = "pictures.uint8", "faults.json"  # what a shard of decoded images holds


def decode_all(
    files: Sequence[Path], image_ids: NDArray[np.uint64], size: int, context: Context, workers: int | None, fit: Fit = "crop"
) -> tuple[PictureFiles, dict[int, str]]:
    """Decode images into shards of one size. What an earlier attempt finished is used again.

    Cost: n * size^2 * 3 bytes of disk; memory O(256) images per process and O(1) per image of `files`.

    Args:
        files: of the table `images`.
        image_ids: (n,) distinct.
        workers: processes; None for as many as may be used, or for this one where there are few images.

    Returns:
        the pictures, row i for image i, and why some images have none, by id.

    Raises:
        StageError: the disk has not enough room.
    """
    need_room(context.work / "decoding", len(image_ids) * size * size * 3, "decoded images")
    reader = ImageReader(files)
    # Images without faults may change from run to run: the shards are of these.
    which = digest({"size": size, "fit": fit, "ids": [int(identity) for identity in image_ids]})[:12]
    shards = {f"{which}-{number:05}": job for number, job in enumerate(_jobs(reader, image_ids))}
    if workers is None:
        workers = min(_MOST_PROCESSES, usable_cpus()) if len(image_ids) >= _FEW else 1
    made = context.map(
        Decoder(size, fit), shards, "decoding", "images", size=lambda job: len(job.image_ids), processes=max(1, workers)
    )
    row_of = {int(identity): row for row, identity in enumerate(image_ids)}
    places = np.full((len(image_ids), 2), -1, dtype=np.int64)
    faults: dict[int, str] = {}
    for number, (job, shard) in enumerate(zip(shards.values(), made, strict=True)):
        for place, identity in enumerate(job.image_ids.tolist()):
            places[row_of[identity]] = number, place
        told = json.loads((shard / _FAULTS).read_text(encoding="utf-8"))
        faults |= {int(identity): reason for identity, reason in told.items()}
    faults |= {identity: "image missing" for identity, row in row_of.items() if places[row, 0] < 0}
    return PictureFiles(made, places, size), faults


@dataclass(frozen=True)
class DecodingJob:
    """Images that lie together and are decoded together, in the order they lie in."""

    groups: list[RowGroup]
    image_ids: NDArray[np.uint64]


def _jobs(reader: ImageReader, image_ids: NDArray[np.uint64]) -> Iterator[DecodingJob]:
    wanted, start = np.isin(reader.ids, image_ids), 0
    for groups in in_shards(reader.groups, _ROWS_PER_SHARD):
        stop = start + sum(group.rows for group in groups)
        if wanted[start:stop].any():
            yield DecodingJob(groups, reader.ids[start:stop][wanted[start:stop]])
        start = stop


@dataclass(frozen=True)
class Decoder:
    """Writes the pictures of some images, (images, size, size, 3) uint8, and why some are black."""

    size: int
    fit: Fit

    def __call__(self, job: DecodingJob, draft: Path) -> None:
        draft.mkdir()
        faults: dict[int, str] = {}
        with (draft / _PICTURES).open("wb") as file:
            for row in ImageReader(groups=job.groups).rows(["image", "fault"], job.image_ids.tolist()):
                picture, fault = _decode_row(row, self.size, self.fit)
                file.write(np.ascontiguousarray(picture).data)
                if fault is not None:
                    faults[row["image_id"]] = fault
        (draft / _FAULTS).write_text(json.dumps(faults), encoding="utf-8")


def _decode_row(row: Mapping[str, Any], size: int | None, fit: Fit) -> tuple[NDArray[np.uint8], str | None]:
    """The picture of a row of `images`, (height, width, 3), or a black one and why."""
    try:
        if row["fault"] is not None:
            raise InputError(row["fault"])
        image = decode(row["image"]["bytes"])
        return (squared(image, size, fit) if size else np.asarray(image.convert("RGB"))), None
    except InputError as error:
        return np.zeros((size or 1, size or 1, 3), dtype=np.uint8), error.what


def need_room(path: Path, wanted: int, what: str) -> None:
    """Stop before work begins on a file or folder that the disk has no room for. What lies there already of it counts.

    Raises:
        StageError: it has not.
    """
    folder = path.parent
    free = shutil.disk_usage(folder).free
    there = sum(file.stat().st_blocks * 512 for file in (path, *path.rglob("*")) if file.is_file())
    if wanted > free + there:
        raise StageError(
            f"{shown_size(wanted)} of {what} do not fit on the disk, which has {shown_size(free)} free",
            where=str(folder),
            fix="irpipe gc, or put the store on a larger disk: store = ... in irpipe.toml",
        )


def decode_stream(
    reader: ImageReader,
    start: int,
    chunk: int,
    size: int | None,
    workers: int | None = None,
    wanted: NDArray[np.bool_] | None = None,
    fit: Fit = "crop",
) -> Iterator[tuple[int, Pictures, dict[int, str]]]:
    """Decode images in the order they lie in, a chunk at a time, the next ones while one is worked on.

    Memory: O(chunk * size^2) per thread.

    Args:
        start: the first image's place.
        size: of the squares, made as `fit` says; None for pictures as they are.
        workers: threads, which decode side by side; None for as many as this process computes with.
        wanted: (n,) which images somebody wants; chunks without any are passed over.

    Yields:
        the place of a chunk's first image, its pictures (height, width, 3), and why some are black, by their place in the chunk.
    """
    places = [place for place in range(start, len(reader), chunk) if wanted is None or wanted[place : place + chunk].any()]
    workers = min(_MOST_THREADS, threads()) if workers is None else workers
    waiting: deque[tuple[int, Future[tuple[Pictures, dict[int, str]]]]] = deque()
    with ThreadPoolExecutor(max(1, workers)) as pool:
        for place in places:
            waiting.append((place, pool.submit(_decode_chunk, reader, place, chunk, size, fit)))
            if len(waiting) > workers:
                first, job = waiting.popleft()
                yield first, *job.result()
        for first, job in waiting:
            yield first, *job.result()


def _decode_chunk(reader: ImageReader, place: int, chunk: int, size: int | None, fit: Fit) -> tuple[Pictures, dict[int, str]]:
    rows = reader.rows(["image", "fault"], reader.ids[place : place + chunk].tolist())
    decoded = [_decode_row(row, size, fit) for row in rows]
    return [picture for picture, _ in decoded], {number: fault for number, (_, fault) in enumerate(decoded) if fault is not None}
