"""The work of `import-images`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from irpipe.pipeline.shards import put_in_place
from irpipe.pipeline.stage import Context, Report, Rows
from irpipe.pipeline.store import Artifact
from irpipe.schemas.images import IMAGES, ROWS_PER_SHARD
from irpipe.schemas.rejected import Rejections
from irpipe.stages.import_images import ImportImagesConfig
from irpipe.stages.import_images.layouts import LAYOUTS
from irpipe.stages.import_images.selection import (
    ImageToImport,
    annotated_images,
    by_location,
    choose,
    existing_images,
    of_one_name,
    selected_texts,
    without_images,
)
from irpipe.stages.import_images.shards import Checked, Checker, ImageWriter, KeptImage, read_checked
from irpipe.stages.import_images.sources import AMBIGUOUS, Location, cells_of, described, is_parquet

CheckedByLocation = Mapping[Location, tuple[Location, Checked]]
"""By requested location: where the image was read, and the check's result."""


def run(config: ImportImagesConfig, inputs: Mapping[str, Artifact], out: Path, context: Context) -> Report:
    root, rejections = context.sources["image_root"][0], Rejections(config.max_rejected, str(config.image_root))
    images, metrics = images_to_import(config, inputs, root, rejections, context)
    read, locations = len(images) + len(rejections), by_location(images, images)
    checked = check_images(config, locations, root, context)
    usable = list(good_rows(checked, locations, images, rejections))
    if config.layout != "annotated":
        digests = {location: image.digest for location, (_, image) in checked.items()}
        usable = of_one_name(usable, images, digests, rejections)
        usable = list(chain.from_iterable(by_location(images, sorted(choose(usable, images, config, rejections))).values()))
    kept_images = [KeptImage(*checked[images[row].location], images[row]) for row in usable]
    rejections.check(read, len(kept_images))
    write(config, kept_images, root, out, context)
    per_prompt = Counter(row.image.prompt_id for row in kept_images)
    metrics |= {
        "images": len(kept_images),
        "prompts": len(per_prompt),
        "files": len(locations),
        "turned_by_exif": sum(row.checked.turned for row in kept_images),
        "rejected_for": rejections.counts(),
    }
    return Report(Rows(read, len(kept_images), rejections.write(out)), metrics)


def images_to_import(
    config: ImportImagesConfig, inputs: Mapping[str, Artifact], root: Path, rejections: Rejections, context: Context
) -> tuple[dict[int, ImageToImport], dict[str, Any]]:
    """The images to import, by row, and figures."""
    if config.layout == "annotated":
        return annotated_images(inputs["annotations"]), {}
    texts = selected_texts(inputs["selected-prompts"])
    with context.progress("listing", None, "images") as bar:
        images = existing_images(LAYOUTS[config.layout](root), texts, config, rejections, bar)
    return images, without_images(texts, images)


def check_images(
    config: ImportImagesConfig, locations: Mapping[Location, Sequence[int]], root: Path, context: Context
) -> CheckedByLocation:
    """Decode the image of every location once, those in Parquet first."""
    cells = cells_of(root, locations.keys()) if config.layout == "annotated" else {}
    in_parquet = sorted(
        ((cell, path) for path, of_path in cells.items() for cell in of_path),
        key=lambda read: (read[0].file, read[0].row, read[0].column),
    )
    outside = (
        [] if config.layout == "annotated" and is_parquet(root) else [location for location in locations if location not in cells]
    )
    reads: list[tuple[Location, Location]] = [*in_parquet, *((location, location) for location in outside)]
    shards = context.map(
        Checker(root, config.max_bytes, config.max_pixels),
        {name: [location for location, _ in part] for name, part in in_parts(reads, ".parquet")},
        "decoding",
        "images",
        size=len,
        processes=config.num_processes,
        executor=config.executor,
    )
    checked: dict[Location, tuple[Location, Checked]] = {}
    for (location, given), image in zip(reads, chain.from_iterable(map(read_checked, shards)), strict=True):
        before = checked.get(given)
        if before is None or before[1].fault == "empty":  # a cell without bytes gives way to a later one that has some
            checked.pop(given, None)
            checked[given] = location, image
        elif image.fault is None and before[1].fault is None and image.digest != before[1].digest:
            checked[given] = (
                location,
                Checked(fault=AMBIGUOUS, detail=f"{described(before[0], root)} and {described(location, root)}"),
            )
    return checked | {location: (location, Checked(fault="missing")) for location in locations if location not in checked}


def in_parts(rows: Sequence[Any], ending: str = "") -> Iterator[tuple[str, Sequence[Any]]]:
    """The rows of each shard, with the shard's name."""
    for number, start in enumerate(range(0, len(rows), ROWS_PER_SHARD)):
        yield f"{number:05}{ending}", rows[start : start + ROWS_PER_SHARD]


def good_rows(
    checked: CheckedByLocation,
    locations: Mapping[Location, Sequence[int]],
    images: Mapping[int, ImageToImport],
    rejections: Rejections,
) -> Iterator[int]:
    """Rows whose image can be used; the others are rejected."""
    for location, (_, image) in checked.items():
        for row in locations[location]:
            if image.fault is None:
                yield row
            else:
                detail = f": {image.detail}" if image.detail else ""
                rejections.refuse(row, image.fault, f"{images[row].path}{detail}")


def write(config: ImportImagesConfig, images: Sequence[KeptImage], root: Path, out: Path, context: Context) -> None:
    """The table `images`. The bytes are read again, since memory could not hold them all."""
    shards = context.map(
        ImageWriter(root, config.max_bytes),
        dict(in_parts(images)),
        "writing",
        "images",
        size=len,
        processes=config.num_processes,
        executor=config.executor,
    )
    (out / IMAGES.name).mkdir()
    for shard in shards:
        put_in_place(shard / IMAGES.name / "00000.parquet", out / IMAGES.name / f"{shard.name}.parquet")
