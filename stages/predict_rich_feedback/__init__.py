"""Predict rich feedback on images by a RAHF: heatmaps, misaligned words and scores, as annotators would give them.

Reads: images and their prompts (of splits, annotations or the selected ones), or those that came with feedback; and a RAHF or one
    of its baselines.
Writes: the tables `rich_feedback` and `heatmaps`, as `load-rich-feedback` does, and `rejected`. What a baseline does not give is
    not there: words are null, and a CLIP has no heatmaps.
Paper: RichHF, section 4.
Deviates: words are decoded by force (`irpipe.models.reward.rahf`): no other words than the prompt's can come out.
Cost: one pass of the vision tower and the encoder per image (augmented prompt: seven of the encoder), a few of the decoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from irpipe.models.plugins import plugins
from irpipe.models.published import NO_GENERATOR
from irpipe.pipeline.shards import MapConfig
from irpipe.pipeline.stage import First, Stage, setting


class PredictRichFeedbackConfig(MapConfig):
    images: Literal["recipe", "feedback"] = setting(
        "recipe",
        meaning="Which images. recipe: those of its stages. feedback: those that came with rich feedback, with its prompts.",
    )
    reward_model: str | None = setting(
        None, role="model", check=NO_GENERATOR, meaning="A RAHF or a baseline, instead of the recipe's: a folder, or a name."
    )
    map_size: int = setting(
        512, ge=8, le=4096, meaning="Longest side of the heatmaps; those of smaller images have the image's size."
    )
    dtype: Literal["float32", "bfloat16", "float16"] = setting("float32", meaning="Precision of the arithmetic.")
    batch_size: int = setting(64, ge=1, le=4096, role="execution", meaning="Images per forward pass.")
    device: str = setting("auto", role="execution", meaning="Where the model runs: auto, cpu, cuda, cuda:1, mps.")
    max_rejected: float = setting(
        0.05, ge=0, le=1, role="execution", meaning="Share of images (of at least 100) without a prediction that stops the run."
    )


def _reads(config: PredictRichFeedbackConfig) -> Sequence[str | First]:
    texts = First(("splits", "annotations", "selected-prompts"))
    return (
        *(("images", texts) if config.images == "recipe" else ("rich-feedback",)),
        *(() if config.reward_model is not None else ("reward-model",)),
    )


STAGE = Stage(
    name="predict-rich-feedback",
    version=2,
    reads=_reads,
    writes="rich-predictions",
    determinism="numeric",
    extra="train",
    plugins=plugins,
    config=PredictRichFeedbackConfig,
    run="irpipe.stages.predict_rich_feedback.run:run",
)
