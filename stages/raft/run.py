"""The work of `raft`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from irpipe.models.tuning.pool import Chosen, PoolObjective
from irpipe.models.tuning.session import Session
from irpipe.pipeline.stage import Context, Report
from irpipe.pipeline.store import Artifact
from irpipe.stages.raft import RaftConfig


def run(config: RaftConfig, inputs: Mapping[str, Artifact], out: Path, context: Context) -> Report:
    session = Session.open("raft", config, inputs, context)
    objective = PoolObjective(config, session, lambda rewards: best_of_each(rewards, config.best))
    trainer = session.train(objective)
    return session.write(trainer, out, objective.figures)


def best_of_each(rewards: NDArray[np.float64], best: int) -> Sequence[Chosen]:
    """The best images of every prompt. What was blackened (NaN) is never chosen."""
    order = np.argsort(-np.nan_to_num(rewards, nan=-np.inf), axis=1, kind="stable")[:, :best]
    return [
        Chosen(prompt, int(image), 1.0)
        for prompt, images in enumerate(order)
        for image in images
        if np.isfinite(rewards[prompt, image])
    ]
