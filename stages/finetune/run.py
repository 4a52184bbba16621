"""The work of `finetune`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from irpipe.models.tuning.session import Session
from irpipe.pipeline.stage import Context, Report
from irpipe.pipeline.store import Artifact
from irpipe.stages.finetune import FinetuneConfig
from irpipe.stages.finetune.images import ImagesObjective
from irpipe.stages.finetune.pool import PoolObjective


def run(config: FinetuneConfig, inputs: Mapping[str, Artifact], out: Path, context: Context) -> Report:
    session = Session.open("finetune", config, inputs, context)
    objective = PoolObjective(config, session) if config.source == "pools" else ImagesObjective(config, session, inputs)
    trainer = session.train(objective)
    negative_prompt = config.identifier if config.select == "best-and-worst" else ""
    return session.write(trainer, out, objective.figures, negative_prompt)
