"""Draw the implausible parts of images anew: a predicted heatmap is the mask, and the most plausible of several tries is kept.

Reads: images, the predictions of a RAHF on them, that RAHF, and the prompts (of splits, annotations or the selected ones).
Writes: `images`, of which those with an empty mask are as they were; the tables `inpainted` (which came from which, and what the
    RAHF says of both) and `masks`; and `rejected`.
Paper: RichHF, section 5.3: threshold and dilation of the implausibility heatmap, several candidates, the highest plausibility.
Deviates: threshold and dilation are not given there. Without an inpainting model a plain generator is sampled within the mask.
Cost: `candidates` * `strength` * `num_steps` network evaluations per image with a mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from irpipe.models.plugins import plugins
from irpipe.models.published import NO_GENERATOR, STABLE_DIFFUSION
from irpipe.pipeline.shards import MapConfig
from irpipe.pipeline.stage import First, Stage, setting


class InpaintImagesConfig(MapConfig):
    model: str = setting(
        STABLE_DIFFUSION,
        role="model",
        check="irpipe.models.classes:inpainting_generator",
        meaning="What draws: an inpainting pipeline of diffusers, or Stable Diffusion 1 or 2, or SDXL, sampled within the mask.",
    )
    reward_model: str | None = setting(
        None, role="model", check=NO_GENERATOR, meaning="A RAHF that judges the tries, instead of the recipe's."
    )
    threshold: float = setting(0.1, ge=0, lt=1, meaning="Pixels of the implausibility heatmap above it are drawn anew.")
    dilation: float = setting(0.05, ge=0, le=1, meaning="How far the mask grows, as a share of the image's height.")
    moved: bool = setting(
        False,
        role="neutral",
        meaning="A control: the masks are moved by half of the image, so that they lie where nothing is wrong.",
    )
    strength: float = setting(0.65, gt=0, le=1, meaning="Share of the denoising steps that are done again.")
    candidates: int = setting(3, ge=1, le=64, meaning="Tries per image.", source="RichHF 5.3: several")
    keep_original: bool = setting(True, meaning="Whether an image stays as it is where no try is more plausible.")
    num_steps: int = setting(40, ge=2, le=1000, meaning="Denoising steps of a whole sampling.")
    guidance_scale: float = setting(7.5, ge=1, le=100, meaning="Classifier-free guidance. 1: none.")
    seed: int = setting(0, ge=0, meaning="Seed of the tries.")
    dtype: Literal["float32", "bfloat16", "float16"] = setting("float32", meaning="Precision of the arithmetic.")
    batch_size: int = setting(16, ge=1, le=1024, role="execution", meaning="Images drawn at a time.")
    device: str = setting("auto", role="execution", meaning="Where the models run: auto, cpu, cuda, cuda:1, mps.")
    max_rejected: float = setting(
        0.05,
        ge=0,
        le=1,
        role="execution",
        meaning="Share of images (of at least 100) that cannot be drawn on that stops the run.",
    )


def _reads(config: InpaintImagesConfig) -> Sequence[str | First]:
    texts = First(("splits", "annotations", "selected-prompts"))
    return ("images", "rich-predictions", texts, *(() if config.reward_model is not None else ("reward-model",)))


STAGE = Stage(
    name="inpaint-images",
    version=1,
    reads=_reads,
    writes="images",
    determinism="numeric",
    extra="tune",
    plugins=plugins,
    config=InpaintImagesConfig,
    run="irpipe.stages.inpaint_images.run:run",
)
