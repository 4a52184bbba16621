"""The work of `filter-tune`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from irpipe.models.tuning.pool import Chosen, PoolObjective
from irpipe.models.tuning.session import Session
from irpipe.pipeline.stage import Context, Report
from irpipe.pipeline.store import Artifact
from irpipe.stages.filter_tune import FilterTuneConfig


def run(config: FilterTuneConfig, inputs: Mapping[str, Artifact], out: Path, context: Context) -> Report:
    session = Session.open("filter-tune", config, inputs, context)
    objective = PoolObjective(config, session, lambda rewards: best_and_worst(rewards, config.alpha), config.identifier)
    trainer = session.train(objective)
    return session.write(trainer, out, objective.figures, config.identifier)


def best_and_worst(rewards: NDArray[np.float64], alpha: float) -> Sequence[Chosen]:
    """Of each prompt the best image and, marked, the worst, each only if it stands out. Source: HPS, section 6."""
    chosen = []
    for prompt, row in enumerate(rewards):
        seen = np.flatnonzero(np.isfinite(row))
        for sign in (1.0, -1.0) if len(seen) > 1 else ():
            share = softmax(sign * row[seen])
            if share.max() > alpha / len(seen):
                chosen.append(Chosen(prompt, int(seen[share.argmax()]), 1.0, sign < 0))
    return chosen
