"""Split prompts into train, validation and test, with related prompts in one split.

Reads: the annotations, or the selected prompts where the recipe has no annotations, or what select-images chose; where the
    annotations were made from them, the selected prompts and the prompts' vectors (near-duplicates) too; with `use_images` the
    images.
Writes: the table `prompt_splits`.
Paper: ImageReward, section 4.1 (8,000 / 412 / 466 prompts).
Deviates: prompts that are equal, near-duplicates or share an image go to one split; the paper cuts by prompt. Splits of the
    source are kept; where it has prompts to train on and none to validate on, as HPS v1 does, the validation split comes of them.
Cost: O(prompts) and, with vectors, 2 n^2 d operations for n prompts of d numbers; with `use_images` memory O(images).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from pydantic import Field

from irpipe.pipeline.stage import Config, First, Stage, setting


class SplitPromptsConfig(Config):
    source: Literal["auto", "annotations", "selected-prompts", "images"] = setting(
        "auto",
        meaning="Whose prompts are split. auto: those of the annotations if the recipe has any, else the selected ones. images:"
        " those of the images that select-images chose, with its test prompts.",
    )
    use_images: bool = setting(False, meaning="Read the images too: prompts with an image of equal bytes share a split.")
    near_duplicate: Annotated[float, Field(gt=0, le=1)] | Literal["off"] = setting(
        0.95, meaning="Prompts whose vectors' cosine is at least this share a split, where vectors exist; or off."
    )
    validation_share: float = setting(
        0.046, ge=0, lt=1, meaning="Share of prompts in the validation split.", source="412 of 8,878 (ImageRewardDB)"
    )
    test_share: float = setting(
        0.052, ge=0, lt=1, meaning="Share of prompts in the test split.", source="466 of 8,878 (ImageReward 4.1)"
    )
    seed: int = setting(0, ge=0, meaning="Seed of the split.")

    def faults(self) -> Iterator[str]:
        yield from super().faults()
        if self.validation_share + self.test_share >= 1:
            yield "validation_share and test_share leave nothing to train on"


def _reads(config: SplitPromptsConfig) -> Sequence[str | First]:
    source = First(("annotations", "selected-prompts")) if config.source == "auto" else config.source
    return (source, "images") if config.use_images and source != "images" else (source,)


STAGE = Stage(
    name="split-prompts",
    version=3,
    reads=_reads,
    reads_if_upstream=("selected-prompts", "embeddings"),
    writes="splits",
    determinism="bitwise",
    config=SplitPromptsConfig,
    run="irpipe.stages.split_prompts.run:run",
)
