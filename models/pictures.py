"""Encoded images as arrays of one size, decoded in as many processes as there are cores.

Loads no torch: workers start fast.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import UnidentifiedImageError

from irpipe.pipeline.errors import InputError, StageError
from irpipe.pipeline.hashing import digest
from irpipe.pipeline.processes import end_with
from irpipe.pipeline.progress import size as shown_size
from irpipe.pipeline.store import write_durably
from irpipe.schemas.images import ImageReader

MOST_PIXELS = 1 << 27
_JOB = 256  # images a worker decodes before it reports: memory is O(_JOB) encoded images a worker
_FEW = 4096  # fewer are decoded here: workers would take longer to start
_MOST_WORKERS, _MOST_THREADS = 16, 4

Pictures = list[NDArray[np.uint8]]
"""Each (height, width, 3)."""


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
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Pillow.DecompressionBombError) as error:
        raise InputError(f"no image: {error}" if data else "no image: 0 bytes") from None
    return image


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


@dataclass(frozen=True)
class PictureFile:
    """Pictures of one size in one file, (n, size, size, 3) uint8.

    Read by plain reads: pages of a memory map would count as this process's memory.
    """

    path: Path
    size: int

    @property
    def bytes_each(self) -> int:
        return self.size * self.size * 3

    def read(self, rows: Sequence[int] | NDArray[np.int64]) -> NDArray[np.uint8]:
        """(len(rows), size, size, 3)."""
        pictures = np.empty((len(rows), self.size, self.size, 3), dtype=np.uint8)
        with self.path.open("rb", buffering=0) as file:
            for picture, row in zip(pictures, rows, strict=True):
                file.seek(int(row) * self.bytes_each)
                if file.readinto(picture.data.cast("B")) != self.bytes_each:
                    raise StageError(f"{self.path.name} ends before picture {row}", fix="run the same command again")
        return pictures


def decode_all(
    files: Sequence[Path],
    image_ids: NDArray[np.uint64],
    size: int,
    folder: Path,
    workers: int | None,
    advance: Callable[[int], None],
) -> tuple[PictureFile, dict[int, str]]:
    """Decode images into one file, row i for image i. What an earlier attempt finished is used again.

    Cost: n * size^2 * 3 bytes of disk; memory O(256) encoded images a worker, whatever n is.

    Args:
        files: shards of the table `images`.
        image_ids: (n,) distinct.
        folder: where the file goes.
        workers: processes; None for one a core, and none for few images.

    Returns:
        the file, and why some images have no picture there, by id.

    Raises:
        StageError: the disk has not enough room.
    """
    pictures = PictureFile(folder / "pictures.uint8", size)
    card = folder / "pictures.json"
    what = digest({"size": size, "ids": [int(identity) for identity in image_ids]})
    if card.is_file() and (told := json.loads(card.read_text(encoding="utf-8")))["of"] == what:
        advance(len(image_ids))
        return pictures, {int(identity): reason for identity, reason in told["faults"].items()}
    card.unlink(missing_ok=True)
    need_room(pictures.path, len(image_ids) * pictures.bytes_each, "decoded images")
    with pictures.path.open("wb") as file:
        file.truncate(len(image_ids) * pictures.bytes_each)
    # Jobs are of images that lie together, whatever order they are wanted in.
    there = ImageReader(files).ids
    row_of = {int(identity): row for row, identity in enumerate(image_ids)}
    lying = [int(identity) for identity in there if int(identity) in row_of]
    faults = dict.fromkeys(row_of.keys() - set(lying), "image missing")
    jobs = [[(identity, row_of[identity]) for identity in lying[start : start + _JOB]] for start in range(0, len(lying), _JOB)]
    if workers is None:
        workers = min(_MOST_WORKERS, os.cpu_count() or 1) if len(lying) >= _FEW else 0
    if workers > 1:
        with ProcessPoolExecutor(
            workers, get_context("spawn"), initializer=_begin, initargs=(files, pictures, os.getpid())
        ) as pool:
            for job, bad in zip(jobs, pool.map(_decode_job, jobs), strict=True):
                faults |= bad
                advance(len(job))
    else:
        _open(files, pictures)
        for job in jobs:
            faults |= _decode_job(job)
            advance(len(job))
    with pictures.path.open("rb") as file:
        os.fsync(file.fileno())
    write_durably(card, json.dumps({"of": what, "faults": faults}))
    return pictures, faults


_source: tuple[ImageReader, PictureFile] | None = None


def _begin(files: Sequence[Path], pictures: PictureFile, parent: int) -> None:
    """Set a worker up: its source, and its end when its parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the first one ends the others
    end_with(parent)
    _open(files, pictures)


def _open(files: Sequence[Path], pictures: PictureFile) -> None:
    global _source  # noqa: PLW0603 # a pool's process has no other place to keep what it opened
    _source = ImageReader(files), pictures


def _decode_job(job: Sequence[tuple[int, int]]) -> dict[int, str]:
    """Decode some images into their rows. Returns why some could not be."""
    assert _source is not None
    reader, pictures = _source
    row_of = dict(job)
    faults: dict[int, str] = {}
    with pictures.path.open("r+b", buffering=0) as file:
        for row in reader.rows(["image", "fault"], row_of):
            identity = row["image_id"]
            try:
                if row["fault"] is not None:
                    raise InputError(row["fault"])
                picture = resize_and_crop(decode(row["image"]["bytes"]), pictures.size)
            except InputError as error:
                faults[identity] = error.what
                continue
            os.pwrite(file.fileno(), np.ascontiguousarray(picture).data, row_of[identity] * pictures.bytes_each)
    return faults


def put_in_place(source: Path, target: Path) -> None:
    """Put a finished file where it goes, as a link where the disk has them: a kill meanwhile loses nothing."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def need_room(path: Path, wanted: int, what: str) -> None:
    """Stop before work begins on a file that the disk has no room for. What lies there already of it counts.

    Raises:
        StageError: it has not.
    """
    folder = path.parent
    free = shutil.disk_usage(folder).free
    there = path.stat().st_blocks * 512 if path.exists() else 0
    if wanted > free + there:
        raise StageError(
            f"{shown_size(wanted)} of {what} do not fit on the disk, which has {shown_size(free)} free",
            where=str(folder),
            fix="irpipe gc, or put the store on a larger disk: store = ... in irpipe.toml",
        )


def decode_stream(
    files: Sequence[Path], start: int, chunk: int, size: int | None, workers: int | None, wanted: NDArray[np.bool_] | None = None
) -> Iterator[tuple[int, Pictures, dict[int, str]]]:
    """Decode all images in the order they lie in, a chunk at a time, the next ones while one is worked on.

    Memory: O(chunk * size^2) for each worker.

    Args:
        start: the first image's place; a multiple of `chunk`.
        size: of the squares; None for pictures as they are.
        wanted: (n,) which images somebody wants; chunks without any are passed over.

    Yields:
        the place of a chunk's first image, its pictures (height, width, 3), and why some are black, by their place in the chunk.
    """
    count = len(ImageReader(files))
    places = [place for place in range(start, count, chunk) if wanted is None or wanted[place : place + chunk].any()]
    if workers is None:
        workers = min(_MOST_WORKERS, os.cpu_count() or 1) if count - start >= _FEW else 0
    if workers < 2:
        _open(files, PictureFile(Path(), size or 0))
        threads = max(1, min(_MOST_THREADS, os.cpu_count() or 1))  # decoding lets other threads go on
        with ThreadPoolExecutor(threads) as pool:
            yield from _ahead(pool, places, chunk, threads)
        return
    with ProcessPoolExecutor(
        workers, get_context("spawn"), initializer=_begin, initargs=(files, PictureFile(Path(), size or 0), os.getpid())
    ) as processes:
        yield from _ahead(processes, places, chunk, workers)


def _ahead(pool: Executor, places: Sequence[int], chunk: int, ahead: int) -> Iterator[tuple[int, Pictures, dict[int, str]]]:
    waiting: deque[tuple[int, Future[tuple[Pictures, dict[int, str]]]]] = deque()
    for place in places:
        waiting.append((place, pool.submit(_decode_chunk, place, chunk)))
        if len(waiting) > ahead:
            first, job = waiting.popleft()
            yield first, *job.result()
    for first, job in waiting:
        yield first, *job.result()


def _decode_chunk(place: int, chunk: int) -> tuple[Pictures, dict[int, str]]:
    assert _source is not None
    reader, target = _source
    pictures: Pictures = []
    faults = {}
    for number, row in enumerate(reader.rows(["image", "fault"], reader.ids[place : place + chunk].tolist())):
        try:
            if row["fault"] is not None:
                raise InputError(row["fault"])
            image = decode(row["image"]["bytes"])
            pictures.append(resize_and_crop(image, target.size) if target.size else np.asarray(image.convert("RGB")))
        except InputError as error:
            faults[number] = error.what
            pictures.append(np.zeros((target.size or 1, target.size or 1, 3), dtype=np.uint8))
    return pictures, faults
