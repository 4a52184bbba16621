"""Tune a generator on the best and the worst of its own images, the worst marked by an identifier (HPS's way).

Reads: the selected prompts and their splits, the reward model, and captioned images.
Writes: what `refl` writes; `generator.json` names the identifier, to be given as negative prompt.
Paper: HPS, sections 6 and 7.2; as ImageReward, appendix E, sets it up for its table 4 ("dataset filtering").
Deviates: images are the base's own rather than DiffusionDB's, and ImageReward scores them, as in its table 4.
Cost: a pool O(pool_prompts * images_per_prompt * num_steps) of the network, then O(batch_size) a step.
"""

from __future__ import annotations

from irpipe.models.plugins import plugins
from irpipe.models.tuning.config import PoolConfig
from irpipe.pipeline.stage import Stage, setting


class FilterTuneConfig(PoolConfig):
    alpha: float = setting(
        2.0,
        gt=0,
        le=100,
        meaning="An image is chosen if its share of the softmax of its prompt's rewards (or, for bad ones, of their negatives) is"
        " above alpha / images_per_prompt.",
        source="HPS 6: 2.0",
    )
    identifier: str = setting(
        "Weird image. ", min_length=1, meaning="What bad images' prompts begin with.", source="HPS, released code"
    )
    steps: int = setting(
        312, ge=1, le=1_000_000, meaning="Optimiser steps.", source="ImageReward E: one epoch of 20,000 images by 64"
    )


STAGE = Stage(
    name="filter-tune",
    version=1,
    reads=PoolConfig.shared_reads,
    writes="generator",
    processes=lambda config: int(config.training.processes),
    determinism="numeric",
    extra="tune",
    config=FilterTuneConfig,
    run="irpipe.stages.filter_tune.run:run",
    plugins=plugins,
)
