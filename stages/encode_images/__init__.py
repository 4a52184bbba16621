"""Keep what the frozen part of a reward model's vision tower makes of each image, so that training computes it once.

Reads: the images.
Writes: `features.bin`, (images, tokens, width) in rows, `features.json`, and the tables `image_features` and `rejected`.
Paper: ImageReward, section 4.1 (70 % of the layers fixed).
Deviates: the released code runs the frozen blocks in every step, with stochastic depth; here they add no noise.
Cost: one pass of the frozen blocks an image; disk images * (1 + patches) * width * 2 bytes in bfloat16 (0.4 MB at the paper's
    size); pays from the second epoch on. A kill costs at most 256 images.
"""

from __future__ import annotations

from typing import Literal

from irpipe.models.published import BLIP
from irpipe.pipeline.stage import Config, Stage, setting


class EncodeImagesConfig(Config):
    model: str = setting(
        BLIP,
        role="model",
        meaning="The model that train-rm starts from.",
        source="ImageReward 3.1: BLIP",
    )
    image_size: int | None = setting(
        224,
        ge=8,
        le=1024,
        meaning="Pixels of the vision tower's square, as in train-rm. Unset: the model's own.",
        source="ImageReward: 224",
    )
    freeze_rate: float = setting(
        0.7, gt=0, le=1, meaning="Share of the blocks that stay, as in train-rm.", source="ImageReward 4.1"
    )
    dtype: Literal["bfloat16", "float32"] = setting("bfloat16", meaning="Precision on disk, and of the arithmetic on a GPU.")
    batch_size: int = setting(64, ge=1, le=4096, role="execution", meaning="Images a forward pass.")
    device: str = setting("auto", role="execution", meaning="Where it runs: auto, cpu, cuda, cuda:1, mps.")
    num_workers: int | None = setting(
        None, ge=1, le=256, role="execution", meaning="Threads that decode images. Unset: as many as this process computes with."
    )
    max_rejected: float = setting(
        0.05, ge=0, le=1, role="execution", meaning="Share of images (of at least 100) that do not decode that stops the run."
    )


STAGE = Stage(
    name="encode-images",
    version=1,
    reads=("images",),
    writes="image-features",
    determinism="numeric",
    extra="train",
    config=EncodeImagesConfig,
    run="irpipe.stages.encode_images.run:run",
)
