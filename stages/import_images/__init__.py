"""Check annotated images, or existing images of the selected prompts, and store their bytes in Parquet.

Reads: the annotations, or the selected prompts where `layout` names how existing images are stored; and the images below
    `image_root`, in place: files, zips, Parquet with images, DiffusionDB and ImageRewardDB as published.
Writes: the tables `images` (shards of 1,024) and `rejected`.
Paper: ImageReward, section 2.1 (4-9 images per prompt, from DiffusionDB).
Deviates: every image is decoded once here, so that no later stage meets a broken one. The paper does not say which
    images it took of a prompt with more than nine; here a hash of their paths decides.
Cost: one decode and two reads per image; memory O(64 images) per process, and O(1) per name; a kill costs at most one shard
    of 1,024 images per process.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from irpipe.pipeline.shards import MapConfig
from irpipe.pipeline.stage import FilePath, Stage, setting


class ImportImagesConfig(MapConfig):
    image_root: FilePath = setting(
        role="external",
        meaning="Folder (or zip, or Parquet file) that holds the images; the annotations' paths are relative to it.",
    )
    layout: Literal["annotated", "folder", "table", "diffusiondb", "imagerewarddb", "parquet"] = setting(
        "annotated",
        role="neutral",
        meaning="annotated: the images that the annotations name. Otherwise: existing images of the selected prompts, and how"
        " they are stored in image_root: a folder per prompt, a table of prompts and paths, a published set, or Parquet.",
    )
    min_images: int = setting(
        4, ge=1, meaning="Prompts with fewer good images are dropped.", source="ImageReward 2.1: 4-9 images per prompt"
    )
    max_images: int = setting(
        9,
        ge=1,
        meaning="Of more good images per prompt, those with the lowest hash of their path are kept.",
        source="ImageReward 2.1: 4-9 images per prompt",
    )
    max_pixels: int = setting(50_000_000, ge=1, meaning="Larger images are rejected unread.")
    max_bytes: int = setting(100_000_000, ge=1, meaning="Larger files are rejected unread, also inside zips.")
    max_rejected: float = setting(
        0.05, ge=0, le=1, role="execution", meaning="Share of bad images (of at least 100) that stops the run."
    )

    def faults(self) -> Iterator[str]:
        yield from super().faults()
        if self.min_images > self.max_images:
            yield f"min_images = {self.min_images} is more than max_images = {self.max_images}"

    def unused(self) -> dict[str, str]:
        why = "layout = 'annotated' takes every image that was annotated"
        return super().unused() | (dict.fromkeys(("min_images", "max_images"), why) if self.layout == "annotated" else {})


def _reads(config: ImportImagesConfig) -> Sequence[str]:
    return ("annotations",) if config.layout == "annotated" else ("selected-prompts",)


STAGE = Stage(
    name="import-images",
    version=3,
    reads=_reads,
    writes="images",
    determinism="bitwise",
    config=ImportImagesConfig,
    run="irpipe.stages.import_images.run:run",
)
