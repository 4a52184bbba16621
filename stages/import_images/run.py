"""The work of `import-images`."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from irpipe.pipeline.errors import InputError
from irpipe.pipeline.stage import Context, Report, Rows
from irpipe.pipeline.store import Artifact
from irpipe.schemas.images import ImageShards, image_row
from irpipe.schemas.rejected import Rejections
from irpipe.stages.import_images import ImportImagesConfig
from irpipe.stages.import_images.layouts import LAYOUTS, Fetch
from irpipe.stages.import_images.sources import Found, fetch
from irpipe.stages.import_images.wanted import (
    Wanted,
    annotated_images,
    by_place,
    choose,
    existing_images,
    selected_texts,
    without_images,
)

_BLOCK = 64  # images in memory at once
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
Places = Mapping[str, Sequence[int]]  # the rows of each place below the root


@dataclass(frozen=True)
class Checked:
    """An image that was looked at: where it lies, its bytes and measures, or why it cannot be used."""

    place: str
    data: bytes = b""
    digest: str = ""
    width: int = 0
    height: int = 0
    format: str = ""
    fault: str | None = None


def run(config: ImportImagesConfig, inputs: Mapping[str, Artifact], out: Path, context: Context) -> Report:
    root, rejections = context.sources["image_root"][0], Rejections(config.max_rejected, str(config.image_root))
    fetched: Fetch = fetch
    metrics: dict[str, Any] = {}
    if config.layout == "annotated":
        wanted = annotated_images(inputs["annotations"])
    else:
        listed, fetched = LAYOUTS[config.layout]
        texts = selected_texts(inputs["selected-prompts"])
        with context.progress("listing", None, "images") as bar:
            wanted = existing_images(listed(root), texts, config, rejections, bar)
        metrics = without_images(texts, wanted)
    read, places = len(wanted) + len(rejections), by_place(wanted, wanted)
    images = checked(fetched(root, list(places), config.max_bytes), config.max_pixels, config.num_workers)
    good = good_images(images, places, wanted, rejections, context)
    if config.layout != "annotated":
        seen = {row: replace(image, data=b"") for row, image in good}
        chosen = by_place(wanted, sorted(choose(seen, wanted, config, rejections)))
        good = again(fetched(root, list(chosen), config.max_bytes), chosen, seen, context)
    kept = write(good, wanted, out)
    rejections.check(read, kept.total())
    metrics |= {"images": kept.total(), "prompts": len(kept), "files": len(places), "rejected_for": rejections.counts()}
    return Report(Rows(read, kept.total(), rejections.write(out)), metrics)


def good_images(
    images: Iterable[Checked], places: Places, wanted: Mapping[int, Wanted], rejections: Rejections, context: Context
) -> Iterator[tuple[int, Checked]]:
    """Every row whose image can be used, with the image; the others are refused."""
    with context.progress("decoding", len(places), "images") as bar:
        for image in images:
            for row in places[image.place]:
                if image.fault is None:
                    yield row, image
                else:
                    rejections.refuse(row, image.fault, wanted[row].path)
            bar.advance(1)


def again(found: Iterable[Found], places: Places, seen: Mapping[int, Checked], context: Context) -> Iterator[tuple[int, Checked]]:
    """The chosen of the images that were seen, with their bytes: to hold them meanwhile would take all memory.

    Raises:
        InputError: an image is another than the one that was decoded.
    """
    with context.progress("writing", len(places), "images") as bar:
        for image in found:
            digest = hashlib.sha256(image.data).hexdigest()
            for row in places[image.path]:
                if seen[row].digest != digest:
                    raise InputError(f"{image.path} changed while it was read", fix="run again")
                yield row, replace(seen[row], data=image.data)
            bar.advance(1)


def write(images: Iterable[tuple[int, Checked]], wanted: Mapping[int, Wanted], out: Path) -> Counter[int]:
    """Write the table `images`. Returns how many each prompt has."""
    kept: Counter[int] = Counter()
    with ImageShards(out) as shards:
        for row, image in images:
            of, size = wanted[row], (image.width, image.height)
            shards.append(image_row(of.image_id, of.prompt_id, image.data, of.path, image.digest, size, image.format, **of.known))
            kept[of.prompt_id] += 1
    return kept


def checked(found: Iterable[Found], max_pixels: int, num_workers: int) -> Iterator[Checked]:
    """Decode each image once, a few at a time, in order."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # our own limit is checked before anything is decoded
    images = iter(found)
    try:
        with ThreadPoolExecutor(num_workers) as pool:
            while block := list(islice(images, _BLOCK)):
                yield from pool.map(lambda image: check(image, max_pixels), block)
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def check(found: Found, max_pixels: int) -> Checked:
    """Whether an image can be decoded whole, within the limit of pixels."""
    if found.fault is not None:
        return Checked(found.path, fault=found.fault)
    if not found.data:
        return Checked(found.path, fault="empty")
    try:
        with Image.open(io.BytesIO(found.data), formats=_FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                return Checked(found.path, fault="too many pixels")
            image.load()
            kind = image.format or ""
    except UnidentifiedImageError:
        return Checked(found.path, fault="no image of a known format")
    except (OSError, ValueError, SyntaxError, EOFError, IndexError) as error:  # what Pillow's decoders raise
        return Checked(found.path, fault=f"cannot be decoded: {error}"[:120])
    digest = hashlib.sha256(found.data).hexdigest()
    return Checked(found.path, found.data, digest, width, height, kind)
