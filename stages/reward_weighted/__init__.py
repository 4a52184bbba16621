"""Tune a generator on its own images, each by the weight of its reward.

Reads: the selected prompts and their splits, the reward model, and captioned images.
Writes: what `refl` writes.
Paper: Lee et al. 2023, as ImageReward, appendix E, sets it up for its table 4: E[r * -log p] + beta * E[-log p of captioned
    images], with beta 0.5 and r scaled to 0..1 over the pool.
Deviates: LoRA by default; -log p is the denoising loss. `scale = "prompt"` scales within a prompt, where alone
    rewards compare.
Cost: a pool O(pool_prompts * images_per_prompt * num_steps) of the network, then O(batch_size) a step.
"""

from __future__ import annotations

from typing import Literal

from irpipe.models.plugins import plugins
from irpipe.models.tuning.config import PoolConfig, PretrainingSettings
from irpipe.pipeline.stage import Stage, group, setting


class RewardWeightedPretraining(PretrainingSettings):
    """The pre-training loss on captioned images, which keeps a generator from forgetting."""

    weight: float = setting(
        0.5, ge=0, le=1e6, meaning="Weight of the denoising loss on captioned images, beta.", source="ImageReward E: 0.5"
    )


class RewardWeightedConfig(PoolConfig):
    pretraining: RewardWeightedPretraining = group(RewardWeightedPretraining)
    scale: Literal["pool", "prompt"] = setting(
        "pool",
        meaning="Over what rewards are scaled to 0..1: all images of the pool, or those of each prompt.",
        source="ImageReward E",
    )
    steps: int = setting(
        312, ge=1, le=1_000_000, meaning="Optimiser steps.", source="ImageReward E: one epoch of 20,000 images by 64"
    )


STAGE = Stage(
    name="reward-weighted",
    version=1,
    reads=PoolConfig.shared_reads,
    writes="generator",
    processes=lambda config: int(config.training.processes),
    determinism="numeric",
    extra="tune",
    plugins=plugins,
    config=RewardWeightedConfig,
    run="irpipe.stages.reward_weighted.run:run",
)
