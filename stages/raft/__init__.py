"""Tune a generator on the best of its own images, over and over (RAFT).

Reads: the selected prompts and their splits, the reward model, and captioned images.
Writes: what `refl` writes.
Paper: Dong et al. 2023 (RAFT), as ImageReward, appendix E, sets it up for its table 4.
Deviates: LoRA by default; the pre-training loss has a weight in every step. The paper's pools have 100,000
    images (10,000 prompts by 10); an iteration is `pool_every` steps.
Cost: a pool O(pool_prompts * images_per_prompt * num_steps) of the network, then O(batch_size) a step.
"""

from __future__ import annotations

from typing import Any

from pydantic import model_validator

from irpipe.models.plugins import plugins
from irpipe.models.tuning.config import PoolConfig
from irpipe.pipeline.stage import Stage, setting


class RaftConfig(PoolConfig):
    pool_prompts: int = setting(10_000, ge=1, meaning="Prompts per pool.", source="ImageReward E: 10,000")
    best: int = setting(
        1, ge=1, le=1000, meaning="Images per prompt that are trained on, the best ones.", source="ImageReward E: 1 of 10"
    )
    steps: int = setting(
        468, ge=1, le=1_000_000, meaning="Optimiser steps.", source="ImageReward E: 3 iterations of 10,000 images by 64"
    )
    pool_every: int = setting(
        156, ge=0, meaning="Steps between pools of the tuned generator. 0: one pool, of the base.", source="ImageReward E"
    )

    @model_validator(mode="after")
    def _chooses(self) -> Any:
        if self.best >= self.images_per_prompt:
            raise ValueError("best is not below images_per_prompt: nothing would be chosen")
        return self


STAGE = Stage(
    name="raft",
    version=1,
    reads=PoolConfig.shared_reads,
    writes="generator",
    processes=lambda config: int(config.training.processes),
    determinism="numeric",
    extra="tune",
    config=RaftConfig,
    run="irpipe.stages.raft.run:run",
    plugins=plugins,
)
