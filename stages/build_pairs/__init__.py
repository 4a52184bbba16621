"""Make C(k, 2) preference pairs of every ranking, and split them without leaks.

Reads: the annotations; at hand also the prompts' vectors (near-duplicates); with `use_images` the images.
Writes: the tables `pairs`, `prompt_splits` and `rejected`.
Paper: ImageReward, section 3.1 (pairs of a ranking, ties left out) and 4.1 (8,000 / 412 / 466 prompts).
Deviates: prompts that are equal, near-duplicates or share an image go to one split; the paper cuts by prompt.
Cost: O(pairs) time, one pass (two with weighting = 'prompt'); memory O(prompts), with `use_images` O(images).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, Strict, model_validator

from irpipe.pipeline.stage import Config, Stage, setting

Label = Literal["intent_unclear", "sexual", "violent", "defames_groups", "personal_information"]
Problem = Literal[
    "repeated_generation", "body_problem", "too_blurred", "psychological_discomfort", "sexual", "violent", "defames_groups"
]


class BuildPairsConfig(Config):
    aggregate: Literal["none", "majority", "borda", "bradley-terry"] = setting(
        "none",
        meaning="What becomes of several rankings of the same images: none keeps each one's pairs; majority votes on every"
        " pair; borda ranks by mean rank; bradley-terry by fitted strength.",
        source="ImageReward has one annotator a prompt",
    )
    drop_labels: Annotated[tuple[Label, ...], Strict(False)] = setting(
        ("intent_unclear", "sexual", "violent", "defames_groups", "personal_information"),
        meaning="Prompts that any annotator labelled so make no pairs.",
        source="ImageReward B.1",
    )
    drop_image_problems: Annotated[tuple[Problem, ...], Strict(False)] = setting(
        (), meaning="Images with such a problem, by any annotator, make no pairs."
    )
    use_images: bool = setting(
        False, meaning="Read the images artifact: images it lacks make no pairs, and equal bytes count as one image."
    )
    weighting: Literal["pair", "prompt"] = setting(
        "pair", meaning="pair: every pair weighs 1. prompt: every prompt does.", source="ImageReward weighs pairs"
    )
    near_duplicate: Annotated[float, Field(gt=0, le=1)] | Literal["off"] = setting(
        0.95, meaning="Prompts whose vectors' cosine is at least this share a split, where vectors are at hand; or off."
    )
    validation_share: float = setting(
        0.046, ge=0, lt=1, meaning="Share of prompts in the validation split.", source="412 of 8,878 (ImageRewardDB)"
    )
    test_share: float = setting(
        0.052, ge=0, lt=1, meaning="Share of prompts in the test split.", source="466 of 8,878 (ImageReward 4.1)"
    )
    seed: int = setting(0, ge=0, meaning="Seed of the cut into splits.")

    @model_validator(mode="after")
    def _shares(self) -> BuildPairsConfig:
        if self.validation_share + self.test_share >= 1:
            raise ValueError("validation_share and test_share leave nothing to train on")
        return self


def _reads(config: BuildPairsConfig) -> Sequence[str]:
    return ("annotations", "images") if config.use_images else ("annotations",)


STAGE = Stage(
    name="build-pairs",
    version=1,
    reads=_reads,
    reads_if_upstream=("embeddings",),
    writes="pairs",
    determinism="bitwise",
    config=BuildPairsConfig,
    run="irpipe.stages.build_pairs.run:run",
)
