"""The work of `import-images`."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from irpipe.pipeline.stage import Context, Report, Rows
from irpipe.pipeline.store import Artifact
from irpipe.schemas.annotations import ANNOTATION_IMAGES
from irpipe.schemas.images import ImageShards, image_row
from irpipe.schemas.rejected import Rejections
from irpipe.stages.import_images import ImportImagesConfig
from irpipe.stages.import_images.sources import Found, fetch

_BLOCK = 64  # images in memory at once
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")


@dataclass(frozen=True)
class Checked:
    """An image that was looked at: its bytes and measures, or why it cannot be used."""

    path: str
    data: bytes = b""
    digest: str = ""
    width: int = 0
    height: int = 0
    format: str = ""
    fault: str | None = None


def run(config: ImportImagesConfig, inputs: Mapping[str, Artifact], out: Path, context: Context) -> Report:
    wanted = ANNOTATION_IMAGES.read(inputs["annotations"].table("annotation_images"))
    places: dict[str, list[int]] = {}
    for place, path in enumerate(wanted["path"].to_pylist()):
        places.setdefault(path, []).append(place)
    ids = wanted["image_id"].to_pylist(), wanted["prompt_id"].to_pylist()
    rejections = Rejections(config.max_rejected, str(config.image_root))
    kept = 0
    found = fetch(context.sources["image_root"][0], list(places), config.max_bytes)
    with context.progress("decoding", len(places), "images") as bar, ImageShards(out) as shards:
        for image in checked(found, config.max_pixels, config.num_workers):
            for place in places[image.path]:
                if image.fault is not None:
                    rejections.refuse(place, image.fault, image.path)
                else:
                    size = (image.width, image.height)
                    shards.append(
                        image_row(ids[0][place], ids[1][place], image.data, image.path, image.digest, size, image.format)
                    )
                    kept += 1
            bar.advance(1)
    rejections.check(wanted.num_rows, kept)
    rejected = rejections.write(out)
    metrics = {"images": kept, "files": len(places), "rejected_for": rejections.counts()}
    return Report(Rows(wanted.num_rows, kept, rejected), metrics)


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
