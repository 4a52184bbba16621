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
from irpipe.stages.import_images.shards import Checked, Checker, ImageWriter, Kept, read_checked
from irpipe.stages.import_images.sources import Place, cells_of, is_parquet
from irpipe.stages.import_images.wanted import (
    Wanted,
    annotated_images,
    by_place,
    choose,
    existing_images,
    selected_texts,
    without_images,
)

Looks = Mapping[Place, tuple[Place, Checked]]
"""By place as it was asked for: where the image was read, and what it is."""


def run(config: ImportImagesConfig, inputs: Mapping[str, Artifact], out: Path, context: Context) -> Report:
    root, rejections = context.sources["image_root"][0], Rejections(config.max_rejected, str(config.image_root))
    wanted, metrics = wanted_images(config, inputs, root, rejections, context)
    read, places = len(wanted) + len(rejections), by_place(wanted, wanted)
    looks = look_at(config, places, root, context)
    good = list(good_rows(looks, places, wanted, rejections))
    if config.layout != "annotated":
        good = list(chain.from_iterable(by_place(wanted, sorted(choose(good, wanted, config, rejections))).values()))
    kept = [Kept(*looks[wanted[row].place], wanted[row]) for row in good]
    rejections.check(read, len(kept))
    write(config, kept, root, out, context)
    per_prompt = Counter(row.wanted.prompt_id for row in kept)
    metrics |= {"images": len(kept), "prompts": len(per_prompt), "files": len(places), "rejected_for": rejections.counts()}
    return Report(Rows(read, len(kept), rejections.write(out)), metrics)


def wanted_images(
    config: ImportImagesConfig, inputs: Mapping[str, Artifact], root: Path, rejections: Rejections, context: Context
) -> tuple[dict[int, Wanted], dict[str, Any]]:
    """The images to import, by row, and figures."""
    if config.layout == "annotated":
        return annotated_images(inputs["annotations"]), {}
    texts = selected_texts(inputs["selected-prompts"])
    with context.progress("listing", None, "images") as bar:
        wanted = existing_images(LAYOUTS[config.layout](root), texts, config, rejections, bar)
    return wanted, without_images(texts, wanted)


def look_at(config: ImportImagesConfig, places: Mapping[Place, Sequence[int]], root: Path, context: Context) -> Looks:
    """Decode the image of every place once, those in Parquet first."""
    cells = cells_of(root, places.keys()) if config.layout == "annotated" else {}
    in_parquet = sorted(
        ((cell, path) for path, found in cells.items() for cell in found),
        key=lambda read: (read[0].file, read[0].row, read[0].column),
    )
    outside = [] if config.layout == "annotated" and is_parquet(root) else [place for place in places if place not in cells]
    reads: list[tuple[Place, Place]] = [*in_parquet, *((place, place) for place in outside)]
    made = context.map(
        Checker(root, config.max_bytes, config.max_pixels),
        {name: [place for place, _ in part] for name, part in in_parts(reads, ".parquet")},
        "decoding",
        "images",
        size=len,
        processes=config.num_processes,
        executor=config.executor,
    )
    looks: dict[Place, tuple[Place, Checked]] = {}
    for (place, asked), image in zip(reads, chain.from_iterable(map(read_checked, made)), strict=True):
        if asked not in looks or looks[asked][1].fault == "empty":  # a cell without bytes gives way to a later one that has some
            looks.pop(asked, None)
            looks[asked] = place, image
    return looks | {place: (place, Checked(fault="missing")) for place in places if place not in looks}


def in_parts(rows: Sequence[Any], ending: str = "") -> Iterator[tuple[str, Sequence[Any]]]:
    """Rows of one shard after the other, with the shard's name."""
    for number, start in enumerate(range(0, len(rows), ROWS_PER_SHARD)):
        yield f"{number:05}{ending}", rows[start : start + ROWS_PER_SHARD]


def good_rows(
    looks: Looks, places: Mapping[Place, Sequence[int]], wanted: Mapping[int, Wanted], rejections: Rejections
) -> Iterator[int]:
    """Every row whose image can be used; the others are refused."""
    for place, (_, image) in looks.items():
        for row in places[place]:
            if image.fault is None:
                yield row
            else:
                rejections.refuse(row, image.fault, wanted[row].path)


def write(config: ImportImagesConfig, kept: Sequence[Kept], root: Path, out: Path, context: Context) -> None:
    """The table `images`. The bytes are read again: to hold them since they were decoded would take all memory."""
    made = context.map(
        ImageWriter(root, config.max_bytes),
        dict(in_parts(kept)),
        "writing",
        "images",
        size=len,
        processes=config.num_processes,
        executor=config.executor,
    )
    (out / IMAGES.name).mkdir()
    for shard in made:
        put_in_place(shard / IMAGES.name / "00000.parquet", out / IMAGES.name / f"{shard.name}.parquet")
