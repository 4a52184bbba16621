"""Check the annotated images and keep their bytes in Parquet.

Reads: the annotations, and the images below `image_root`, in place: files, zips, Parquet with images.
Writes: the tables `images` (shards of 1,024) and `rejected`.
Paper: ImageReward, section 2.1 (4-9 images a prompt).
Deviates: every image is decoded once here, so that no later stage meets a broken one.
Cost: one read and one decode an image; memory O(64 images), and O(1) a name.
"""

from __future__ import annotations

from irpipe.pipeline.stage import Config, FilePath, Stage, setting


class ImportImagesConfig(Config):
    image_root: FilePath = setting(
        role="external", meaning="Folder (or zip, or Parquet file) that the annotations' image paths are relative to."
    )
    max_pixels: int = setting(50_000_000, ge=1, meaning="Larger images are rejected unread.")
    max_bytes: int = setting(100_000_000, ge=1, meaning="Larger files are rejected unread, also inside zips.")
    max_rejected: float = setting(
        0.05, ge=0, le=1, role="execution", meaning="Share of bad images (of at least 100) that stops the run."
    )
    num_workers: int = setting(4, ge=1, le=256, role="execution", meaning="Threads that decode.")


STAGE = Stage(
    name="import-images",
    version=2,
    reads=("annotations",),
    writes="images",
    determinism="bitwise",
    config=ImportImagesConfig,
    run="irpipe.stages.import_images.run:run",
)
