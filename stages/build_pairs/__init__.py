"""Make C(k, 2) preference pairs from every ranking.

Reads: the annotations and the prompts' splits; with `use_images` the images.
Writes: the tables `pairs` and `rejected`.
Paper: ImageReward, section 3.1 (pairs of a ranking, ties left out).
Deviates: nothing.
Cost: O(pairs) time, one pass (two with weighting = 'prompt'); memory O(prompts), with `use_images` O(images).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Strict

from irpipe.pipeline.stage import Config, Stage, setting

Label = Literal["intent_unclear", "sexual", "violent", "defames_groups", "personal_information"]
Problem = Literal[
    "repeated_generation", "body_problem", "too_blurred", "psychological_discomfort", "sexual", "violent", "defames_groups"
]


class BuildPairsConfig(Config):
    aggregate: Literal["none", "majority", "borda", "bradley-terry"] = setting(
        "none",
        meaning="How several rankings of the same images are combined: none keeps each one's pairs; majority votes on every"
        " pair; borda ranks by mean rank; bradley-terry by fitted strength.",
        source="ImageReward has one annotator per prompt",
    )
    drop_labels: Annotated[tuple[Label, ...], Strict(False)] = setting(
        ("intent_unclear", "sexual", "violent", "defames_groups", "personal_information"),
        meaning="Prompts with one of these labels by any annotator make no pairs.",
        source="ImageReward B.1",
    )
    drop_image_problems: Annotated[tuple[Problem, ...], Strict(False)] = setting(
        (), meaning="Images with one of these problems by any annotator make no pairs."
    )
    use_images: bool = setting(
        False, meaning="Read the images artifact: missing images make no pairs, and images of equal bytes count as one."
    )
    weighting: Literal["pair", "prompt"] = setting(
        "pair",
        meaning="pair: every pair has weight 1. prompt: the pairs of a prompt have weight 1 together.",
        source="ImageReward weighs pairs",
    )


def _reads(config: BuildPairsConfig) -> Sequence[str]:
    return ("annotations", "splits", *(("images",) if config.use_images else ()))


STAGE = Stage(
    name="build-pairs",
    version=2,
    reads=_reads,
    writes="pairs",
    determinism="bitwise",
    config=BuildPairsConfig,
    run="irpipe.stages.build_pairs.run:run",
)
