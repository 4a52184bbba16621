"""The work of `refl`."""

from __future__ import annotations

from pathlib import Path

from irpipe.models.tuning.session import Session
from irpipe.pipeline.stage import Context, Inputs, Report
from irpipe.stages.refl import ReflConfig
from irpipe.stages.refl.objective import ReflObjective


def run(config: ReflConfig, inputs: Inputs, out: Path, context: Context) -> Report:
    session = Session.open("refl", config, inputs, context)
    objective = ReflObjective(config, session)
    objective.check_gradient([value for value in session.denoiser.unet.parameters() if value.requires_grad])
    trainer = session.train(objective)
    return session.write(trainer, out)
