"""The work of `reward-weighted`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from irpipe.models.tuning.pool import Chosen, PoolObjective
from irpipe.models.tuning.session import Session
from irpipe.pipeline.stage import Context, Report
from irpipe.pipeline.store import Artifact
from irpipe.stages.reward_weighted import RewardWeightedConfig


def run(config: RewardWeightedConfig, inputs: Mapping[str, Artifact], out: Path, context: Context) -> Report:
    session = Session.open("reward-weighted", config, inputs, context)
    objective = PoolObjective(config, session, lambda rewards: weighted(rewards, config.scale == "prompt"))
    trainer = session.train(objective)
    return session.write(trainer, out, objective.figures)


def weighted(rewards: NDArray[np.float64], by_prompt: bool) -> Sequence[Chosen]:
    """All images but the blackened (NaN), with their rewards scaled to 0..1."""
    axis = 1 if by_prompt else None
    low, high = (edge(rewards, axis=axis, keepdims=True) for edge in (np.nanmin, np.nanmax))
    scaled = (rewards - low) / np.maximum(high - low, 1e-12)
    return [Chosen(int(prompt), int(image), float(scaled[prompt, image])) for prompt, image in np.argwhere(np.isfinite(rewards))]
