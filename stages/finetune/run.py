"""The work of `finetune`."""

from __future__ import annotations

from pathlib import Path

from irpipe.models.generators import PROMPT
from irpipe.models.tuning.session import Session
from irpipe.pipeline.stage import Context, Inputs, Report
from irpipe.stages.finetune import FinetuneConfig
from irpipe.stages.finetune.images import ImagesObjective, has_non_preferred
from irpipe.stages.finetune.pool import PoolObjective


def run(config: FinetuneConfig, inputs: Inputs, out: Path, context: Context) -> Report:
    session = Session.open("finetune", config, inputs, context, negative_prompt_of(config, inputs))
    if config.source == "none":
        return session.write(session.train(), out)
    objective = PoolObjective(config, session) if config.source == "pools" else ImagesObjective(config, session, inputs)
    return session.write(session.train(objective), out, objective.figures)


def negative_prompt_of(config: FinetuneConfig, inputs: Inputs) -> str:
    """The negative prompt of the tuned generator; empty where no image is marked as bad: nothing would have taught it."""
    if not config.marks or (config.source == "images" and not has_non_preferred(inputs["chosen-images"])):
        return ""
    return config.identifier + (PROMPT if config.negative == "identifier+prompt" else "")
